"""Input and output of large data: aligned memory, reads of rows and columns, writes past the page cache.

An array whose address and file offset are equal modulo BLOCK is read and written with O_DIRECT without a copy. The
page cache copies what is written to it page by page, which takes longer than a conversion takes to move and hash the
same bytes, so `DirectWriter` writes long ranges past it.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import threading
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

DISK_BLOCK = 4096
"""Bytes; 512, the other size of a disk's blocks, divides it. Large data begin at a multiple in the files made here."""
BLOCK = max(DISK_BLOCK, mmap.PAGESIZE)
"""Bytes of which the places and sizes of transfers past the page cache are multiples, in memory and in a file."""
_MAX_TRANSFER = 1 << 30
_WORTH_READING_ON = 1 << 20
_READ_AHEAD = 128 << 10  # Linux's default, VM_READAHEAD_PAGES in linux/mm.h
_STAGE = 4 << 20
_WORTH_IT = 1 << 20
_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP)  # of a file system that wants other places and sizes, or none at all
_stages = threading.local()


def aligned_empty(shape: tuple[int, ...], dtype: DTypeLike, offset: int = 0) -> np.ndarray:
    """A new array, not filled, whose address is equal to `offset` modulo BLOCK."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(nbytes + BLOCK, np.uint8)
    start = (offset - memory.ctypes.data) % BLOCK
    return memory[start : start + nbytes].view(dtype).reshape(shape)


# ---- reading --------------------------------------------------------------------------------------------------------


def read_at(descriptor: int, out: memoryview, offset: int) -> None:
    """Fill `out` with the bytes of the file from `offset` on; raises EOFError when the file ends before that.

    The system is told that as much again will be wanted next, so that the disk reads on while this is worked on.
    """
    if len(out) >= _WORTH_READING_ON:
        _will_need(descriptor, offset, 2 * len(out))
    while out:
        count = os.preadv(descriptor, [out[:_MAX_TRANSFER]], offset)
        if count == 0:
            raise EOFError("the file ends early")
        out, offset = out[count:], offset + count


def read_columns_at(descriptor: int, out: np.ndarray, start: int, columns: int, offset: int) -> None:
    """Fill the contiguous matrix `out` with columns of a matrix that a file holds row by row.

    With the first columns the whole matrix is asked of the disk, for the others will be wanted in turn.

    Args:
        descriptor: the file.
        out: [rows, columns wanted], any dtype.
        start: the first column wanted.
        columns: how many the matrix in the file has.
        offset: byte of the file at which that matrix begins.

    Raises EOFError when the file ends before that.
    """
    row_bytes, width = columns * out.itemsize, out.shape[1] * out.itemsize
    offset += start * out.itemsize
    left = out.reshape(-1).view(np.uint8).data
    if width == row_bytes:
        read_at(descriptor, left, offset)
        return
    if start == 0:
        _will_need(descriptor, offset, len(out) * row_bytes)
    for at in range(0, len(left), width or 1):
        count = os.preadv(descriptor, [left[at : at + width]], offset)
        if count < width:
            read_at(descriptor, left[at + count : at + width], offset + count)
        offset += row_bytes


def _will_need(descriptor: int, offset: int, size: int) -> None:
    """Have the disk start on a range; piece by piece, since Linux cuts what is asked for at once to its read-ahead."""
    if hasattr(os, "posix_fadvise"):  # macOS has none
        for start in range(offset, offset + size, _READ_AHEAD):
            os.posix_fadvise(descriptor, start, _READ_AHEAD, os.POSIX_FADV_WILLNEED)


# ---- writing --------------------------------------------------------------------------------------------------------


class DirectWriter:
    """An existing file of known size, open to be filled in any order by several threads; use it in a `with` block.

    Whole blocks of a long range are written with O_DIRECT, from aligned memory (other memory is copied first); the odd
    ends of a range, and short ranges, go through the page cache. No block is written both ways, so neither way can
    overwrite the other's bytes.
    """

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
