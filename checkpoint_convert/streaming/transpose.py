"""Copying matrices that are transposed on the way, block by block in the processor's cache.

Rows of a matrix often lie a power of two bytes apart, and then the elements of a column share a few lines of the cache
and displace one another. A block is therefore turned in memory of its own whose rows lie an odd number of cache lines
apart, which takes half the time of turning it in place.
"""

from __future__ import annotations

import threading

import numpy as np

_SIDE = 256  # rows and columns of a block: 256 KB of float32, which stay in the second level of the cache
_LINE = 64
_turning = threading.local()


def copy_transposed(source: np.ndarray, target: np.ndarray) -> None:
    """Copy an array into another of its shape and dtype; a matrix that is transposed is turned block by block."""
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
    """The values row-major: themselves where they are already, else a copy."""
    if values.ndim != 2 or not _by_columns(values):
        return np.ascontiguousarray(values)
    copied = np.empty(values.shape, values.dtype)
    copy_transposed(values, copied)
    return copied


def _by_columns(matrix: np.ndarray) -> bool:
    """Whether the elements of a column lie next to one another."""
    return matrix.strides[0] < matrix.strides[1]


def _buffer(dtype: np.dtype) -> np.ndarray:
    """A block of this thread's own, with a cache line between one row and the next."""
    buffers: dict[str, np.ndarray] = _turning.__dict__
    if dtype.name not in buffers:
        buffers[dtype.name] = np.empty((_SIDE, _SIDE + _LINE // dtype.itemsize), dtype)
    return buffers[dtype.name][:, :_SIDE]
