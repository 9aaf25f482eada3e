"""One digest per tensor, the same on both sides: BLAKE3 over the tensor in the Cerebras layout, tile by tile.

A hash needs its bytes in one order, but the two sides store them in different orders. A tensor is therefore divided
into tiles of 256 x 256 elements (vectors: 65,536). Each tile is hashed alone (row-major, little-endian). The digest of
the tensor is the hash of its element type, its shape and the hashes of its tiles in row-major order. Bands of rows of
either side contain whole tiles.

The digest of a file beside the weights is the BLAKE3 of its bytes.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
from blake3 import blake3

from checkpoint_convert.errors import ConversionError
from checkpoint_convert.mapping.operations import Shape
from checkpoint_convert.streaming.transpose import copy_transposed

SCHEME = "blake3 over 256x256 tiles"
"""The name of these digests in a manifest."""
_BLOCK_BYTES = 1 << 20


def digest_of(content: bytes) -> str:
    """The digest of a file's content, 64 hexadecimal digits."""
    return blake3(content).hexdigest()


def file_digest(path: Path) -> str:
    """The digest of a file, read block by block; ConversionError when it cannot be read."""
    total = blake3()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                total.update(block)
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read: {error.strerror or error}") from error
    return total.hexdigest()


def tile_shape(shape: Shape) -> Shape:
    """The tile of a tensor: [256, 256] of a matrix, [65536] of a vector; other axes have tiles of size 1."""
    if len(shape) < 2:
        return (65536,) * len(shape)
    return (*(1,) * (len(shape) - 2), 256, 256)


class TileDigest:
    """The digest of one tensor, computed from pieces in any order."""

    def __init__(self, shape: Shape, dtype: str) -> None:
        self._shape = shape
        self._dtype = dtype
        self._tile = tile_shape(shape)
        self._grid = tuple(-(-size // tile) for size, tile in zip(shape, self._tile, strict=True))
        self._memory: np.ndarray | None = None
        self._hashes: list[bytes | None] = [None] * math.prod(self._grid)

    def add(self, at: tuple[int, ...], values: np.ndarray, copy_to: np.ndarray | None = None) -> None:
        """Add a piece that begins at the index `at` and consists of whole tiles (tiles at the edge may be smaller).

        Each tile is also copied to `copy_to`, an array of the piece's shape, while it is in the processor's cache. This
        is the fastest way to transpose.
        """
        first = tuple(start // tile for start, tile in zip(at, self._tile, strict=True))
        counts = tuple(-(-size // tile) for size, tile in zip(values.shape, self._tile, strict=True))
        for step in itertools.product(*(range(count) for count in counts)):
            slices = tuple(slice(n * tile, (n + 1) * tile) for n, tile in zip(step, self._tile, strict=True))
            number = 0
            for index, offset, size in zip(first, step, self._grid, strict=True):
                number = number * size + index + offset
            tile = self._tile_memory(values.dtype, values[slices].shape)
            copy_transposed(values[slices], tile)
            self._hashes[number] = blake3(tile.reshape(-1).view(np.uint8).data).digest()
            if copy_to is not None:
                copy_transposed(tile, copy_to[slices])

    def _tile_memory(self, dtype: np.dtype, shape: Shape) -> np.ndarray:
        """Contiguous memory for one tile, reused for the next."""
        if self._memory is None or self._memory.dtype != dtype:
            self._memory = np.empty(math.prod(self._tile), dtype)
        return self._memory[: math.prod(shape)].reshape(shape)

    def hexdigest(self) -> str:
        """The digest, 64 hexadecimal digits; every piece must have been added."""
        total = blake3(f"{self._dtype} {list(self._shape)}\n".encode())
        for part in self._hashes:
            assert part is not None, "a tile is missing"
            total.update(part)
        return total.hexdigest()
