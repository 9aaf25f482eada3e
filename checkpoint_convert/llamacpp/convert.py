"""`to-gguf`: a checkpoint or a release as one GGUF file, in bands of rows, resumable as every conversion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from cerebras_jais.atomic import sync
from cerebras_jais.checkpoint.hdf5.isolate import Descriptions
from cerebras_jais.config.yaml_file import ConfigFile
from cerebras_jais.files import MIB, identity_of, read_text
from checkpoint_convert.convert import Report, run_conversion
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.gguf import Value, create_file, stored_tensors, value_bytes
from checkpoint_convert.formats.release_directory import CARD
from checkpoint_convert.formats.tensors import FileTensor
from checkpoint_convert.gate.files import front_matter
from checkpoint_convert.llamacpp.model import (
    TYPES,
    Encoding,
    Type,
    check_expressible,
    encodings,
    general,
    hyperparameters,
    values_of,
)
from checkpoint_convert.llamacpp.vocabulary import vocabulary_metadata
from checkpoint_convert.mapping.plan import Plan, Step, make_plan
from checkpoint_convert.open_model import Model, opening
from checkpoint_convert.release import read_tokenizer
from checkpoint_convert.streaming.digest import digest_of
from checkpoint_convert.streaming.layout import in_cerebras_layout
from checkpoint_convert.streaming.run import DEFAULT_WORKERS, Digests, FileRanges, Progress, Sink

_BLOCK = 1 << 20


def convert_to_gguf(
    source: Path | str,
    output: Path | str,
    *,
    type_: Type = "f16",
    config: Path | ConfigFile | Mapping[str, Any] | None = None,
    tokenizer: Path | str | None = None,
    chat: bool | None = None,
    allow_pickle: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
    descriptions: Descriptions | None = None,
) -> Report:
    """Convert a checkpoint or a release to a GGUF file for llama.cpp and the programs built on it.

    Args:
        source: a .mdl file or a release directory.
        output: the file to create; it must not exist.
        type_: element type of the matrices.
        config: of a .mdl file, as for `convert_to_hf`.
        tokenizer: directory of the tokenizer; None takes that of a release.
        chat: whether to write the family's chat template; None asks a checkpoint's run, and keeps a release's own.
        allow_pickle: whether weights in pickle files may be read; no code in them is run.
        dry_run: check everything, tied tensors included, and write nothing.
        progress: called as bytes are read.
        descriptions: a child that was started with the .mdl file; None starts one where it is needed.

    Raises:
        UserError: llama.cpp cannot compute what the model computes, or the input or output is at fault as in
            `convert_to_hf`; no output appears.
    """
    source, output = Path(source), Path(output)
    if type_ not in TYPES:
        raise ConversionError(f"{type_!r} is not a type of GGUF files; use {', '.join(TYPES)}")
    if not output.name:
        raise ConversionError(f"{output}: is a folder; give the name of the .gguf file to create")
    with opening(source, config=config, allow_pickle=allow_pickle, descriptions=descriptions) as model:
        plan = plan_for_gguf(model)
        folder = Path(tokenizer) if tokenizer is not None else source if source.is_dir() else None
        if folder is None:
            raise ConversionError(f"{source}: a checkpoint has no tokenizer, which llama.cpp needs; give --tokenizer")
        metadata, notes, files = _metadata(model, folder, output, type_, chat)
        encoding_of = encodings(model.config, type_)
        codings = tuple(encoding_of(header) for header in plan.headers)
        target = GgufTarget(output, metadata, codings)
        content = digest_of(b"".join(key.encode() + value_bytes(value) for key, value in metadata.items()))
        options = [type_, content, [[file.as_posix(), *identity_of(file)] for file in files]]
        report = run_conversion(model, plan, target, options, [*model.notes, *notes], dry_run, progress)
        bytes_of: Counter[str] = Counter()
        for coding in codings:
            bytes_of[coding.tensor.kind] += coding.tensor.nbytes
        kinds = tuple(kind for kind, _ in bytes_of.most_common())
        return replace(report, architecture=f"llama.cpp's {metadata['general.architecture']}", dtypes=kinds)


def plan_for_gguf(model: Model) -> Plan:
    """The plan of a model's tensors onto GGUF; ConversionError where llama.cpp cannot compute what it computes."""
    try:
        check_expressible(model.config)
        if model.side != "cerebras":  # names, shapes and types are checked under the names that the release has
            make_plan(model.config, model.side, model.tensors)
        tensors = in_cerebras_layout(model.config, model.side, model.tensors)
        return make_plan(model.config, "cerebras", tensors, onto="gguf")
    except ConversionError as error:
        raise ConversionError(f"{model.path}: {error}") from error


def _metadata(
    model: Model, folder: Path, output: Path, type_: Type, chat: bool | None
) -> tuple[dict[str, Value], list[str], list[Path]]:
    """The metadata of the file, notes, and the tokenizer's files."""
    writes_chat = (model.is_chat and model.side == "cerebras") if chat is None else chat
    tokenizer = read_tokenizer(folder, model.config, model.tokens, chat=writes_chat)
    vocabulary, notes = vocabulary_metadata(tokenizer, model.config, folder)
    from_release = model.path.is_dir()
    name = model.path.resolve().name if from_release else output.stem
    metadata = {
        **hyperparameters(model.config),
        **general(type_, name, _licence(model.path) if from_release else None),
        **vocabulary,
    }
    others = [note for note in tokenizer.notes if not (from_release and folder == model.path)]
    return metadata, [*others, *notes], list(tokenizer.files.values())


def _licence(release: Path) -> str | None:
    """The licence that the card of a release names."""
    card = release / CARD
    if not card.is_file():
        return None
    try:
        licence = front_matter(read_text(card, MIB, ConversionError), str(card)).get("license")
    except ConversionError:  # a card without front matter is nothing that llama.cpp minds
        return None
    return licence if isinstance(licence, str) and licence.isprintable() else None


# ---- the file -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GgufTarget:
    """A GGUF file in the making (an `outputs.Target`)."""

    output: Path
    metadata: Mapping[str, Value]
    codings: tuple[Encoding, ...]
    can_continue = True
    workers = DEFAULT_WORKERS

    @property
    def names(self) -> tuple[Path, ...]:
        return (self.output,)

    @property
    def nbytes(self) -> int:
        return sum(coding.tensor.nbytes for coding in self.codings)

    def create_files(self, directory: Path) -> None:
        create_file(directory / self.output.name, self.metadata, [coding.tensor for coding in self.codings])

    def differing(self, directory: Path, steps: Mapping[int, Step], digests: Mapping[int, Digests]) -> list[int]:
        """Numbers of the steps whose bytes in the file are not those that were written; what is recorded last."""
        stored = self._stored(directory)
        return [number for number, step in steps.items() if _digest(stored[step.outputs[0]]) != digests[number][-1]]

    @contextmanager
    def sink(self, directory: Path) -> Iterator[Sink]:
        with FileRanges(self._stored(directory)) as ranges:
            yield _Encoder(ranges, {coding.tensor.name: coding for coding in self.codings})
            ranges.flush()

    def complete(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        sync(directory)

    def _stored(self, directory: Path) -> dict[str, FileTensor]:
        return stored_tensors(directory / self.output.name, self.metadata, [coding.tensor for coding in self.codings])


class _Encoder:
    """The sink of a GGUF file: encodes rows, which come in order, and digests what it writes."""

    def __init__(self, ranges: FileRanges, codings: Mapping[str, Encoding]) -> None:
        self._ranges = ranges
        self._codings = codings
        self._digests = {name: blake3() for name in codings}

    def memory(self, name: str, at: tuple[int, ...], shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Ordinary memory: rows are encoded from it."""
        return np.empty(shape, dtype)

    def write(self, name: str, at: tuple[int, ...], values: np.ndarray) -> None:
        """Encode and write whole rows, given as the bits of their elements."""
        coding = self._codings[name]
        coded = coding.encode(values_of(coding, values))
        self._digests[name].update(coded.reshape(-1).data)
        self._ranges.write(name, (at[0], 0), coded)

    def finished(self, name: str) -> Digests:
        """The digest of the bytes written."""
        self._ranges.finished(name)
        return (self._digests[name].hexdigest(),)


def _digest(stored: FileTensor) -> str:
    total = blake3()
    rows = max(1, _BLOCK // stored.shape[1])
    for start in range(0, stored.shape[0], rows):
        total.update(stored.read_rows(start, min(start + rows, stored.shape[0])).reshape(-1).data)
    return total.hexdigest()
