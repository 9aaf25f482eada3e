"""A file of known size that is filled in any order, past the page cache where that can be done.

The system's page cache copies what is written to it page by page, which takes longer than this program takes to move
and hash the same bytes. Long ranges go around it (O_DIRECT), as whole blocks out of memory that begins at a page
(`memory_for`, or a copy); the odd ends of a range, and short ranges, go through it. No block is written both ways, so
neither way can overwrite the other's bytes.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import threading
from pathlib import Path

import numpy as np

_BLOCK = 4096
"""Places and sizes of direct writes are multiples of it: it is one of 512, too, the other size that disks have."""
_STAGE = 4 << 20
_WORTH_IT = 1 << 20


class WrittenFile:
    """An existing file, open to be filled by several threads; use it in a `with` block."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR)
        self._direct = _open_direct(path)
        self._stages = threading.local()

    def __enter__(self) -> WrittenFile:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._descriptor, self._direct):
            if descriptor is not None:
                os.close(descriptor)

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes at an offset; what raises is OSError."""
        begin, end = -(-offset // _BLOCK) * _BLOCK, (offset + len(data)) // _BLOCK * _BLOCK
        if self._direct is None or end - begin < _WORTH_IT:
            _write(self._descriptor, data, offset)
            return
        _write(self._descriptor, data[: begin - offset], offset)
        blocks = data[begin - offset : end - offset]
        if _address(blocks) % _BLOCK == 0:
            self._write_blocks(blocks, begin)
        else:
            for place in range(0, len(blocks), _STAGE):
                self._write_blocks(self._staged(blocks[place : place + _STAGE]), begin + place)
        _write(self._descriptor, data[end - offset :], end)

    def start_writing(self, offset: int, size: int) -> None:
        """Have the system begin to write to the disk what it holds back of a range."""
        if hasattr(os, "posix_fadvise"):  # macOS has none
            os.posix_fadvise(self._descriptor, offset, size, os.POSIX_FADV_DONTNEED)

    def flush(self) -> None:
        """Flush all to the disk."""
        os.fsync(self._descriptor)

    def _write_blocks(self, data: memoryview, offset: int) -> None:
        """Write whole blocks out of memory that begins at a page."""
        if self._direct is not None:
            try:
                _write(self._direct, data, offset)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:  # a file system that wants other places and sizes says so
                    raise
        _write(self._descriptor, data, offset)

    def _staged(self, data: memoryview) -> memoryview:
        """The data in memory of this thread's own that begins at a page."""
        if not hasattr(self._stages, "memory"):
            self._stages.memory = mmap.mmap(-1, _STAGE)
        staged = memoryview(self._stages.memory)[: len(data)]
        staged[:] = data
        return staged


def memory_for(offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """A new array, not filled, that lies in memory as it will in the file, so that it is written without a copy.

    Args:
        offset: byte of the file at which it will begin.
        shape: of the array.
        dtype: of its elements.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(nbytes + _BLOCK, np.uint8)
    start = (offset - memory.ctypes.data) % _BLOCK
    return memory[start : start + nbytes].view(dtype).reshape(shape)


def _address(data: memoryview) -> int:
    return np.frombuffer(data, np.uint8).ctypes.data


def _open_direct(path: Path) -> int | None:
    if not hasattr(os, "O_DIRECT"):  # macOS
        return None
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    except OSError:  # a file system that has no such thing
        return None


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
