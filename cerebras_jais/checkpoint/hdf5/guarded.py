"""A checkpoint's HDF5 file open for reading: no link out of it is followed, and every size in it is checked.

HDF5 can point outside its file, compute data from other datasets and call any filter installed; a checkpoint needs none
of that, so all of it is refused. The library itself opens the file only in a child process (`isolate`), which finds
where the data is; the data is then read here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from cerebras_jais.checkpoint.errors import CheckpointError, as_checkpoint_error
from cerebras_jais.checkpoint.hdf5.dataset import DatasetHeader, headers_of, read_rows
from cerebras_jais.checkpoint.hdf5.isolate import Descriptions, describe_own
from cerebras_jais.checkpoint.io import read_columns_at
from cerebras_jais.files import check_regular, identity_of, is_in_object_storage

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_FIRST_PLACE = 512  # of the signature when something else comes before it; then at twice that, and so on


class GuardedFile:
    """An HDF5 file open for reading, by several threads at once; every error is a CheckpointError that names it."""

    def __init__(self, path: str | os.PathLike[str], descriptions: Descriptions | None = None) -> None:
        """Open a file.

        Args:
            path: the file.
            descriptions: a child that was started with this file among others; None starts one for it.
        """
        self.path = Path(path)
        if is_in_object_storage(path):
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
                self._identity = identity_of(self._file.fileno())
                has_signature = self._has_signature()
            if not has_signature:
                raise CheckpointError(f"{path}: is not an HDF5 file, or only the beginning or end of one")
            self._describe(descriptions)
        except BaseException:
            self._file.close()
            raise

    def _describe(self, descriptions: Descriptions | None) -> None:
        try:
            own = describe_own(self.path, self._file.fileno())
            if own is not None:
                description = own
            elif descriptions is None or self.path not in descriptions:
                with Descriptions([self.path]) as child:
                    description = child.of(self.path)
            else:
                description = descriptions.of(self.path)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {error}") from error
        if description.identity != self._identity:
            raise CheckpointError(f"{self.path}: changed while it was read; rerun the command")
        self._attributes = description.attributes
        self._headers = headers_of(description)

    def close(self) -> None:
        """Close the file, when no other thread reads; reading after that is a CheckpointError."""
        self._file.close()

    def check_unchanged(self) -> None:
        """Raise CheckpointError when the file's size or time of modification is no longer what it was at opening."""
        self._check_open()
        with as_checkpoint_error(self.path, "looking whether it was changed"):
            if identity_of(self._file.fileno()) != self._identity:
                raise CheckpointError(f"{self.path}: changed while it was read; rerun the command")

    def attribute(self, name: str) -> Any:
        """Return a scalar attribute of the root as str, bool, int or float; None when it is not there."""
        found = self._attributes.get(name)
        if isinstance(found, dict):
            raise CheckpointError(f"{self.path}: the attribute '{name}' cannot be read: {found['error']}")
        return found[0] if found else None

    def header(self, name: str) -> DatasetHeader:
        """Return the header of a dataset; raises CheckpointError when its data cannot be read."""
        header = self._headers.get(name, ValueError("is missing; the file is incomplete"))
        if isinstance(header, ValueError):
            raise CheckpointError(f"{self.path}: tensor '{name}' {header}")
        return header

    def read_into(self, header: DatasetHeader, out: np.ndarray, start: int) -> None:
        """Fill the contiguous array `out`, of the header's dtype, with the rows from `start` on (all of a scalar)."""
        self._check_open()
        with as_checkpoint_error(self.path, f"reading tensor '{header.name}'"):
            try:
                read_rows(self._file.fileno(), header, out, start)
            except ValueError as error:
                what = "has a damaged chunk: " if header.table is not None else "is damaged: "
                raise CheckpointError(f"{self.path}: tensor '{header.name}' {what}{error}") from error

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

    def _has_signature(self) -> bool:
        place = 0
        while place < self._identity[0]:
            if os.pread(self._file.fileno(), len(_SIGNATURE), place) == _SIGNATURE:
                return True
            place = 2 * place or _FIRST_PLACE
        return False
