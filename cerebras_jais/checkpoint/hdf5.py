"""Guarded HDF5: reading that follows nothing out of the file and believes no size, writing that survives a full disk.

HDF5 can point outside its file, compute data from other datasets and call any filter installed; a checkpoint needs none
of that, so all of it is refused. The HDF5 library still parses the file, and a heap of texts damaged on purpose makes
it loop for ever: open only files that you trust. When a write fails, HDF5 can end the process while it closes the file;
`writing` keeps the failure from it.
"""

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from cerebras_jais.checkpoint.errors import CheckpointError, as_checkpoint_error

_LZ4 = hdf5plugin.LZ4_ID
# The filters that may occur, each with the most it can expand one byte to: a shape beyond that is a lie.
_EXPANSION: dict[int, int] = {
    _LZ4: 255,
    h5py.h5z.FILTER_DEFLATE: 1032,
    h5py.h5z.FILTER_SHUFFLE: 1,
    h5py.h5z.FILTER_FLETCHER32: 1,
}
_MAX_RANK = 32
_MAX_TRANSFER = 1 << 30


@dataclass(frozen=True)
class DatasetHeader:
    """What is known of a dataset before its data is read."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    """As on the disk."""
    offset: int | None
    """Where the data begins in the file, for a contiguous dataset that is not empty."""
    chunks: tuple[int, ...] | None


class GuardedFile:
    """An HDF5 file open for reading; every error is a CheckpointError that names the file."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        if str(path).startswith("s3:/"):
            raise CheckpointError(f"{path}: only local files are read; copy the checkpoint here first")
        if self.path.is_dir():
            raise CheckpointError(f"{path}: is a directory; give the .mdl file inside it")
        if not self.path.is_file():
            raise CheckpointError(f"{path}: no such file")
        with as_checkpoint_error(self.path, "opening"), open(self.path, "rb"):
            if not h5py.is_hdf5(self.path):
                raise CheckpointError(f"{path}: is not an HDF5 file, or only the beginning or end of one")
        with as_checkpoint_error(self.path, "opening (a damaged or incomplete copy?)"):
            self._file = h5py.File(self.path, "r", locking="best-effort")
            self._attributes = self._file.attrs
            self._descriptor = self._file.id.get_vfd_handle()
            self.size = os.fstat(self._descriptor).st_size
        self._datasets: dict[str, h5py.Dataset] = {}
        self._sound_chunks: set[str] = set()

    def close(self) -> None:
        """Close the file; reading after that is a CheckpointError."""
        self._datasets.clear()
        self._file.close()

    def attribute(self, name: str) -> Any:
        """Return a scalar attribute of the root as str, bool, int or float; None when it is not there."""
        with as_checkpoint_error(self.path, f"reading the attribute '{name}'"):
            if name not in self._attributes:
                return None
            header = self._attributes.get_id(name)
            text = h5py.check_string_dtype(header.dtype)
            if header.shape != () or not (header.dtype.kind in "biuf" or (text is not None and text.length is None)):
                raise CheckpointError(f"{self.path}: the attribute '{name}' is neither a text nor a number")
            value = self._attributes[name]
            return value if isinstance(value, str) else value.item()

    def header(self, name: str) -> DatasetHeader:
        """Check where and how a dataset lies and return its header, without reading its data."""
        with as_checkpoint_error(self.path, f"reading the header of tensor '{name}'"):
            dataset = self._find(name)
            if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
                raise CheckpointError(f"{self.path}: tensor '{name}' has no data; the file is incomplete")
            header = self._checked_header(name, dataset)
            self._datasets[name] = dataset
            return header

    def read_into(self, header: DatasetHeader, out: np.ndarray, start: int) -> None:
        """Fill the contiguous array `out`, of the header's dtype, with the rows from `start` on (all of a scalar)."""
        if not self._file:
            raise CheckpointError(f"{self.path}: is closed; read '{header.name}' while the checkpoint is open")
        if out.size == 0:
            return
        with as_checkpoint_error(self.path, f"reading tensor '{header.name}'"):
            if header.offset is not None:
                row_bytes = out.nbytes // len(out) if out.ndim else 0
                self._read_range(header, out, header.offset + start * row_bytes)
                return
            self._check_chunks(header)
            selection = np.s_[start : start + len(out)] if out.ndim else ()
            self._datasets[header.name].read_direct(out, source_sel=selection)

    def _find(self, name: str) -> Any:
        group: Any = self._file
        for part in filter(None, name.split("/")):
            links = group.id.links if isinstance(group, h5py.Group) else None
            if links is None or not links.exists(part.encode()):
                raise CheckpointError(f"{self.path}: tensor '{name}' is missing; the file is incomplete")
            if links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
                raise CheckpointError(
                    f"{self.path}: tensor '{name}' lies behind a soft or external link; such files are refused"
                )
            group = group[part]
        return group

    def _checked_header(self, name: str, dataset: h5py.Dataset) -> DatasetHeader:
        plan = dataset.id.get_create_plist()
        layout = plan.get_layout()
        if layout == h5py.h5d.VIRTUAL or plan.get_external_count():
            raise CheckpointError(f"{self.path}: tensor '{name}' has its data in another file; such files are refused")
        if len(dataset.shape) > _MAX_RANK:
            raise CheckpointError(f"{self.path}: tensor '{name}' has more than {_MAX_RANK} dimensions")
        expansion = 1
        for index in range(plan.get_nfilters()):
            code = plan.get_filter(index)[0]
            if code not in _EXPANSION:
                raise CheckpointError(f"{self.path}: tensor '{name}' is packed with the unknown filter {code}")
            expansion *= _EXPANSION[code]
        chunks = dataset.chunks
        needed = math.prod(dataset.shape) * dataset.dtype.itemsize
        unit = math.prod(chunks) * dataset.dtype.itemsize if chunks and needed else 0
        if max(needed, unit) > expansion * self.size:
            raise CheckpointError(
                f"{self.path}: tensor '{name}' claims the shape {dataset.shape}, more than {self.size} bytes can hold"
            )
        offset = dataset.id.get_offset() if layout == h5py.h5d.CONTIGUOUS and needed else None
        if layout == h5py.h5d.CONTIGUOUS and needed and (offset is None or offset + needed > self.size):
            raise CheckpointError(f"{self.path}: the data of tensor '{name}' was never written; the file is incomplete")
        return DatasetHeader(name, tuple(dataset.shape), dataset.dtype, offset, chunks)

    def _read_range(self, header: DatasetHeader, out: np.ndarray, offset: int) -> None:
        left = out.reshape(-1).view(np.uint8).data
        while left:
            count = os.preadv(self._descriptor, [left[:_MAX_TRANSFER]], offset)
            if count == 0:
                raise CheckpointError(f"{self.path}: the file ends inside tensor '{header.name}'")
            left, offset = left[count:], offset + count

    def _check_chunks(self, header: DatasetHeader) -> None:
        """Check once that every chunk is there and that no LZ4 chunk asks for more memory than a chunk is large."""
        if header.chunks is None or header.name in self._sound_chunks:
            return
        dataset = self._datasets[header.name]
        plan = dataset.id.get_create_plist()
        packed = any(plan.get_filter(index)[0] == _LZ4 for index in range(plan.get_nfilters()))
        chunk_bytes = math.prod(header.chunks) * header.dtype.itemsize
        infos: list[Any] = []
        dataset.id.chunk_iter(infos.append)
        expected = math.prod(-(-n // c) for n, c in zip(header.shape, header.chunks, strict=True))
        if len(infos) != expected:
            raise CheckpointError(
                f"{self.path}: tensor '{header.name}' has {len(infos)} of {expected} chunks; the file is incomplete"
            )
        for info in infos if packed else ():
            head = os.pread(self._descriptor, 8, info.byte_offset)
            if info.filter_mask == 0 and int.from_bytes(head, "big") != chunk_bytes:
                raise CheckpointError(f"{self.path}: tensor '{header.name}' has a damaged chunk")
        self._sound_chunks.add(header.name)


@contextmanager
def writing(path: Path, *, create: bool) -> Iterator[h5py.File]:
    """Yield an HDF5 file open for writing, new when `create`; a failed write is one CheckpointError after the block."""
    # v108 keeps thousands of root attributes in an index; the older layout searches them one by one.
    options: dict[str, Any] = {"libver": ("v108", "v108"), "alignment_threshold": 1, "alignment_interval": 64}
    with as_checkpoint_error(path, "opening it for writing"):
        raw = open(path, "x+b" if create else "r+b", buffering=0)  # noqa: SIM115  # closed by the next with
    with raw:
        disk = _Disk(raw.fileno())
        try:
            with h5py.File(disk, "w", **options) if create else h5py.File(disk, "r+") as file:
                yield file
        finally:
            if disk.failure is not None:
                # Whatever else went wrong in the block followed from this.
                raise CheckpointError(f"{path}: cannot be written: {disk.failure}") from disk.failure


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
