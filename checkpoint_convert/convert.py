"""The two conversions: a checkpoint to a release, and a release to a checkpoint.

Nothing here needs torch or transformers. Everything that headers can tell is checked before a byte is written. Then the
tensors stream (streaming/run.py) into files that already have their full size, in a hidden directory (journal.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cerebras_jais import __version__
from cerebras_jais.checkpoint.hdf5.isolate import Descriptions
from cerebras_jais.config.yaml_file import ConfigFile
from cerebras_jais.files import identity_of
from checkpoint_convert.card import Card
from checkpoint_convert.configs.convert import check_convertible, default_special_tokens, to_config_json
from checkpoint_convert.configs.trainer_yaml import trainer_params
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.release_directory import CONFIG
from checkpoint_convert.formats.safetensors import plan_shards
from checkpoint_convert.formats.tensors import WEIGHT_TYPES
from checkpoint_convert.mapping.plan import Plan, make_plan
from checkpoint_convert.mapping.rules import architecture_of, by_layer, layers_text, tensor_count, ties
from checkpoint_convert.open_model import Model, opening
from checkpoint_convert.outputs import CheckpointTarget, ReleaseTarget, Target, check_absent, publish
from checkpoint_convert.release import Companions, read_tokenizer
from checkpoint_convert.streaming.journal import Work, fingerprint, working_beside
from checkpoint_convert.streaming.run import DEFAULT_WORKERS, MEMORY_BYTES, Progress, run_steps, working_bytes
from checkpoint_convert.verify.manifest import manifest_of

Path_ = str | os.PathLike[str]
Compression = Literal["lz4"] | None

DEFAULT_SHARD_SIZE = 5 * 10**9
# Files beside the weights: configs, code, tokenizer, card, manifest.
_COMPANION_BYTES = 32 << 20


@dataclass(frozen=True)
class Report:
    """What a conversion did, or with `dry_run` would do."""

    output: Path
    architecture: str
    """Name of the Hugging Face class."""
    tensors: int
    """Tensors of the model, each counted once, as a Cerebras checkpoint divides it."""
    names: int
    """Names in the output: a tied tensor has two names; q, k and v of a Jais release share one."""
    parameters: int
    """Parameters, tied ones counted once."""
    dtypes: tuple[str, ...]
    """Element types of the output, most common first."""
    steps: int
    read_bytes: int
    write_bytes: int
    """Bytes of the tensors written; links have none."""
    memory_bytes: int
    """Approximate memory of the workers, without the program itself."""
    free_bytes: int
    """Free space on the disk before the conversion."""
    continued: int
    """Steps that an earlier, interrupted run finished."""
    notes: tuple[str, ...]
    """What was left out or assumed."""
    lines: tuple[str, ...]
    """The plan, one line for each kind of step."""


def convert_to_hf(
    checkpoint: Path_,
    output: Path_,
    *,
    config: Path_ | ConfigFile | Mapping[str, Any] | None = None,
    tokenizer: Path_ | None = None,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    dtype: str | None = None,
    chat: bool | None = None,
    card: Card | None = None,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
    descriptions: Descriptions | None = None,
) -> Report:
    """Convert a Cerebras checkpoint to a Hugging Face release directory.

    Args:
        checkpoint: the .mdl file.
        output: the directory to create; it must not exist.
        config: a trainer YAML, which may be open already, or a `model:` section; None takes the config stored in the
            checkpoint.
        tokenizer: directory of a tokenizer to include.
        max_shard_size: bytes of weights in one file.
        dtype: "float32", "bfloat16" or "float16"; None keeps each tensor's own. ALiBi slopes are never converted.
        chat: whether to write the family's chat template and the card's sampling; None asks the checkpoint's run
            (`tunes_on_conversations` of its config).
        card: what its author says of it, for README.md; what is missing there is in the notes of the report.
        dry_run: check everything, tied tensors included, and write nothing.
        progress: called as bytes are read.
        descriptions: a child that was started with the .mdl file among others; None starts one where it is needed.

    Raises:
        UserError: the input cannot be converted, or the output cannot be written; no output appears.
    """
    output = Path(output)
    found = Path(config) if isinstance(config, str | os.PathLike) else config
    with opening(_file(checkpoint), config=found, descriptions=descriptions) as model:
        check_convertible(model.config)
        writes_chat = model.is_chat if chat is None else chat
        files = read_tokenizer(Path(tokenizer) if tokenizer else None, model.config, model.tokens, chat=writes_chat)
        plan = _plan(model, dtype)
        config_json = to_config_json(model.section, plan.dtypes[0], files.tokens)
        notes = [*model.notes, *files.notes]
        if chat is None and writes_chat:
            notes.append("released as a chat model, because its run tunes on packed examples; --no-chat prevents that")
        if card is not None and card.missing:
            notes.append(f"the card does not give {', '.join(card.missing)}; README.md lists that as missing")
        shards = plan_shards(plan.headers, max_shard_size)

        target = ReleaseTarget(output, shards, Companions(config_json, files, plan, model.origin, writes_chat, card))
        sources = [_identity_of(file) for file in files.files.values()]
        told = None if card is None else card.model_dump(mode="json")
        options = [config_json, max_shard_size, sources, writes_chat, told]
        return run_conversion(model, plan, target, options, notes, dry_run, progress)


def convert_to_cerebras(
    release: Path_,
    output: Path_,
    *,
    dtype: str | None = None,
    compression: Compression = None,
    allow_pickle: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Convert a Hugging Face release to a Cerebras checkpoint, with the YAML that continues its training beside it.

    Args:
        release: directory with config.json and weights.
        output: the .mdl file to create, with `<stem>.yaml` and `<stem>.manifest.json` beside it; none may exist.
        dtype: as for `convert_to_hf`.
        compression: "lz4" compresses the tensors as Cerebras does; None stores them uncompressed, quicker to read.
        allow_pickle: whether weights in pickle files may be read; no code in them is run.
        dry_run: check everything, tied tensors included, and write nothing.
        progress: called as bytes are read.

    Raises:
        UserError: the input cannot be converted, or the output cannot be written; no output appears.
    """
    release, output = Path(release), Path(output)
    if not release.is_dir():
        raise ConversionError(
            f"{release}: is not a directory; give a release, a directory with config.json and safetensors files"
        )
    if not output.name:
        raise ConversionError(f"{output}: is a folder; give the name of the .mdl file to create")
    if output.suffix == ".yaml":
        raise ConversionError(f"{output}: its YAML would have the same name; give a name that ends in .mdl")
    with opening(release, allow_pickle=allow_pickle) as model:
        plan = _plan(model, dtype, link_ties=True)
        notes = list(model.notes)
        if plan.ignored:
            notes.append(f"left out: {len(plan.ignored)} buffers that the code recomputes, such as {plan.ignored[0]}")
        if model.tokens not in (None, default_special_tokens(model.config)):
            notes.append(
                f"config.json: {model.tokens}: stored in the checkpoint for `to-hf`; the checkpoints of further "
                "training do not have them, so give `to-hf` the tokenizer and check config.json after training"
            )
        params = trainer_params(model.section, output.name, chat=model.is_chat)
        target = CheckpointTarget(output, plan, params, tuple(notes), compression, model.tokens)
        kept = None if model.tokens is None else model.tokens.keys()
        return run_conversion(model, plan, target, [params, compression, kept], notes, dry_run, progress)


def _plan(model: Model, dtype: str | None, *, link_ties: bool = False) -> Plan:
    if dtype is not None and dtype not in WEIGHT_TYPES:
        raise ConversionError(f"{dtype!r} is not an element type of weights; use {', '.join(WEIGHT_TYPES)}")
    try:
        return make_plan(model.config, model.side, model.tensors, dtype=dtype, link_ties=link_ties)
    except ConversionError as error:
        raise ConversionError(f"{model.path}: {error}") from error


def run_conversion(
    model: Model,
    plan: Plan,
    target: Target,
    options: list[Any],
    notes: list[str],
    dry_run: bool,
    progress: Progress,
) -> Report:
    """Run a plan: what both directions share, and every other way to make a checkpoint of one.

    Args:
        model: what is read; none of its `files` may change meanwhile.
        plan: of its tensors.
        target: what is written.
        options: JSON values that determine the output besides the files: an interrupted run resumes if they are equal.
        notes: for the report.
        dry_run: check everything, and write nothing.
        progress: called as bytes are read.

    Raises:
        UserError: the output is there already or cannot be written, or the input changes or is damaged.
    """
    output = target.names[-1]
    free = _free(output)

    def create_files(directory: Path) -> None:
        for path in target.names:
            check_absent(path)
        check_room(output, target.nbytes)
        target.create_files(directory)

    if dry_run:
        check_absent(output)
        check_room(output, target.nbytes)
        _check_ties(model, plan)
        return _report(plan, target, free, notes)
    identity = fingerprint(
        __version__,
        [_identity_of(Path(path)) for path in sorted(model.files)],
        [[header.name, header.shape, header.dtype] for header in plan.headers],
        options,
    )
    with _system_errors(output), working_beside(output) as work:
        continued = len(plan.steps)
        if not work.is_complete(identity):
            check_absent(output)
            resumes = work.begin(identity, create_files, target.can_continue)
            continued = _check_finished(work, plan, target) if resumes else 0
            _run_unfinished(model, plan, work, target, progress)
            model.check_unchanged()
            target.complete(work.files, manifest_of(plan, work.finished))
            work.mark_complete()
        publish(target, work.complete)
    return _report(plan, target, free, notes, continued)


def check_room(output: Path, nbytes: int) -> None:
    """Raise ConversionError where the folder of an output is missing, or its disk has no room for so many bytes."""
    needed, free = nbytes + _COMPANION_BYTES, _free(output)
    if needed > free:
        raise ConversionError(
            f"{output}: needs {needed / 1e9:.2f} GB but the disk has {free / 1e9:.2f} GB free; make room"
        )


def _free(output: Path) -> int:
    parent = output.absolute().parent
    if not parent.is_dir():
        raise ConversionError(f"{output}: the directory {parent} does not exist; create it first")
    return shutil.disk_usage(parent).free


def _check_ties(model: Model, plan: Plan) -> None:
    """Compare the tensors that must be equal, without writing anything."""
    digests: dict[int, tuple[str, ...]] = {}
    tied = {number: plan.steps[number] for pair in plan.equal for number in pair}
    run_steps(tied, None, lambda number, found: _note_digests(model, plan, digests, number, found))


def _run_unfinished(model: Model, plan: Plan, work: Work, target: Target, progress: Progress) -> None:
    """Run the unfinished steps: first those whose tensors must be equal, then the largest first."""
    total = plan.read_bytes
    progress(sum(plan.steps[number].read_bytes for number in work.finished), total)
    paired = {number for pair in plan.equal for number in pair}
    left = [number for number in range(len(plan.steps)) if number not in work.finished]
    left.sort(key=lambda number: (number not in paired, -plan.steps[number].read_bytes, number))
    digests: dict[int, tuple[str, ...]] = {}
    for number, found in work.finished.items():
        _note_digests(model, plan, digests, number, found)

    def done(number: int, found: tuple[str, ...]) -> None:
        _note_digests(model, plan, digests, number, found)
        work.record(number, found)

    with target.sink(work.files) as sink:
        steps = {number: plan.steps[number] for number in left}
        run_steps(steps, sink, done, lambda nbytes: progress(nbytes, total), target.workers)


def _note_digests(
    model: Model, plan: Plan, digests: dict[int, tuple[str, ...]], number: int, found: tuple[str, ...]
) -> None:
    """Store the digests of a step; raise ConversionError when another step must have the same digests and has not."""
    digests[number] = found[: len(plan.steps[number].rule.cerebras)]  # without those of what the sink made of them
    for first, second in plan.equal:
        if number in (first, second) and first in digests and second in digests and digests[first] != digests[second]:
            raise ConversionError(f"{model.path}: {_tie_problem(plan, first, second)}")


def _tie_problem(plan: Plan, first: int, second: int) -> str:
    one, other = plan.steps[first], plan.steps[second]
    names = [one.rule.names(plan.side)[0], other.rule.names(plan.side)[0]]
    if names[0] == names[1]:  # no rule has the second name of the last norm
        names[1] = next(second for second, name in ties(plan.config, plan.side).items() if name == names[0])
    hint = ""
    if names[1] == "lm_head.weight":
        hint = "; the config ties them: set share_embedding_weights: false (tie_word_embeddings in a release)"
    return f"{names[1]} and {names[0]} must be one tensor but differ{hint}"


def _check_finished(work: Work, plan: Plan, target: Target) -> int:
    """Read back the steps that the journal calls finished and forget those with other digests; return how many stay."""
    for number in [number for number in work.finished if number >= len(plan.steps)]:
        work.forget(number)
    writing = {number: plan.steps[number] for number in work.finished if plan.steps[number].writes}
    for number in target.differing(work.files, writing, work.finished):
        work.forget(number)
    return len(work.finished)


@contextmanager
def _system_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConversionError(f"{output}: cannot be written: {error.strerror or error}") from error


def _file(checkpoint: Path_) -> Path:
    path = Path(checkpoint)
    if path.is_dir():
        hint = "; it is already a release" if (path / CONFIG).is_file() else ""
        raise ConversionError(f"{path}: is a directory; give the .mdl file of a checkpoint{hint}")
    return path


def _identity_of(path: Path) -> list[Any]:
    return [str(path.absolute()), *identity_of(path)]


# ---- reports ---------------------------------------------------------------------------------------------------------


def _report(plan: Plan, target: Target, free: int, notes: list[str], continued: int = 0) -> Report:
    widest = max(working_bytes(step) for step in plan.steps)
    return Report(
        target.names[-1],
        architecture_of(plan.config).transformers_class,
        tensor_count(plan.config),
        len(plan.names),
        plan.parameters,
        plan.dtypes,
        len(plan.steps),
        plan.read_bytes,
        target.nbytes,
        max(widest, min(MEMORY_BYTES, DEFAULT_WORKERS * widest)),
        free,
        continued,
        tuple(notes),
        tuple(_lines(plan)),
    )


def _lines(plan: Plan) -> Iterator[str]:
    """The steps of a plan, one line for all layers with the same step."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for step in plan.steps:
        names = step.rule.names(step.side)
        bare = [*_without_layers(names), "->", *_without_layers(step.outputs)]
        shapes = f"{step.dtype} {list(step.headers[0].shape)}" if step.writes else "compared only"
        kinds.setdefault((*bare, type(step.operation).__name__, shapes), []).append(names[0])
    for (*bare, operation, shapes), firsts in kinds.items():
        _, layers = by_layer(firsts)
        prefix = "".join(f"{layers_text(numbers)}: " for numbers in layers.values())
        yield f"{prefix}{' '.join(bare)} ({operation}, {shapes})"


def _without_layers(names: Iterable[str]) -> list[str]:
    rest, layers = by_layer(names)
    return [*rest, *layers]
