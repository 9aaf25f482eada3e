"""The two kinds of output of a conversion: how their files are laid out, filled, completed and given their names.

Both are made in a directory of the conversion's own (journal.py), under the names that they will have.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cerebras_jais.atomic import sync, write_text
from cerebras_jais.checkpoint import LazyTensor, create_empty_checkpoint, open_checkpoint
from cerebras_jais.checkpoint.packed_writer import PackedTensorWriter, filling
from cerebras_jais.modelzoo_version import VERSION, class_name
from checkpoint_convert.configs.convert import SpecialTokens
from checkpoint_convert.configs.trainer_yaml import yaml_text
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.json_files import write_json
from checkpoint_convert.formats.release_directory import MANIFEST
from checkpoint_convert.formats.safetensors import Shard, create_shards, file_tensors
from checkpoint_convert.formats.tensors import FileTensor
from checkpoint_convert.mapping.plan import Plan
from checkpoint_convert.release import Companions, write_companions
from checkpoint_convert.streaming.run import DEFAULT_WORKERS, FileRanges, Sink
from checkpoint_convert.verify.manifest import list_files, manifest_path


class Target(Protocol):
    """An output in the making."""

    @property
    def names(self) -> tuple[Path, ...]:
        """What appears, in the order in which it appears; with the last, all is there."""
        ...

    @property
    def can_continue(self) -> bool:
        """Whether the files can be gone on with after a kill."""
        ...

    @property
    def workers(self) -> int:
        """How many may write at once."""
        ...

    def create_files(self, directory: Path) -> None:
        """Make the files, still to be filled, in an empty directory."""
        ...

    def file_tensors(self, directory: Path) -> Mapping[str, FileTensor]:
        """The tensors in the files, to read them back."""
        ...

    def sink(self, directory: Path) -> AbstractContextManager[Sink]:
        """The files as a sink; at the end of the block they are flushed to the disk."""
        ...

    def complete(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        """Write what stands beside the weights; what is there from an earlier try is written again."""
        ...


@dataclass(frozen=True)
class ReleaseTarget:
    """A directory of safetensors shards and what a release has besides."""

    output: Path
    shards: tuple[Shard, ...]
    companions: Companions
    can_continue = True
    workers = DEFAULT_WORKERS

    @property
    def names(self) -> tuple[Path, ...]:
        return (self.output,)

    def create_files(self, directory: Path) -> None:
        made = directory / self.output.name
        made.mkdir()
        create_shards(made, self.shards)

    def file_tensors(self, directory: Path) -> Mapping[str, FileTensor]:
        return file_tensors(directory / self.output.name, self.shards)

    @contextmanager
    def sink(self, directory: Path) -> Iterator[Sink]:
        with FileRanges(self.file_tensors(directory)) as ranges:
            yield ranges
            ranges.flush()

    def complete(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        made = directory / self.output.name
        write_companions(made, self.companions)
        write_json(made / MANIFEST, {**manifest, **list_files(made, [shard.file for shard in self.shards])})
        sync(made)


@dataclass(frozen=True)
class CheckpointTarget:
    """A .mdl file, with the YAML that trains it on and its manifest beside it."""

    output: Path
    plan: Plan
    params: Mapping[str, Any]
    notes: tuple[str, ...]
    compression: str | None
    tokens: SpecialTokens | None
    """Ids that the release says, kept for whoever releases the model again."""

    @property
    def names(self) -> tuple[Path, ...]:
        return (self.yaml, manifest_path(self.output), self.output)

    @property
    def yaml(self) -> Path:
        return self.output.with_suffix(".yaml")

    @property
    def can_continue(self) -> bool:
        """The structure of a packed file is HDF5's to write until it is closed."""
        return self.compression is None

    @property
    def workers(self) -> int:
        """One writes packed tensors, so that they lie in the same order each time; others pack for it."""
        return DEFAULT_WORKERS if self.compression is None else 1

    def create_files(self, directory: Path) -> None:
        lazy = {header.name: LazyTensor(header.shape, header.dtype) for header in self.plan.headers}
        aliases = self.plan.aliases  # the same object under two names is stored once and linked
        record = {
            "version": VERSION,
            "model_name": class_name(self.plan.config.name),
            "params": self.params,
        }
        if self.tokens is not None:
            record["special_tokens"] = self.tokens.keys()
        state = {
            "model": OrderedDict((f"model.{name}", lazy[aliases.get(name, name)]) for name in self.plan.names),
            "__metadata__": [record],
        }
        create_empty_checkpoint(directory / self.output.name, state, compression=self.compression, complete=True)  # type: ignore[arg-type]

    def file_tensors(self, directory: Path) -> Mapping[str, FileTensor]:
        path = directory / self.output.name
        found: dict[str, FileTensor] = {}
        with open_checkpoint(path) as opened:
            for header in self.plan.headers:
                offset = opened.tensors[f"model.model.{header.name}"].file_offset
                assert offset is not None, header.name
                found[header.name] = FileTensor(header.name, header.shape, header.dtype, path, offset)
        return found

    @contextmanager
    def sink(self, directory: Path) -> Iterator[Sink]:
        path = directory / self.output.name
        if self.compression is None:
            with FileRanges(self.file_tensors(directory)) as ranges:
                yield ranges
                ranges.flush()
            return
        with ThreadPoolExecutor(DEFAULT_WORKERS) as pool, filling(path, packing=pool.map) as filler:
            yield _Packer(filler)
        sync(path)

    def complete(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        write_json(directory / manifest_path(self.output).name, manifest)
        write_text(directory / self.yaml.name, yaml_text(self.params, list(self.notes)))
        sync(directory)


class _Packer:
    """The sink of a checkpoint whose tensors are packed."""

    def __init__(self, filler: PackedTensorWriter) -> None:
        self._filler = filler

    def memory(self, name: str, at: tuple[int, ...], shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Any memory: pieces are packed out of it."""
        return np.empty(shape, dtype)

    def write(self, name: str, at: tuple[int, ...], values: np.ndarray) -> None:
        """Pack a piece, which comes as the bits of its elements."""
        self._filler.write(f"model.model.{name}", at, values)

    def finished(self, name: str) -> None:
        """Nothing to do: packed tensors are flushed with the file."""


def check_absent(path: Path) -> None:
    """Raise ConversionError when there is something of that name."""
    if os.path.lexists(path):
        raise ConversionError(f"{path}: exists already; choose another name or delete it")


def publish(target: Target, directory: Path) -> None:
    """Give what was made its final names; what had its name before a kill keeps it."""
    for path in target.names:
        made = directory / path.name
        if made.exists() or not path.exists():
            check_absent(path)
            os.rename(made, path)
    sync(target.names[-1].absolute().parent)
