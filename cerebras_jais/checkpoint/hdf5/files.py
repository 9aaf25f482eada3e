"""Guarded HDF5: reading that follows nothing out of the file and believes no size, writing that survives a full disk.

HDF5 can point outside its file, compute data from other datasets and call any filter installed; a checkpoint needs none
of that, so all of it is refused. The HDF5 library itself looks at a file that is read only in another process (see
hdf5_inspection.py), which says where the data lies; the data is then read here. When a write fails, HDF5 can end the
process while it closes the file; `writing` keeps the failure from it.
"""

import io
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cerebras_jais.checkpoint.dtypes import ELEMENT_TYPES
from cerebras_jais.checkpoint.errors import CheckpointError, as_checkpoint_error
from cerebras_jais.checkpoint.hdf5.chunks import (
    ChunkTable,
    Packing,
    chunk_table,
    grid_of,
    packing_of,
    read_rows,
)
from cerebras_jais.checkpoint.hdf5.isolate import Inspection
from cerebras_jais.checkpoint.io import DISK_BLOCK, read_at, read_columns_at
from cerebras_jais.files import check_regular

_MAX_RANK = 32
_LARGE = 64 << 10  # data of this size begin at a block of the disk, where a write past the page cache can begin
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_FIRST_PLACE = 512  # of the signature when something else comes before it; then at twice that, and so on
# A chunk's entry in any index of HDF5 has at least its offset; without that an absurd number of chunks costs nothing.
_LEAST_PER_CHUNK = 8


@dataclass(frozen=True)
class DatasetHeader:
    """What is known of a dataset before its data is read."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype | None
    """As on the disk; None when it is of a type that no tensor has."""
    type_name: str
    offset: int | None
    """Where the data begins in the file, for a contiguous dataset that is not empty."""
    chunks: tuple[int, ...] | None
    packing: Packing


class GuardedFile:
    """An HDF5 file open for reading, by several threads at once; every error is a CheckpointError that names it."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        if str(path).startswith("s3:/"):
            raise CheckpointError(f"{path}: only local files are read; copy the checkpoint here first")
        if self.path.is_dir():
            made = "`checkpoint-convert to-cerebras` makes a .mdl file of a release"
            remedy = made if (self.path / "config.json").is_file() else "give the .mdl file inside it"
            raise CheckpointError(f"{path}: is a directory; {remedy}")
        check_regular(self.path, CheckpointError)
        with as_checkpoint_error(self.path, "opening"):
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115  # closed by `close`
        try:
            with as_checkpoint_error(self.path, "opening"):
                self._state = self._present_state()
                self.size = self._state[0]
                if not self._has_signature():
                    raise CheckpointError(f"{path}: is not an HDF5 file, or only the beginning or end of one")
                self._inspection = Inspection(self.path, self._file.fileno())
                facts, _ = self._inspection.ask()
                self._attributes: dict[str, Any] = facts["attributes"]
                self._headers: dict[str, Any] = facts["headers"]
        except BaseException:
            self._file.close()
            raise
        self._tables: dict[str, ChunkTable] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the file, when no other thread reads; reading after that is a CheckpointError."""
        self._inspection.close()
        self._tables.clear()
        self._file.close()

    def check_unchanged(self) -> None:
        """Raise CheckpointError when the file's size or time of modification is no longer what it was at opening."""
        self._check_open()
        with as_checkpoint_error(self.path, "looking whether it was changed"):
            if self._present_state() != self._state:
                raise CheckpointError(f"{self.path}: was changed while it was being read; start again")

    def attribute(self, name: str) -> Any:
        """Return a scalar attribute of the root as str, bool, int or float; None when it is not there."""
        found = self._attributes.get(name)
        if isinstance(found, dict):
            raise CheckpointError(f"{self.path}: the attribute '{name}' cannot be read: {found['error']}")
        return found[0] if found else None

    def header(self, name: str) -> DatasetHeader:
        """Check where and how a dataset lies and return its header, without reading its data."""
        with as_checkpoint_error(self.path, f"reading the header of tensor '{name}'"):
            facts = self._headers.get(name, {"problem": "missing"})
            if "error" in facts:
                raise CheckpointError(f"{self.path}: tensor '{name}' cannot be read: {facts['error']}")
            problem = facts.get("problem")
            if problem == "missing":
                raise CheckpointError(f"{self.path}: tensor '{name}' is missing; the file is incomplete")
            if problem == "link":
                raise CheckpointError(
                    f"{self.path}: tensor '{name}' lies behind a soft or external link; such files are refused"
                )
            if problem == "empty":
                raise CheckpointError(f"{self.path}: tensor '{name}' has no data; the file is incomplete")
            return self._checked_header(name, facts)

    def read_into(self, header: DatasetHeader, out: np.ndarray, start: int) -> None:
        """Fill the contiguous array `out`, of the header's dtype, with the rows from `start` on (all of a scalar)."""
        self._check_open()
        if out.size == 0:
            return
        with as_checkpoint_error(self.path, f"reading tensor '{header.name}'"):
            if header.chunks is None:
                assert header.offset is not None  # its data is not empty
                row_bytes = out.nbytes // len(out) if out.ndim else 0
                left = out.reshape(-1).view(np.uint8).data
                try:
                    read_at(self._file.fileno(), left, header.offset + start * row_bytes)
                except EOFError as error:
                    raise CheckpointError(f"{self.path}: the file ends inside tensor '{header.name}'") from error
                return
            table = self._chunk_table(header)
            try:
                read_rows(self._file.fileno(), table, header.packing, header.chunks, out, start)
            except (ValueError, EOFError) as error:
                raise CheckpointError(f"{self.path}: tensor '{header.name}' has a damaged chunk: {error}") from error

    def read_columns_into(self, header: DatasetHeader, out: np.ndarray, start: int) -> None:
        """Fill the contiguous matrix `out`, of the header's dtype, with the columns from `start` on of all rows.

        The dataset is a matrix that is not packed.
        """
        self._check_open()
        if out.size == 0:
            return
        assert header.offset is not None  # its data is not empty
        with as_checkpoint_error(self.path, f"reading tensor '{header.name}'"):
            try:
                read_columns_at(self._file.fileno(), out, start, header.shape[1], header.offset)
            except EOFError as error:
                raise CheckpointError(f"{self.path}: the file ends inside tensor '{header.name}'") from error

    def _check_open(self) -> None:
        if self._file.closed:
            raise CheckpointError(f"{self.path}: is closed; use it while the checkpoint is open")

    def _present_state(self) -> tuple[int, int]:
        state = os.fstat(self._file.fileno())
        return state.st_size, state.st_mtime_ns

    def _has_signature(self) -> bool:
        place = 0
        while place < self.size:
            if os.pread(self._file.fileno(), len(_SIGNATURE), place) == _SIGNATURE:
                return True
            place = 2 * place or _FIRST_PLACE
        return False

    def _checked_header(self, name: str, facts: dict[str, Any]) -> DatasetHeader:
        shape, itemsize, layout = tuple(facts["shape"]), facts["itemsize"], facts["layout"]
        if layout == "virtual" or facts["elsewhere"]:
            raise CheckpointError(f"{self.path}: tensor '{name}' has its data in another file; such files are refused")
        if len(shape) > _MAX_RANK:
            raise CheckpointError(f"{self.path}: tensor '{name}' has more than {_MAX_RANK} dimensions")
        packing = packing_of(facts["filters"], itemsize)
        if packing is None:
            codes = " and ".join(str(code) for code, _ in facts["filters"])
            raise CheckpointError(f"{self.path}: tensor '{name}' is packed with the unknown filter {codes}")
        chunks = tuple(facts["chunks"]) if layout == "chunked" else None
        needed = math.prod(shape) * itemsize
        unit = math.prod(chunks) * itemsize if chunks and needed else 0
        count = math.prod(grid_of(shape, chunks)) if unit and chunks else 0
        if max(needed, unit) > packing.expansion * self.size or count * _LEAST_PER_CHUNK > self.size:
            raise CheckpointError(
                f"{self.path}: tensor '{name}' claims the shape {shape}, more than {self.size} bytes can hold"
            )
        offset = facts["offset"] if layout == "contiguous" and needed else None
        if layout == "contiguous" and needed and (offset is None or offset + needed > self.size):
            raise CheckpointError(f"{self.path}: the data of tensor '{name}' was never written; the file is incomplete")
        if layout not in ("contiguous", "chunked") and needed:
            raise CheckpointError(f"{self.path}: tensor '{name}' has the layout '{layout}', which is not read")
        dtype = ELEMENT_TYPES[facts["type"]].disk if facts["type"] else None
        return DatasetHeader(name, shape, dtype, facts["type_name"], offset, chunks, packing)

    def _chunk_table(self, header: DatasetHeader) -> ChunkTable:
        """Return where the chunks lie, asked for when the first of them is wanted."""
        with self._lock:
            if header.name not in self._tables:
                assert header.chunks is not None
                expected = math.prod(grid_of(header.shape, header.chunks))
                _, numbers = self._inspection.ask(chunks_of=header.name, most=expected)
                self.check_unchanged()
                try:
                    table = chunk_table(header.shape, header.chunks, numbers, self.size)
                except ValueError as error:
                    raise CheckpointError(f"{self.path}: tensor '{header.name}' {error}") from error
                self._tables[header.name] = table
            return self._tables[header.name]


@contextmanager
def writing(path: Path, *, create: bool) -> Iterator[h5py.File]:
    """Yield an HDF5 file open for writing, new when `create`; a failed write is one CheckpointError after the block."""
    with as_checkpoint_error(path, "opening it for writing"):
        raw = open(path, "x+b" if create else "r+b", buffering=0)  # noqa: SIM115  # closed by the next with
    with raw:
        disk = _Disk(raw.fileno())
        try:
            with _create(disk) if create else h5py.File(disk, "r+") as file:
                yield file
        finally:
            if disk.failure is not None:
                # Whatever else went wrong in the block followed from this.
                raise CheckpointError(f"{path}: cannot be written: {disk.failure}") from disk.failure


def _create(disk: "_Disk") -> h5py.File:
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
    """A file that remembers its first failed write and swallows the later ones, so that HDF5 can close in peace."""

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
