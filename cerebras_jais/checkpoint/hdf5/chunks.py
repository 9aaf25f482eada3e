"""The chunks of a dataset: where each is in the file, and rows assembled from them, without the HDF5 library.

A chunk is unpacked in this module and in `lz4`, which leave Python's global lock free for the long parts, so several
threads can read one dataset at once. Filters: HDF5 File Format Specification, "Data Storage - Filter Pipeline" (deflate
is 1, shuffle 2, Fletcher's checksum 3), and the HDF Group's registry of filters for LZ4.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cerebras_jais.checkpoint.hdf5.lz4 import LARGEST_EXPANSION, LZ4_FILTER, unpack_chunk
from cerebras_jais.checkpoint.io import read_at

_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3
# Bytes that one byte of the file can unpack to at most: a larger shape is false.
_EXPANSION = {_DEFLATE: 1032, LZ4_FILTER: LARGEST_EXPANSION, _SHUFFLE: 1, _FLETCHER32: 1}
_CHECKSUM_BYTES = 4
_CACHE_BYTES = 32 << 20


@dataclass(frozen=True)
class Packing:
    """How the chunks of a dataset are packed: shuffled or not, LZ4, deflate or neither, then a checksum or none."""

    filters: tuple[int, ...]
    """Codes in the order of writing."""

    @property
    def expansion(self) -> int:
        return math.prod(_EXPANSION[code] for code in self.filters)


def packing_of(filters: Sequence[Sequence[Any]], itemsize: int) -> Packing | None:
    """Return the packing of a list of [code, parameters]; None for one that is not read here."""
    codes = tuple(code for code, _ in filters)
    shuffled = codes[:1] == (_SHUFFLE,)
    packers = codes[1:] if shuffled else codes
    packers = packers[:-1] if packers[-1:] == (_FLETCHER32,) else packers
    known = len(packers) <= 1 and all(code in (LZ4_FILTER, _DEFLATE) for code in packers)
    if not known or (shuffled and list(filters[0][1]) != [itemsize]):
        return None
    return Packing(codes)


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """Where each chunk is, in row-major order of the grid that they form; all arrays have one axis."""

    chunks: tuple[int, ...]
    """The shape of a chunk."""
    grid: tuple[int, ...]
    """Chunks along each axis."""
    packing: Packing
    offsets: np.ndarray
    sizes: np.ndarray
    masks: np.ndarray
    """Bit i is set in a chunk that the filter i was not applied to."""


def grid_of(shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[int, ...]:
    """Return the number of chunks along each axis."""
    return tuple(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))


class ChunkCache:
    """Chunks that were unpacked last, for readers that want a part of each: at most 32 MiB, or a single one."""

    def __init__(self) -> None:
        self._chunks: OrderedDict[Any, np.ndarray] = OrderedDict()
        self._bytes = 0

    def get(self, key: Any) -> np.ndarray | None:
        """Return a chunk that was kept, else None."""
        if key in self._chunks:
            self._chunks.move_to_end(key)
        return self._chunks.get(key)

    def keep(self, key: Any, chunk: np.ndarray) -> None:
        """Keep a chunk in place of those that were wanted longest ago."""
        self._chunks[key] = chunk
        self._bytes += chunk.nbytes
        while self._bytes > _CACHE_BYTES and len(self._chunks) > 1:
            self._bytes -= self._chunks.popitem(last=False)[1].nbytes


def read_rows(
    descriptor: int, table: ChunkTable, out: np.ndarray, start: int, cache: ChunkCache | None = None, key: Any = None
) -> None:
    """Fill `out` with the rows of a dataset from `start` on, reading and unpacking each chunk in them once.

    Args:
        descriptor: the file.
        table: of the dataset.
        out: [rows, ...] as the dataset, of its dtype.
        start: the first row.
        cache: where chunks are looked for first, and kept.
        key: of the dataset in the cache.

    Raises ValueError for a chunk that cannot be unpacked to what it has to be, EOFError when the file ends early; needs
    the memory of two chunks beside `out`.
    """
    chunks = table.chunks
    if out.ndim > 1 and chunks == (
        1,
        *out.shape[1:],
    ):  # as the Model Zoo packs data; nothing is left of a chunk that could be kept
        for number, row in enumerate(out, start):
            if table.packing.filters:
                row[...] = _read_chunk(descriptor, table, number, out.dtype)[0]
            elif table.sizes[number] != row.nbytes:
                raise ValueError(f"it holds {table.sizes[number]} bytes instead of {row.nbytes}")
            else:
                read_at(descriptor, row.reshape(-1).view(np.uint8).data, int(table.offsets[number]))
        return
    first, last = start // chunks[0], -(-(start + len(out)) // chunks[0])
    places = itertools.product(range(first, last), *(range(count) for count in table.grid[1:]))
    for number, place in enumerate(places, first * math.prod(table.grid[1:])):
        tile = cache.get((key, number)) if cache is not None else None
        if tile is None:
            tile = _read_chunk(descriptor, table, number, out.dtype)
            if cache is not None:
                cache.keep((key, number), tile)
        inside, outside = [], []
        for axis, (count, chunk, whole) in enumerate(zip(place, chunks, out.shape, strict=True)):
            begin = count * chunk - (start if axis == 0 else 0)
            outside.append(slice(max(begin, 0), min(begin + chunk, whole)))
            inside.append(slice(outside[-1].start - begin, outside[-1].stop - begin))
        out[tuple(outside)] = tile[tuple(inside)]


def _read_chunk(descriptor: int, table: ChunkTable, number: int, dtype: np.dtype) -> np.ndarray:
    size = math.prod(table.chunks) * dtype.itemsize
    stored = np.empty(int(table.sizes[number]), np.uint8).data
    read_at(descriptor, stored, int(table.offsets[number]))
    unpacked = _unpack(stored, int(table.masks[number]), table.packing, size, dtype.itemsize)
    return np.frombuffer(unpacked, dtype).reshape(table.chunks)


def _unpack(
    stored: memoryview, mask: int, packing: Packing, size: int, itemsize: int
) -> bytes | bytearray | memoryview:
    """Return the `size` bytes of one chunk."""
    unpacked: bytes | bytearray | memoryview = stored
    for index, code in reversed(list(enumerate(packing.filters))):
        if mask >> index & 1:
            continue
        if code == LZ4_FILTER:
            unpacked = unpack_chunk(unpacked, size)
        elif code == _DEFLATE:
            unpacked = _inflate(unpacked, size)
        elif code == _FLETCHER32:
            unpacked = _checked(memoryview(unpacked))
        elif len(unpacked) == size:
            # All first bytes of the numbers, then all second ones, and so on.
            unpacked = np.frombuffer(unpacked, np.uint8).reshape(itemsize, -1).T.tobytes()
    if len(unpacked) != size:
        raise ValueError(f"it holds {len(unpacked)} bytes instead of {size}")
    return unpacked


def _checked(stored: memoryview) -> memoryview:
    """Return the content before its Fletcher checksum (HDF5's H5_checksum_fletcher32: 16-bit words, big-endian)."""
    if len(stored) < _CHECKSUM_BYTES:
        raise ValueError("it ends too early")
    content, checksum = stored[:-_CHECKSUM_BYTES], stored[-_CHECKSUM_BYTES:]
    words = np.frombuffer(content[: len(content) // 2 * 2], ">u2").astype(np.uint64)
    if len(content) % 2:
        words = np.append(words, np.uint64(content[-1] << 8))
    weights = np.arange(len(words), 0, -1, dtype=np.uint64) % np.uint64(0xFFFF)
    sums = int(words.sum()) % 0xFFFF, int((words * weights).sum()) % 0xFFFF
    found = int.from_bytes(checksum, "little")
    if sums != ((found & 0xFFFF) % 0xFFFF, (found >> 16) % 0xFFFF):
        raise ValueError("its checksum is wrong")
    return content


def _inflate(stored: bytes | bytearray | memoryview, size: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        unpacked = stream.decompress(stored, size + 1)  # one more than there should be, to see that there is no more
    except zlib.error as error:
        raise ValueError("it is not deflate data") from error
    if not stream.eof:
        raise ValueError(f"it does not unpack to {size} bytes")
    return unpacked
