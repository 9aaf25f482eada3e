"""A file of known size that is filled in any order, past the page cache where that can be done.

The system's page cache copies what is written to it page by page, which takes longer than this program takes to move
and hash the same bytes. Long ranges go around it (O_DIRECT), as whole blocks out of memory that begins at a page
(checkpoint/aligned_memory.py; what lies elsewhere is copied); the odd ends of a range, and short ranges, go through it.
No block is written both ways, so neither way can overwrite the other's bytes.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

import numpy as np

from cerebras_jais.checkpoint.aligned_memory import BLOCK

_STAGE = 4 << 20
_WORTH_IT = 1 << 20
_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP)  # of a file system that wants other places and sizes, or none at all
_stages = threading.local()


class DirectWriter:
    """An existing file, open to be filled by several threads; use it in a `with` block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR)
        self._direct = hasattr(os, "O_DIRECT")  # macOS has none

    def __enter__(self) -> DirectWriter:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes at an offset; what raises is OSError."""
        begin, end = -(-offset // BLOCK) * BLOCK, (offset + len(data)) // BLOCK * BLOCK
        if end - begin >= _WORTH_IT and self._direct:
            if self._write_blocks(data[begin - offset : end - offset], begin):
                _write(self._descriptor, data[: begin - offset], offset)
                _write(self._descriptor, data[end - offset :], end)
                return
            self._direct = False
        _write(self._descriptor, data, offset)

    def start_writing(self, offset: int, size: int) -> None:
        """Have the system begin to write to the disk what it holds back of a range."""
        if hasattr(os, "posix_fadvise"):  # macOS has none
            os.posix_fadvise(self._descriptor, offset, size, os.POSIX_FADV_DONTNEED)

    def flush(self) -> None:
        """Flush all to the disk."""
        os.fsync(self._descriptor)

    def _write_blocks(self, blocks: memoryview, offset: int) -> bool:
        """Write whole blocks past the page cache; whether the file system takes that."""
        try:
            direct = os.open(self._path, os.O_WRONLY | os.O_DIRECT)  # for each: a release can have a thousand files
        except OSError:
            return False
        try:
            if _address(blocks) % BLOCK == 0:
                _write(direct, blocks, offset)
            else:
                for start in range(0, len(blocks), _STAGE):
                    _write(direct, _staged(blocks[start : start + _STAGE]), offset + start)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            return False
        finally:
            os.close(direct)
        return True


def _staged(data: memoryview) -> memoryview:
    """The data in memory of this thread's own, one for all files, that begins at a page."""
    if not hasattr(_stages, "memory"):
        _stages.memory = mmap.mmap(-1, _STAGE)
    staged = memoryview(_stages.memory)[: len(data)]
    np.copyto(np.frombuffer(staged, np.uint8), np.frombuffer(data, np.uint8))  # lets other threads work meanwhile
    return staged


def _address(data: memoryview) -> int:
    return np.frombuffer(data, np.uint8).ctypes.data


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
