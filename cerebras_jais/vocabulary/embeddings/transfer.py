"""A checkpoint whose embedding and head have rows for the tokens of an extended tokenizer.

Everything else is copied tensor by tensor as `checkpoint_convert` does: in bounded memory, resumable, with a digest of
each. What was learned is kept beside the files in the making, so that a run that resumes does not learn it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cerebras_jais.atomic import partial_path
from cerebras_jais.config.yaml_file import ConfigFile
from cerebras_jais.files import identity_of
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.vocabulary.embeddings.fit import FEWEST, Fitted, Matrix, Problem, Progress, TransferReport, fit
from cerebras_jais.vocabulary.embeddings.methods import GrownMatrix, Method
from cerebras_jais.vocabulary.embeddings.shared_tokens import (
    Vocabulary,
    new_tokens,
    read_vocabulary,
    shared_tokens,
    sources_of,
)
from cerebras_jais.vocabulary.errors import VocabularyError
from checkpoint_convert.configs.convert import check_convertible
from checkpoint_convert.configs.trainer_yaml import read_model_section, trainer_params
from checkpoint_convert.convert import Report, check_room, run_conversion
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.json_files import read_json, write_json
from checkpoint_convert.formats.tensors import WEIGHT_TYPES, Tensor
from checkpoint_convert.mapping.plan import Plan, make_plan
from checkpoint_convert.mapping.rules import rules
from checkpoint_convert.open_model import Model, opening
from checkpoint_convert.outputs import CheckpointTarget, check_absent
from checkpoint_convert.streaming.run import Progress as BytesProgress
from checkpoint_convert.streaming.run import Sink
from checkpoint_convert.verify.compare import config_differences

EMBEDDING, HEAD = "embedding_layer.word_embeddings.weight", "lm_head.weight"
_FITTED = "fitted.npz"
# Keys of config.json in which the run to come may differ from the base.
_MAY_DIFFER = {"vocab_size", "max_position_embeddings", "n_positions"}
Config = Path | ConfigFile | None


@dataclass(frozen=True)
class TransferTarget(CheckpointTarget):
    """The .mdl file, and the report of the transfer among the files beside it."""

    learn: Callable[[], tuple[Fitted, TransferReport]]
    use: Callable[[Fitted], None]
    """Gives the matrices to write the rows of their new tokens."""

    @property
    def names(self) -> tuple[Path, ...]:
        *others, output = super().names
        return (*others, report_path(self.output), output)

    def create_files(self, directory: Path) -> None:
        fitted, report = self.learn()
        fitted.save(directory / _FITTED)
        write_json(directory / report_path(self.output).name, report.to_json())
        super().create_files(directory)

    @contextmanager
    def sink(self, directory: Path) -> Iterator[Sink]:
        self.use(Fitted.load(directory / _FITTED))
        with super().sink(directory) as sink:
            yield sink


def report_path(output: Path) -> Path:
    """Where the report of a transfer is, beside the checkpoint."""
    return output.with_name(f"{output.stem}.transfer.json")


@dataclass(frozen=True)
class TransferOptions:
    """The models of a transfer, and what is made of them.

    Attributes:
        base: the model that grows, a .mdl file or a release.
        donor: a model that has embeddings of the new tokens, a .mdl file or a release.
        output: the .mdl file to create, with `<stem>.yaml`, `<stem>.manifest.json` and `<stem>.transfer.json` beside
            it; none may exist.
        base_tokenizer: folder of the base's tokenizer; None looks beside the model.
        donor_tokenizer: the same of the donor.
        base_config: trainer YAML of a base that records none.
        donor_config: the same of the donor.
        config: trainer YAML of the run to come: the output has its `model:` section. None takes the base's.
        vocab_size: rows of the output, where no `config` says it; None takes the entries of the extended tokenizer.
        allow_pickle: whether weights in pickle files may be read; no code in them is run.
    """

    base: Path
    donor: Path
    output: Path
    base_tokenizer: Path | None = None
    donor_tokenizer: Path | None = None
    base_config: Config = None
    donor_config: Config = None
    config: Config = None
    vocab_size: int | None = None
    allow_pickle: bool = False


def transfer(
    options: TransferOptions,
    tokenizer: Path,
    *,
    method: Method = Method.PROJECTION,
    base_norms: bool = False,
    seed: int = 0,
    dry_run: bool = False,
    fitting: Progress = lambda done, total: None,
    writing: BytesProgress = lambda done, total: None,
) -> tuple[Report, Mapping[str, Any]]:
    """Make a checkpoint of a base with rows for the tokens of an extended tokenizer.

    Args:
        tokenizer: folder of the extended tokenizer.
        method: how rows of new tokens are made; all methods are judged in any case.
        base_norms: whether projected rows are brought to the base's mean norm.
        seed: of the tokens held out, the columns judged, and random rows.
        dry_run: learn, judge and check everything, and write nothing.
        fitting: called with floating-point operations, just done and of all.
        writing: called with bytes, just read and to read in all.

    Returns what the writing did, and the report of the transfer as JSON values (`TransferReport`).

    Raises:
        UserError: the models and tokenizers do not fit together, or the output cannot be written; nothing appears.
    """
    output = options.output
    check_name(output)
    extended = read_vocabulary(tokenizer)
    with _opening_pair(options) as pair:
        own, other, base_vocabulary, donor_vocabulary = pair.own, pair.other, pair.base, pair.donor
        new = new_tokens(base_vocabulary, extended)
        section = _section(own, options, extended.size, str(extended.file))
        grown_config = DecoderConfig.from_section(section)
        grown = _grown_matrices(own, base_vocabulary.size, grown_config.vocab_size, frozenset(new))
        plan = _planned(own, grown_config, grown)
        base_ids, donor_ids = pair.shared
        problem = Problem(
            base_vocabulary,
            _matrices(own),
            _matrix(other, EMBEDDING),
            base_ids,
            donor_ids,
            sources_of(new, extended, donor_vocabulary),
            sources_of(new, extended, base_vocabulary),
        )
        padding = grown_config.vocab_size - base_vocabulary.size - len(new)

        def learn() -> tuple[Fitted, TransferReport]:
            return fit(problem, method, base_norms=base_norms, padding=padding, seed=seed, progress=fitting)

        def use(fitted: Fitted) -> None:
            makers = fitted.makers(problem, method, seed)
            for place, matrix in enumerate(grown.values()):
                of = min(place, len(makers) - 1)  # a tied head is the embedding
                matrix.make, matrix.mean = makers[of], fitted.statistics[of].mean

        notes = [
            *own.notes,
            f"the vocabulary grew from {base_vocabulary.size:,} to {extended.size:,} tokens in "
            f"{grown_config.vocab_size:,} rows; train the embedding and the head first, with the backbone frozen "
            "(model.frozen_parameters), as stage 1 of the jais-adapted models does",
        ]
        params = trainer_params(section, output.name)
        target = TransferTarget(output, plan, params, tuple(notes), None, own.tokens, learn, use)
        files = [vocabulary.file for vocabulary in (base_vocabulary, donor_vocabulary, extended)]
        read = replace(own, files={**own.files, **other.files, **{str(file): identity_of(file) for file in files}})
        choices = [params, None if own.tokens is None else own.tokens.keys(), method.value, base_norms, seed]
        if dry_run:
            check_absent(output)
            fitted, report = learn()
            use(fitted)
            return run_conversion(read, plan, target, choices, notes, True, writing), report.to_json()
        return run_conversion(read, plan, target, choices, notes, False, writing), read_json(report_path(output))


def check_transfer(options: TransferOptions, entries: int) -> None:
    """Check all of a transfer that can be known before its tokenizer is there, from headers and vocabularies.

    Args:
        entries: that the extended tokenizer will have.

    Raises:
        UserError: as `transfer` would. An output that an interrupted run left behind is none.
    """
    output = options.output
    check_name(output)
    with _opening_pair(options) as pair:
        section = _section(pair.own, options, entries, "the extended tokenizer")
        grown_config = DecoderConfig.from_section(section)
        grown = _grown_matrices(pair.own, pair.base.size, grown_config.vocab_size, frozenset())
        plan = _planned(pair.own, grown_config, grown)
        if not partial_path(output).exists():  # what an interrupted run left takes the room, and may hold the output
            check_absent(output)
            check_room(output, plan.write_bytes)


@dataclass(frozen=True, eq=False)
class _Pair:
    """A base and a donor, open, whose tokenizers belong to them."""

    own: Model
    other: Model
    base: Vocabulary
    donor: Vocabulary
    shared: tuple[np.ndarray, np.ndarray]
    """What `shared_tokens` gives."""


@contextmanager
def _opening_pair(options: TransferOptions) -> Iterator[_Pair]:
    base, donor = options.base, options.donor
    base_vocabulary = read_vocabulary(options.base_tokenizer or tokenizer_of(base, "--base-tokenizer"))
    donor_vocabulary = read_vocabulary(options.donor_tokenizer or tokenizer_of(donor, "--donor-tokenizer"))
    with (
        opening(base, config=options.base_config, allow_pickle=options.allow_pickle) as own,
        opening(donor, config=options.donor_config, allow_pickle=options.allow_pickle) as other,
    ):
        _check_tokens(own, base_vocabulary, "--base-tokenizer")
        _check_tokens(other, donor_vocabulary, "--donor-tokenizer")
        shared = shared_tokens(base_vocabulary, donor_vocabulary)
        if len(shared[0]) < FEWEST:
            raise VocabularyError(
                f"{base_vocabulary.file}: shares {len(shared[0])} tokens with the donor's tokenizer, at least {FEWEST} "
                "are needed; give a donor that was trained on a language of the base, too"
            )
        yield _Pair(own, other, base_vocabulary, donor_vocabulary, shared)


def check_name(output: Path) -> None:
    """Raise VocabularyError where an output is not named as a checkpoint."""
    if output.suffix != ".mdl" or output.is_dir():
        raise VocabularyError(
            f"{output}: the output is a Cerebras checkpoint; give a name that ends in .mdl (`checkpoint-convert to-hf` "
            "makes a release of it)"
        )


def tokenizer_of(model: Path, option: str) -> Path:
    """The folder of a model's tokenizer: the release, or for a checkpoint its folder or `tokenizer` in it."""
    places = [model] if model.is_dir() else [model.parent, model.parent / "tokenizer"]
    for place in places:
        if (place / "tokenizer.json").is_file():
            return place
    raise VocabularyError(f"{model}: has no tokenizer.json beside it; give the folder of its tokenizer with {option}")


def _check_tokens(model: Model, vocabulary: Vocabulary, option: str) -> None:
    """Raise VocabularyError where a model has no embedding for a token of its tokenizer."""
    embedding = model.tensors.get(_stored_name(model, EMBEDDING))
    if embedding is None or len(embedding.shape) != 2 or embedding.dtype not in WEIGHT_TYPES:
        raise VocabularyError(f"{model.path}: has no embedding of floating-point numbers; give a whole model")
    if vocabulary.size > embedding.shape[0]:
        raise VocabularyError(
            f"{vocabulary.file}: has {vocabulary.size:,} tokens, but {model.path} has {embedding.shape[0]:,} rows of "
            f"embeddings: they do not belong together; give the model's own tokenizer with {option}"
        )


def _section(own: Model, options: TransferOptions, entries: int, tokenizer: str) -> dict[str, Any]:
    """The `model:` section of the output, for a tokenizer of so many entries, which messages name."""
    section, where = {**own.section, "vocab_size": options.vocab_size or entries}, "--vocab-size"
    if options.config is not None:
        section = read_model_section(options.config)
        where = str(options.config.path if isinstance(options.config, ConfigFile) else options.config)
    found = DecoderConfig.from_section(section)
    if found.vocab_size < entries:
        raise VocabularyError(
            f"{where}: vocab_size is {found.vocab_size:,}, but {tokenizer} has {entries:,} tokens; give "
            "at least as many rows"
        )
    check_convertible(own.config)
    check_convertible(found)
    for key, values in config_differences(own.config, found).items():
        if key not in _MAY_DIFFER:
            raise VocabularyError(
                f"{where}: {key} is {values[1]!r}, but {values[0]!r} in the base, {own.path}; give the config of a "
                "model that differs in its vocabulary alone"
            )
    return section


def _matrix(model: Model, name: str) -> Tensor:
    """A matrix of a model on either side, by its Cerebras name."""
    return model.tensors[_stored_name(model, name)]


def _stored_name(model: Model, name: str) -> str:
    (found,) = (rule.names(model.side)[0] for rule in rules(model.config) if rule.cerebras == (name,))
    return found


def _matrices(model: Model) -> tuple[Matrix, ...]:
    embedding = Matrix("embedding", _matrix(model, EMBEDDING))
    if model.config.share_embedding_weights:
        return (embedding,)
    return embedding, Matrix("head", _matrix(model, HEAD))


def _grown_matrices(model: Model, kept: int, rows: int, new: frozenset[int]) -> dict[str, GrownMatrix]:
    """Name in the base -> the matrix with more rows, the embedding first."""
    names = [_stored_name(model, name) for name in (EMBEDDING, HEAD)]
    return {name: GrownMatrix(model.tensors[name], kept, rows, new) for name in names}


def _planned(own: Model, grown_config: DecoderConfig, grown: Mapping[str, GrownMatrix]) -> Plan:
    """The plan of the output's tensors; the base's own are checked against its config first."""
    try:
        make_plan(own.config, own.side, own.tensors, onto="cerebras", link_ties=True)
        tensors = {**own.tensors, **grown}
        return make_plan(grown_config, own.side, tensors, onto="cerebras", link_ties=True)
    except ConversionError as error:
        raise VocabularyError(f"{own.path}: {error}") from error
