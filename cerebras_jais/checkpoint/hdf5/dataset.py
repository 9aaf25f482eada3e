"""A dataset of a file: its description by the child, validated, and its rows, read without the HDF5 library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cerebras_jais.checkpoint.hdf5 import chunks as chunked
from cerebras_jais.checkpoint.hdf5.chunks import ChunkCache, ChunkTable, grid_of, packing_of
from cerebras_jais.checkpoint.hdf5.isolate import Description
from cerebras_jais.checkpoint.io import read_at

_MAX_RANK = 32
_CHUNK_BYTES = 16  # of each chunk in a table: offset (8), size (4), filter mask (4)
# A chunk's entry in any index of HDF5 has at least its offset; otherwise a small file could claim any number of them.
_LEAST_PER_CHUNK = 8
_PROBLEMS = {
    "missing": "is missing; the file is incomplete",
    "link": "is a soft or external link, which is not followed; store the data in the file",
    "empty": "has no data; the file is incomplete",
}


@dataclass(frozen=True)
class DatasetHeader:
    """What is known of a dataset before its data is read."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype | None
    """As on the disk; None when it is of a type that is not read."""
    type_name: str
    offset: int | None
    """Where the data begins in the file, for a contiguous dataset that is not empty."""
    chunks: tuple[int, ...] | None
    """The shape of a chunk, for a dataset that has chunks."""
    table: ChunkTable | None
    """For a dataset that has chunks and is not empty."""


def headers_of(description: Description) -> dict[str, DatasetHeader | ValueError]:
    """The headers of the datasets of a file; ValueError, with the reason, for one that cannot be read."""
    found: dict[str, DatasetHeader | ValueError] = {}
    at = 0
    for name, facts in description.datasets.items():
        size = facts.get("chunk_count", 0) * _CHUNK_BYTES
        try:
            found[name] = _header_of(name, facts, description.tables[at : at + size], description.identity[0])
        except ValueError as error:
            found[name] = error
        at += size
    return found


def _header_of(name: str, facts: Mapping[str, Any], numbers: bytes, file_size: int) -> DatasetHeader:
    if "error" in facts:
        raise ValueError(f"cannot be read: {facts['error']}")
    if "problem" in facts:
        raise ValueError(_PROBLEMS[facts["problem"]])
    shape, itemsize, layout = tuple(facts["shape"]), facts["itemsize"], facts["layout"]
    if layout == "virtual" or facts["elsewhere"]:
        raise ValueError("has its data in another file, which is not opened; store the data in the file")
    if len(shape) > _MAX_RANK:
        raise ValueError(f"has more than {_MAX_RANK} dimensions")
    packing = packing_of(facts["filters"], itemsize)
    if packing is None:
        codes = " and ".join(str(code) for code, _ in facts["filters"])
        raise ValueError(f"is packed with the unknown filter {codes}")
    chunks = tuple(facts["chunks"]) if layout == "chunked" else None
    needed = math.prod(shape) * itemsize
    unit = math.prod(chunks) * itemsize if chunks and needed else 0
    count = math.prod(grid_of(shape, chunks)) if unit and chunks else 0
    if max(needed, unit) > packing.expansion * file_size or count * _LEAST_PER_CHUNK > file_size:
        raise ValueError(f"claims the shape {shape}, more than {file_size} bytes can hold")
    offset = facts["offset"] if layout == "contiguous" and needed else None
    if layout == "contiguous" and needed and (offset is None or offset + needed > file_size):
        raise ValueError("has data that was never written; the file is incomplete")
    if layout not in ("contiguous", "chunked") and needed:
        raise ValueError(f"has the layout '{layout}', which is not read")
    table = None
    if chunks and count:
        if facts["chunk_problem"]:
            raise ValueError(facts["chunk_problem"])
        columns = table_columns(numbers, count, file_size)
        table = ChunkTable(chunks, grid_of(shape, chunks), packing, *columns)
    dtype = np.dtype(facts["type"]) if facts["type"] else None
    little = dtype if dtype is None or dtype.byteorder == ">" else dtype.newbyteorder("<")
    return DatasetHeader(name, shape, little, facts["type_name"], offset, chunks, table)


def table_columns(numbers: bytes, count: int, file_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The offsets, sizes and filter masks of `count` chunks; ValueError when they are not within `file_size` bytes."""
    if len(numbers) != count * _CHUNK_BYTES:
        raise ValueError(f"has {len(numbers) // _CHUNK_BYTES} of {count} chunks; the file is incomplete")
    offsets = np.frombuffer(numbers, "<i8", count)
    sizes, masks = np.frombuffer(numbers, "<u4", 2 * count, 8 * count).reshape(2, count)
    if ((offsets < 0) | (sizes > file_size) | (offsets > file_size - sizes.astype(np.int64))).any():
        raise ValueError("has chunks outside the file; the file is damaged")
    return offsets, sizes, masks


def read_rows(
    descriptor: int,
    header: DatasetHeader,
    out: np.ndarray,
    start: int,
    cache: ChunkCache | None = None,
    key: Any = None,
) -> None:
    """Fill the contiguous array `out`, of the header's dtype, with the rows from `start` on (all of a scalar).

    `cache` and `key` are those of `chunks.read_rows`. Raises ValueError, with the reason, for data that is damaged.
    """
    if out.size == 0:
        return
    try:
        if header.table is not None:
            chunked.read_rows(descriptor, header.table, out, start, cache, key)
            return
        assert header.offset is not None  # its data is not empty
        row_bytes = out.nbytes // len(out) if out.ndim else 0
        read_at(descriptor, out.reshape(-1).view(np.uint8).data, header.offset + start * row_bytes)
    except EOFError as error:
        raise ValueError("the file ends inside it") from error
