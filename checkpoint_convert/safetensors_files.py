"""Safetensors files: headers read and checked first, tensors one at a time, files laid out before they are written.

Format: 8 bytes little-endian length of the header, the header (JSON: name -> dtype, shape, [begin, end) relative to the
end of the header), the data without holes or overlaps. A sharded model has `model.safetensors.index.json` besides.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from checkpoint_convert.errors import ConversionError
from checkpoint_convert.operations import Shape

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_LARGEST_HEADER = 100_000_000  # bytes; the limit of the format's own library

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype("<u1"),
    "I8": np.dtype("<i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_CODES = {dtype.name: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True, eq=False)
class SafetensorsTensor:
    """A tensor in a safetensors file, read when asked for."""

    name: str
    shape: Shape
    dtype: str
    """A name such as "float32" or "bfloat16"."""
    path: Path
    offset: int
    """Byte of the file at which the data begins."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np_dtype(self.dtype).itemsize

    def read(self) -> np.ndarray:
        """The whole tensor as a new array; bfloat16 as ml_dtypes.bfloat16."""
        return self._read(self.offset, self.shape)

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop (exclusive) of the first axis."""
        row_bytes = self.nbytes // self.shape[0] if self.shape[0] else 0
        return self._read(self.offset + start * row_bytes, (stop - start, *self.shape[1:]))

    def _read(self, offset: int, shape: Shape) -> np.ndarray:
        values = np.empty(shape, np_dtype(self.dtype))
        left = values.reshape(-1).view(np.uint8).data
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(offset)
                while left:
                    count = file.readinto(left)
                    if not count:
                        raise ConversionError(
                            f"{self.path}: ends inside tensor {self.name!r}; it changed while it was read"
                        )
                    left = left[count:]
        except OSError as error:
            raise ConversionError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        return values


def np_dtype(name: str) -> np.dtype:
    """The numpy dtype of a name such as "bfloat16"."""
    return DTYPES[_CODES[name]]


def open_model(directory: str | os.PathLike) -> dict[str, SafetensorsTensor]:
    """The tensors of a release directory by name, from one file or from shards; only headers are read.

    Raises:
        ConversionError: no safetensors in the directory, a damaged file, or an index that does not fit its shards.
    """
    directory = Path(directory)
    index, single = directory / INDEX, directory / SINGLE
    if index.is_file():
        return _open_shards(index)
    if single.is_file():
        return read_header(single)
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")):
        raise ConversionError(
            f"{directory}: has its weights in pickle files, which can run code when read; save it as safetensors first"
        )
    raise ConversionError(f"{directory}: has neither {INDEX} nor {SINGLE}")


def _open_shards(index: Path) -> dict[str, SafetensorsTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise ConversionError(f"{index}: has no weight_map of tensor names to file names")
    tensors: dict[str, SafetensorsTensor] = {}
    for shard in dict.fromkeys(weight_map.values()):
        if Path(shard).name != shard or shard in ("", ".", ".."):
            raise ConversionError(f"{index}: names the file {shard!r}, which is not a plain name in the same directory")
        found = read_header(index.parent / shard)
        listed = {name for name, file in weight_map.items() if file == shard}
        if found.keys() != listed:
            name = sorted(found.keys() ^ listed)[0]
            where = f"is not in {shard}" if name in listed else f"in {shard} is not where the index puts it"
            raise ConversionError(f"{index}: tensor {name!r} {where}; the files do not belong together")
        tensors |= found
    return {name: tensors[name] for name in weight_map}


def read_header(path: Path) -> dict[str, SafetensorsTensor]:
    """The tensors of one file by name; every claim of the header is checked against the size of the file.

    Raises:
        ConversionError: the file is missing, truncated or damaged.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # asked before opening: opening a pipe waits for its other end
            raise ConversionError(f"{path}: is not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise ConversionError(f"{path}: is not a safetensors file, or only a part of one")
            header = _parsed(path, file.read(length))
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise ConversionError(f"{str(path)!r}: cannot be read: {reason}") from error
    header.pop("__metadata__", None)
    tensors: dict[str, SafetensorsTensor] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, about in header.items():
        dtype, shape, begin, end = _entry(path, name, about)
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ConversionError(
                f"{path}: tensor {name!r} has {end - begin} bytes, which is not its shape {list(shape)}"
            )
        tensors[name] = SafetensorsTensor(name, shape, dtype.name, path, 8 + length + begin)
        ranges.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(ranges):
        if begin != at:
            raise ConversionError(f"{path}: tensor {name!r} overlaps another or leaves a hole; the file is damaged")
        at = end
    if 8 + length + at != size:
        raise ConversionError(f"{path}: has {size} bytes but its header describes {8 + length + at}; it is truncated")
    return tensors


def _entry(path: Path, name: str, about: Any) -> tuple[np.dtype, Shape, int, int]:
    try:
        code, shape, (begin, end) = about["dtype"], about["shape"], about["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        whole, code = False, None
    if not whole or not isinstance(code, str) or len(shape) > 32 or end < begin:
        raise ConversionError(f"{path}: the entry of tensor {name!r} is damaged")
    if code not in DTYPES:
        raise ConversionError(f"{path}: tensor {name!r} has the element type {code}, which is not converted")
    return DTYPES[code], tuple(shape), begin, end


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ConversionError when it is not one or names a key twice."""
    try:
        return _parsed(path, path.read_bytes())
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read: {error.strerror or error}") from error


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ConversionError(f"{path}: its JSON names a key twice; it is damaged")
        return found

    try:
        value = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: its JSON cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{path}: its JSON is not an object")
    return value


# ---- writing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor with its place still to find; `read` gives its values when their turn comes."""

    name: str
    shape: Shape
    dtype: str
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np_dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Shard:
    """One file of a model: its name and its tensors, widest elements first so that each is aligned."""

    file: str
    tensors: tuple[TensorToWrite, ...]


def plan_shards(tensors: Iterable[TensorToWrite], max_shard_size: int) -> tuple[Shard, ...]:
    """Distribute tensors, in order, over files of at most `max_shard_size` bytes (a larger tensor has its own file)."""
    groups: list[list[TensorToWrite]] = []
    room = -1
    for tensor in tensors:
        if tensor.nbytes > room:
            groups.append([])
            room = max_shard_size
        groups[-1].append(tensor)
        room -= tensor.nbytes
    return tuple(
        Shard(
            f"model-{number:05d}-of-{len(groups):05d}.safetensors",
            tuple(sorted(group, key=lambda tensor: -np_dtype(tensor.dtype).itemsize)),
        )
        for number, group in enumerate(groups, start=1)
    )


def write_model(directory: Path, shards: Sequence[Shard], progress: Callable[[int], object] = lambda _: None) -> None:
    """Write the shards and their index into an existing directory, each file flushed to the disk.

    Args:
        directory: where; nothing of these names may be in it.
        shards: from `plan_shards`.
        progress: called with the bytes of each tensor once it is written.
    """
    for shard in shards:
        with open(directory / shard.file, "xb") as file:
            file.write(_header(shard.tensors))
            for tensor in shard.tensors:
                values = tensor.read()
                assert values.shape == tensor.shape and values.dtype == np_dtype(tensor.dtype), tensor.name
                file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
                progress(tensor.nbytes)
            file.flush()
            os.fsync(file.fileno())
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)},
        "weight_map": {tensor.name: shard.file for shard in shards for tensor in shard.tensors},
    }
    write_json(directory / INDEX, index)


def _header(tensors: Sequence[TensorToWrite]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, readable, flushed to the disk."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a new text file, flushed to the disk."""
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
