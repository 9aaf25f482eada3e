"""The two kinds of output, a release and a checkpoint: how their files are created, filled, completed and renamed.

The files are created in the hidden directory of the conversion (journal.py), under their final names.
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
from cerebras_jais.checkpoint import LazyTensor, create_empty_checkpoint
from cerebras_jais.checkpoint.packed_writer import PackedTensorWriter, filling
from cerebras_jais.model.tensors import state_key
from cerebras_jais.modelzoo_version import VERSION, class_name
from checkpoint_convert.configs.convert import SpecialTokens
from checkpoint_convert.configs.trainer_yaml import yaml_text
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.json_files import read_json, write_json
from checkpoint_convert.formats.release_directory import MANIFEST
from checkpoint_convert.formats.safetensors import Shard, create_shards, file_tensors
from checkpoint_convert.formats.tensors import FileTensor
from checkpoint_convert.mapping.plan import Plan, Step
from checkpoint_convert.release import Companions, write_companions
from checkpoint_convert.streaming.run import DEFAULT_WORKERS, Digests, FileRanges, Sink, run_steps
from checkpoint_convert.verify.manifest import list_files, manifest_path

_OFFSETS = "offsets.json"  # beside a .mdl file in the making: where the data of its tensors belongs


class Target(Protocol):
    """An output that is being written."""

    @property
    def names(self) -> tuple[Path, ...]:
        """The final paths, in the order in which they appear; the last one makes the output complete."""
        ...

    @property
    def can_continue(self) -> bool:
        """Whether an interrupted conversion can be resumed."""
        ...

    @property
    def workers(self) -> int:
        """How many threads may write at once."""
        ...

    def create_files(self, directory: Path) -> None:
        """Create the files at full size, without their tensors, in an empty directory."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in the files."""
        ...

    def differing(self, directory: Path, steps: Mapping[int, Step], digests: Mapping[int, Digests]) -> list[int]:
        """Numbers of the steps whose tensors, read back from the files, have not the digests recorded for them."""
        ...

    def sink(self, directory: Path) -> AbstractContextManager[Sink]:
        """A sink that writes to the files; the end of the block flushes them to the disk."""
        ...

    def complete(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        """Write what belongs beside the weights, over what an interrupted run wrote."""
        ...


@dataclass(frozen=True)
class ReleaseTarget:
    """A release directory: safetensors shards and the files beside them."""

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

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for shard in self.shards for tensor in shard.tensors)

    def differing(self, directory: Path, steps: Mapping[int, Step], digests: Mapping[int, Digests]) -> list[int]:
        return _differing(file_tensors(directory / self.output.name, self.shards), steps, digests)

    @contextmanager
    def sink(self, directory: Path) -> Iterator[Sink]:
        with FileRanges(file_tensors(directory / self.output.name, self.shards)) as ranges:
            yield ranges
            ranges.flush()

    def complete(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        made = directory / self.output.name
        write_companions(made, self.companions)
        write_json(made / MANIFEST, {**manifest, **list_files(made, [shard.file for shard in self.shards])})
        sync(made)


@dataclass(frozen=True)
class CheckpointTarget:
    """A .mdl file, with the YAML that continues its training and its manifest beside it."""

    output: Path
    plan: Plan
    params: Mapping[str, Any]
    notes: tuple[str, ...]
    compression: str | None
    tokens: SpecialTokens | None
    """Ids of special tokens in the release, stored for a later conversion to a release."""

    @property
    def names(self) -> tuple[Path, ...]:
        return (self.yaml, manifest_path(self.output), self.output)

    @property
    def yaml(self) -> Path:
        return self.output.with_suffix(".yaml")

    @property
    def can_continue(self) -> bool:
        """False for a compressed file: HDF5 completes its structure only when it closes the file."""
        return self.compression is None

    @property
    def workers(self) -> int:
        """One thread writes compressed tensors, so that their order in the file is fixed; a pool compresses for it."""
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
            "model": OrderedDict((state_key(name), lazy[aliases.get(name, name)]) for name in self.plan.names),
            "__metadata__": [record],
        }
        path = directory / self.output.name
        offsets = create_empty_checkpoint(path, state, compression=self.compression, complete=True)  # type: ignore[arg-type]
        write_json(directory / _OFFSETS, offsets)

    @property
    def nbytes(self) -> int:
        return self.plan.write_bytes

    def differing(self, directory: Path, steps: Mapping[int, Step], digests: Mapping[int, Digests]) -> list[int]:
        return _differing(self._tensors(directory), steps, digests)

    def _tensors(self, directory: Path) -> Mapping[str, FileTensor]:
        path = directory / self.output.name
        offsets = read_json(directory / _OFFSETS)
        return {
            header.name: FileTensor(header.name, header.shape, header.dtype, path, offsets[_flat_key(header.name)])
            for header in self.plan.headers
        }

    @contextmanager
    def sink(self, directory: Path) -> Iterator[Sink]:
        path = directory / self.output.name
        if self.compression is None:
            with FileRanges(self._tensors(directory)) as ranges:
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


def _flat_key(name: str) -> str:
    """The key of a tensor in the checkpoint, below the entry `model` of the state."""
    return f"model.{state_key(name)}"


class _Packer:
    """The sink of a checkpoint with compressed tensors."""

    def __init__(self, filler: PackedTensorWriter) -> None:
        self._filler = filler

    def memory(self, name: str, at: tuple[int, ...], shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Ordinary memory: pieces are compressed from it."""
        return np.empty(shape, dtype)

    def write(self, name: str, at: tuple[int, ...], values: np.ndarray) -> None:
        """Compress a piece, given as the bits of its elements."""
        self._filler.write(_flat_key(name), at, values)

    def finished(self, name: str) -> Digests:
        """Do nothing: compressed tensors are flushed with the file."""
        return ()


def _differing(
    written: Mapping[str, FileTensor], steps: Mapping[int, Step], digests: Mapping[int, Digests]
) -> list[int]:
    """Numbers of the steps whose tensors, digested in the Cerebras layout again, are not what was recorded."""
    found: list[int] = []

    def check(number: int, again: Digests) -> None:
        if again != digests[number]:
            found.append(number)

    checks = {
        number: Step(step.rule, step.onto, "cerebras", tuple(written[name] for name in step.outputs), step.dtype)
        for number, step in steps.items()
    }
    run_steps(checks, None, check)
    return found


def check_absent(path: Path) -> None:
    """Raise ConversionError when the path exists."""
    if os.path.lexists(path):
        raise ConversionError(f"{path}: already exists; choose another name or delete it")


def publish(target: Target, directory: Path) -> None:
    """Move the files to their final paths, except those that an interrupted run moved before."""
    for path in target.names:
        made = directory / path.name
        if made.exists() or not path.exists():
            check_absent(path)
            os.rename(made, path)
    sync(target.names[-1].absolute().parent)
