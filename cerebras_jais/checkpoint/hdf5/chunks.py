"""The chunks of a dataset: where each lies in the file, and rows put together from them, without the HDF5 library.

A chunk is unpacked in this module and in lz4_chunks.py, which leave Python's global lock free for the long parts, so
several threads can read one dataset at once. Filters: HDF5 File Format Specification, "Data Storage - Filter Pipeline"
(deflate is 1, shuffle 2), and the HDF Group's registry of filters for LZ4.
"""

import itertools
import math
import zlib
from dataclasses import dataclass

import numpy as np

from cerebras_jais.checkpoint.hdf5.lz4 import LARGEST_EXPANSION, LZ4_FILTER, unpack_chunk
from cerebras_jais.checkpoint.io import read_at

_DEFLATE, _SHUFFLE = 1, 2
# What one byte in the file can stand for at most: a shape beyond that is a lie.
_EXPANSION = {_DEFLATE: 1032, LZ4_FILTER: LARGEST_EXPANSION, _SHUFFLE: 1}


@dataclass(frozen=True)
class Packing:
    """How the chunks of a dataset are packed: at most shuffled, then packed with LZ4 or deflate."""

    filters: tuple[int, ...]
    """Codes in the order of writing."""

    @property
    def expansion(self) -> int:
        return math.prod(_EXPANSION[code] for code in self.filters)


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """Where each chunk lies, in row-major order of the grid that they form; all arrays are int64 of one axis."""

    offsets: np.ndarray
    sizes: np.ndarray
    masks: np.ndarray
    """Bit i is set in a chunk that the filter i was not applied to."""
    grid: tuple[int, ...]
    """Chunks along each axis."""


def packing_of(filters: list[list], itemsize: int) -> Packing | None:
    """Return what a list of [code, parameters] stands for; None when it is no packing that is read here."""
    codes = tuple(code for code, _ in filters)
    shuffled = codes[:1] == (_SHUFFLE,)
    packers = codes[1:] if shuffled else codes
    known = len(packers) <= 1 and all(code in (LZ4_FILTER, _DEFLATE) for code in packers)
    if not known or (shuffled and filters[0][1] != [itemsize]):
        return None
    return Packing(codes)


def grid_of(shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[int, ...]:
    """Return the number of chunks along each axis."""
    return tuple(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))


def chunk_table(shape: tuple[int, ...], chunks: tuple[int, ...], numbers: bytes, file_size: int) -> ChunkTable:
    """Sort the chunks of a dataset by their places.

    `numbers` is what the inspector sends about the chunks: uint64, all their places, offsets, sizes and masks. Raises
    ValueError when they are not exactly the chunks of `shape`, or not within `file_size` bytes.
    """
    grid, rank = grid_of(shape, chunks), len(shape)
    count, expected = len(numbers) // (8 * (rank + 3)), math.prod(grid)
    if count != expected:
        raise ValueError(f"has {count} of {expected} chunks; the file is incomplete")
    values = np.frombuffer(numbers, "<i8")
    places = values[: count * rank].reshape(count, rank)
    offsets, sizes, _ = columns = values[count * rank :].reshape(3, count)
    if ((offsets < 0) | (sizes < 0) | (sizes > file_size) | (offsets > file_size - sizes)).any():
        raise ValueError("has chunks that lie outside the file; the file is damaged")
    if (places % chunks).any() or ((places < 0) | (places >= shape)).any():
        raise ValueError("has a chunk at a place that it does not have; the file is damaged")
    table = np.full((3, count), -1)
    table[:, np.ravel_multi_index(tuple((places // chunks).T), grid)] = columns
    if (table < 0).any():
        raise ValueError("has two chunks at one place; the file is damaged")
    return ChunkTable(table[0], table[1], table[2], grid)


def read_rows(
    descriptor: int,
    table: ChunkTable,
    packing: Packing,
    chunks: tuple[int, ...],
    out: np.ndarray,
    start: int,
) -> None:
    """Fill `out` with the rows of a dataset from `start` on, reading and unpacking each chunk in them once.

    Raises ValueError for a chunk that cannot be unpacked to what it has to be; needs the memory of two chunks beside
    `out`.
    """
    chunk_bytes = math.prod(chunks) * out.itemsize
    first, last = start // chunks[0], -(-(start + len(out)) // chunks[0])
    stored = np.empty(0, np.uint8)
    places = itertools.product(range(first, last), *(range(count) for count in table.grid[1:]))
    for number, place in enumerate(places, first * math.prod(table.grid[1:])):
        size, mask = int(table.sizes[number]), int(table.masks[number])
        if len(stored) < size:
            stored = np.empty(size, np.uint8)
        left = stored[:size].data
        read_at(descriptor, left, int(table.offsets[number]))
        unpacked = _unpack(left, mask, packing, chunk_bytes, out.itemsize)
        tile = np.frombuffer(unpacked, out.dtype).reshape(chunks)
        inside, outside = [], []
        for axis, (count, chunk, whole) in enumerate(zip(place, chunks, out.shape, strict=True)):
            begin = count * chunk - (start if axis == 0 else 0)
            outside.append(slice(max(begin, 0), min(begin + chunk, whole)))
            inside.append(slice(outside[-1].start - begin, outside[-1].stop - begin))
        out[tuple(outside)] = tile[tuple(inside)]


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
        elif len(unpacked) == size:
            # All first bytes of the numbers, then all second ones, and so on.
            unpacked = np.frombuffer(unpacked, np.uint8).reshape(itemsize, -1).T.tobytes()
    if len(unpacked) != size:
        raise ValueError(f"it holds {len(unpacked)} bytes instead of {size}")
    return unpacked


def _inflate(stored: bytes | bytearray | memoryview, size: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        unpacked = stream.decompress(stored, size + 1)  # one more than there should be, to see that there is no more
    except zlib.error as error:
        raise ValueError("it is not deflate data") from error
    if not stream.eof:
        raise ValueError(f"it does not unpack to {size} bytes")
    return unpacked
