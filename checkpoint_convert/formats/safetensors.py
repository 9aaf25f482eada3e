"""Safetensors files: the header is read and checked first; new files get their full size before tensors are written.

Format: the length of the header (8 bytes, little-endian), the header (JSON: name -> dtype, shape, [begin, end) relative
to the end of the header), the data without gaps or overlaps. A sharded model also has `model.safetensors.index.json`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cerebras_jais.atomic import sync
from cerebras_jais.checkpoint.io import DISK_BLOCK
from cerebras_jais.files import open_regular
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.json_files import parse_object, read_json, write_json
from checkpoint_convert.formats.tensors import FileTensor, Shape, TensorHeader, is_array_shape, np_dtype

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_LARGEST_HEADER = 100_000_000  # bytes; the limit of the format's own library

_DTYPE_OF_CODE = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "BF16": "bfloat16",
}
_CODES = {dtype: code for code, dtype in _DTYPE_OF_CODE.items()}


def open_model(directory: str | os.PathLike[str]) -> dict[str, FileTensor]:
    """The tensors of a release directory by name, from one file or from shards; only headers are read.

    Raises:
        ConversionError: no safetensors in the directory, a damaged file, or an index that does not fit its shards.
    """
    return open_weights(Path(directory), INDEX, SINGLE, read_header)


def open_weights(
    directory: Path, index: str, single: str, read_file: Callable[[Path], dict[str, FileTensor]]
) -> dict[str, FileTensor]:
    """The tensors of a directory by name: of the shards that its index names, or of its one file.

    Raises:
        ConversionError: neither is in the directory, or one of them is damaged.
    """
    if (directory / index).is_file():
        return open_shards(directory / index, read_file)
    if (directory / single).is_file():
        return read_file(directory / single)
    raise ConversionError(f"{directory}: has neither {index} nor {single}; give the directory that holds the weights")


def open_shards(index: Path, read_file: Callable[[Path], dict[str, FileTensor]]) -> dict[str, FileTensor]:
    """The tensors of all files that an index names, each file read by `read_file`.

    Raises:
        ConversionError: the index is damaged, names a file outside its directory, or does not fit the files.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise ConversionError(f"{index}: has no weight_map of tensor names to file names; download it again")
    listed: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        listed.setdefault(shard, set()).add(name)
    tensors: dict[str, FileTensor] = {}
    for shard, names in listed.items():
        if Path(shard).name != shard or shard in ("", ".", ".."):
            raise ConversionError(
                f"{index}: names the file {shard!r}, which is not a plain name in the same directory; download it again"
            )
        found = read_file(index.parent / shard)
        if found.keys() != names:
            name = min(found.keys() ^ names)
            where = f"is not in {shard}" if name in names else f"is in {shard}, where the index does not put it"
            raise ConversionError(
                f"{index}: tensor {name!r} {where}; the files do not belong together, download them again"
            )
        tensors |= found
    return {name: tensors[name] for name in weight_map}


def read_header(path: Path) -> dict[str, FileTensor]:
    """The tensors of one file by name; the header is checked against the size of the file.

    Raises:
        ConversionError: the file is missing, truncated or damaged.
    """
    try:
        with open_regular(path, ConversionError) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise ConversionError(f"{path}: is not a complete safetensors file; download it again")
            header = parse_object(path, file.read(length))
    except (OSError, ValueError) as error:  # ValueError: not a possible file name
        reason = getattr(error, "strerror", None) or error
        raise ConversionError(f"{str(path)!r}: cannot be read: {reason}") from error
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ConversionError(f"{path}: its __metadata__ is not a mapping of texts; download the file again")
    tensors: dict[str, FileTensor] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, about in header.items():
        dtype, shape, begin, end = _entry(path, name, about)
        if end - begin != math.prod(shape) * np_dtype(dtype).itemsize:
            raise ConversionError(
                f"{path}: tensor {name!r} has {end - begin} bytes, which is not the size of its shape {list(shape)}"
            )
        tensors[name] = FileTensor(name, shape, dtype, path, 8 + length + begin)
        ranges.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(ranges):
        if begin != at:
            raise ConversionError(
                f"{path}: tensor {name!r} overlaps another or leaves a gap; the file is damaged, download it again"
            )
        at = end
    if 8 + length + at != size:
        raise ConversionError(
            f"{path}: has {size} bytes but its header describes {8 + length + at}; it is truncated, download it again"
        )
    return tensors


def _entry(path: Path, name: str, about: Any) -> tuple[str, Shape, int, int]:
    try:
        code, shape, (begin, end) = about["dtype"], about["shape"], about["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        whole, code = False, None
    if not whole or not isinstance(code, str) or end < begin:
        raise ConversionError(f"{path}: the header entry of tensor {name!r} is damaged; download the file again")
    if code not in _DTYPE_OF_CODE:
        raise ConversionError(f"{path}: tensor {name!r} has the element type {code}, which is not supported")
    if not is_array_shape(tuple(shape), _DTYPE_OF_CODE[code]):
        raise ConversionError(f"{path}: the header entry of tensor {name!r} is damaged; download the file again")
    return _DTYPE_OF_CODE[code], tuple(shape), begin, end


# ---- writing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """One file of a model: its name and its tensors, those of whole disk blocks first, then by falling element size.

    Each tensor therefore begins at a multiple of its element size, and every large one at a disk block, as O_DIRECT
    needs.
    """

    file: str
    tensors: tuple[TensorHeader, ...]


def plan_shards(tensors: Iterable[TensorHeader], max_shard_size: int) -> tuple[Shard, ...]:
    """Distribute tensors, in order, over files of at most `max_shard_size` bytes (a larger tensor has its own file)."""
    groups: list[list[TensorHeader]] = []
    left = -1
    for tensor in tensors:
        if tensor.nbytes > left:
            groups.append([])
            left = max_shard_size
        groups[-1].append(tensor)
        left -= tensor.nbytes
    return tuple(
        Shard(
            f"model-{number:05d}-of-{len(groups):05d}.safetensors",
            tuple(sorted(group, key=lambda tensor: (tensor.nbytes % DISK_BLOCK > 0, -np_dtype(tensor.dtype).itemsize))),
        )
        for number, group in enumerate(groups, start=1)
    )


def create_shards(directory: Path, shards: Sequence[Shard]) -> None:
    """Create the shards with their headers and full size, without data, and their index, in an existing directory.

    Args:
        directory: where; no file of these names may exist in it.
        shards: from `plan_shards`.
    """
    for shard in shards:
        with open(directory / shard.file, "xb") as file:
            file.write(_header(shard.tensors))
            file.truncate(file.tell() + sum(tensor.nbytes for tensor in shard.tensors))
        sync(directory / shard.file)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for shard in shards for tensor in shard.tensors)},
        "weight_map": {tensor.name: shard.file for shard in shards for tensor in shard.tensors},
    }
    write_json(directory / INDEX, index)


def file_tensors(directory: Path, shards: Sequence[Shard]) -> dict[str, FileTensor]:
    """The tensors of shards in a directory, whether their data is written or not."""
    found: dict[str, FileTensor] = {}
    for shard in shards:
        at = len(_header(shard.tensors))
        for tensor in shard.tensors:
            found[tensor.name] = FileTensor(tensor.name, tensor.shape, tensor.dtype, directory / shard.file, at)
            at += tensor.nbytes
    return found


def _header(tensors: Sequence[TensorHeader]) -> bytes:
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
    text += b" " * (-(len(text) + 8) % DISK_BLOCK)  # so that the data begins at a disk block
    return len(text).to_bytes(8, "little") + text
