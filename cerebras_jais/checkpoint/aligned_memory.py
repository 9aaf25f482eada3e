"""Memory that the system can move to and from a disk without a copy of its own."""

import math
import mmap

import numpy as np
from numpy.typing import DTypeLike

DISK_BLOCK = 4096
"""Bytes; 512, the other size of a disk's blocks, divides it. Large data begin at a multiple in the files made here."""
BLOCK = max(DISK_BLOCK, mmap.PAGESIZE)
"""Bytes of which the places and sizes of transfers past the page cache are multiples, in memory and in a file."""


def empty(shape: tuple[int, ...], dtype: DTypeLike, offset: int = 0) -> np.ndarray:
    """A new array, not filled, that begins `offset` bytes (modulo BLOCK) behind a multiple of BLOCK in memory.

    One that lies in memory as it does in a file, seen from the next block, is read and written past the page cache
    without a copy.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(nbytes + BLOCK, np.uint8)
    start = (offset - memory.ctypes.data) % BLOCK
    return memory[start : start + nbytes].view(dtype).reshape(shape)
