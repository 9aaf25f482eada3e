"""One chunk of a dataset as the HDF5 LZ4 filter packs it.

8 bytes of unpacked size, 4 bytes of block size, then for each block 4 bytes of packed size and the packed block; the
numbers are big-endian, and a block whose packed size equals its unpacked size is stored as it is. Source: the HDF
Group's registry of filters, 32004. Packing and unpacking leave Python's global lock free, so threads share the work.
"""

import struct

import numpy as np

LZ4_FILTER = 32004
LARGEST_EXPANSION = 255
"""Bytes that one packed byte can unpack to at most, by the format of LZ4 blocks."""

_HEAD = struct.Struct(">QI")
_PACKED_SIZE = struct.Struct(">I")
# The filter's own limit of a block is just below 2 GiB; blocks of this size keep every number well inside it.
_BLOCK_BYTES = 1 << 30


def pack_chunk(values: np.ndarray) -> bytes:
    """Pack one whole chunk, given as a contiguous array, as the file stores it."""
    import lz4.block  # here and below: only packed tensors need it

    left = values.reshape(-1).view(np.uint8).data
    block_bytes = min(len(left), _BLOCK_BYTES)
    parts: list[bytes | memoryview] = [_HEAD.pack(len(left), block_bytes)]
    while left:
        block, left = left[:block_bytes], left[block_bytes:]
        packed = lz4.block.compress(block, store_size=False)
        kept = packed if len(packed) < len(block) else block
        parts += [_PACKED_SIZE.pack(len(kept)), kept]
    return b"".join(parts)


def unpack_chunk(stored: bytes | bytearray | memoryview, size: int) -> bytes | bytearray | memoryview:
    """Unpack a chunk, as the file stores it, to its `size` bytes; they can be a part of `stored`.

    No number in `stored` makes this take more memory than twice `size`, and no `size` more than 510 times `stored`.
    Raises ValueError when they do not fit each other.
    """
    left = memoryview(stored)
    if len(left) < _HEAD.size or size > LARGEST_EXPANSION * len(left):
        raise ValueError("it ends too early")
    total, block_bytes = _HEAD.unpack_from(left)
    if total != size:
        raise ValueError(f"it claims to hold {total} bytes instead of {size}")
    if not size:
        return b""
    if not 0 < block_bytes <= size:
        raise ValueError(f"it claims blocks of {block_bytes} bytes")
    left = left[_HEAD.size :]
    if block_bytes == size:
        return _next_block(left, size)[0]
    unpacked = bytearray(size)
    for start in range(0, size, block_bytes):
        expected = min(block_bytes, size - start)
        unpacked[start : start + expected], left = _next_block(left, expected)
    return unpacked


def _next_block(left: memoryview, size: int) -> tuple[bytes | memoryview, memoryview]:
    """Return the `size` bytes of the first block in `left`, and what comes after it."""
    import lz4.block

    if len(left) < _PACKED_SIZE.size:
        raise ValueError("it ends too early")
    (packed_size,) = _PACKED_SIZE.unpack_from(left)
    block, left = left[_PACKED_SIZE.size :][:packed_size], left[_PACKED_SIZE.size + packed_size :]
    if len(block) < packed_size:
        raise ValueError("it ends too early")
    if packed_size == size:
        return block, left
    try:
        unpacked = lz4.block.decompress(block, uncompressed_size=size)
    except lz4.block.LZ4BlockError as error:
        raise ValueError("it is not LZ4 data") from error
    if len(unpacked) != size:
        raise ValueError(f"it holds a block of {len(unpacked)} bytes instead of {size}")
    return unpacked, left
