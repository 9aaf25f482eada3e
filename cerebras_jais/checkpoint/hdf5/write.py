"""Writing with HDF5 so that a full disk is an error and not the end of the process.

HDF5 can abort the process if a write fails while it closes a file, so `writing` keeps the failure from it. h5py is
imported where a file is written: programs that read do without it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebras_jais.checkpoint.errors import CheckpointError, as_checkpoint_error
from cerebras_jais.checkpoint.io import DISK_BLOCK

if TYPE_CHECKING:
    import h5py

_LARGE = 64 << 10  # data of this size begin at a block of the disk, where a write past the page cache can begin


@contextmanager
def writing(path: Path, *, create: bool) -> Iterator[h5py.File]:
    """Yield an HDF5 file open for writing, new when `create`; a failed write is one CheckpointError after the block."""
    with as_checkpoint_error(path, "opening it for writing"):
        raw = open(path, "x+b" if create else "r+b", buffering=0)  # noqa: SIM115  # closed by the next with
    import h5py

    with raw:
        disk = _Disk(raw.fileno())
        try:
            with _create(disk) if create else h5py.File(disk, "r+") as file:
                yield file
        finally:
            if disk.failure is not None:
                # Whatever else went wrong in the block followed from this.
                raise CheckpointError(f"{path}: cannot be written: {disk.failure}") from disk.failure


def _create(disk: _Disk) -> h5py.File:
    import h5py

    # Not h5py.File itself: older versions of it leave the time of creation in the file.
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    # This version keeps thousands of root attributes in an index; the older layout searches them one by one.
    access.set_libver_bounds(h5py.h5f.LIBVER_V18, h5py.h5f.LIBVER_V18)
    access.set_alignment(_LARGE, DISK_BLOCK)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, disk)
    return h5py.File(h5py.h5f.create(repr(disk).encode(), h5py.h5f.ACC_TRUNC, creation, access))


class _Disk(io.RawIOBase):
    """A file that keeps its first failed write and ignores later ones, because HDF5 can abort if one fails."""

    def __init__(self, descriptor: int) -> None:
        self.failure: OSError | None = None
        self._descriptor = descriptor
        self._position = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: os.fstat(self._descriptor).st_size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = os.preadv(self._descriptor, [buffer], self._position)
        self._position += count
        return count

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        while left and self.failure is None:
            try:
                count = os.pwrite(self._descriptor, left, self._position)
            except OSError as error:
                self.failure = error
                break
            left, self._position = left[count:], self._position + count
        self._position += len(left)
        return size

    def truncate(self, size: int | None = None) -> int:
        size = self._position if size is None else size
        if self.failure is None:
            try:
                os.ftruncate(self._descriptor, size)
            except OSError as error:
                self.failure = error
        return size
