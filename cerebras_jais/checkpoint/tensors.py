"""The leaves of a checkpoint: a tensor in a file, a tensor still to be made, and a leaf that is refused."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np

from cerebras_jais.checkpoint.dtypes import ELEMENT_TYPES
from cerebras_jais.checkpoint.errors import CheckpointError, as_checkpoint_error
from cerebras_jais.checkpoint.hdf5.dataset import DatasetHeader
from cerebras_jais.checkpoint.hdf5.guarded import GuardedFile
from cerebras_jais.checkpoint.io import aligned_empty
from cerebras_jais.machine import machine_memory

Kind = Literal["torch", "numpy"]
"""What `cerebras.pytorch.load` makes of a tensor: a torch.Tensor or a numpy array."""


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of an open checkpoint, read on request."""

    key: str
    """Flat name, for example "model.model.lm_head.weight"."""
    shape: tuple[int, ...]
    dtype: str
    """A name such as "float32" or "bfloat16"."""
    kind: Kind = "torch"
    linked_to: str | None = None
    """The flat name under which the data is stored, when this tensor is another name for it (tied weights)."""
    fill_value: bool | int | float | None = None
    """The one value of a tensor that is stored as a constant, without data (`is_constant`)."""
    header: DatasetHeader | None = field(default=None, repr=False)
    """None for a constant."""
    file: GuardedFile = field(default=None, repr=False)  # type: ignore[assignment]  # always given by the reader

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ELEMENT_TYPES[self.dtype].itemsize

    @property
    def is_constant(self) -> bool:
        return self.header is None

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def storage_id(self) -> tuple[str, str]:
        """The file and the flat name under which the data is stored: equal for two names of one tensor."""
        return str(self.path), self.linked_to or self.key

    @property
    def chunk_rows(self) -> int | None:
        """Rows that are unpacked together; `read_rows` is cheapest in multiples of it. None when nothing is packed."""
        return self.header.chunks[0] if self.header and self.header.chunks else None

    def read(self) -> np.ndarray:
        """Read the whole tensor into a new array of `shape`; bfloat16 comes as ml_dtypes.bfloat16."""
        return self._read(0, self.shape)

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Read rows start to stop (exclusive) of the first axis into a new array.

        Raises IndexError when the tensor has no axis or the rows are not within it.
        """
        if not self.shape or not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"rows {start} to {stop} are not within '{self.key}' of shape {self.shape}")
        return self._read(start, (stop - start, *self.shape[1:]))

    def read_columns(self, start: int, stop: int) -> np.ndarray:
        """Read columns start to stop (exclusive) of a contiguous matrix into a new array [rows, columns].

        Raises IndexError when it is no matrix, is packed (`chunk_rows`) or does not have the columns.
        """
        if len(self.shape) != 2 or self.chunk_rows is not None or not 0 <= start <= stop <= self.shape[1]:
            raise IndexError(f"columns {start} to {stop} cannot be read of '{self.key}' of shape {self.shape}")
        element = ELEMENT_TYPES[self.dtype]
        shape = (self.shape[0], stop - start)
        if self.header is None:
            return self._read(0, shape)
        values = np.empty(shape, dtype=element.memory)
        self.file.read_columns_into(self.header, values.view(element.disk), start)
        return values

    def _read(self, start: int, shape: tuple[int, ...]) -> np.ndarray:
        element = ELEMENT_TYPES[self.dtype]
        needed = math.prod(shape) * element.itemsize
        if needed > machine_memory():
            raise CheckpointError(
                f"{self.path}: '{self.key}' needs {needed / 2**30:.1f} GiB, more than this machine has; read it in rows"
            )
        with as_checkpoint_error(self.path, f"reading tensor '{self.key}'"):
            if self.header is None:
                # A constant without a value was left uninitialised by its writer; zeros are as right as any values.
                return np.full(shape, self.fill_value or 0, dtype=element.memory)
            values = aligned_empty(shape, element.memory)
            self.file.read_into(self.header, values.view(element.disk), start)
            return values


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor that does not exist yet: `save_checkpoint` calls `read` when it is its turn to be written.

    `dtype` is a name such as "bfloat16"; `read` returns an array of just that shape and dtype, and may be None where
    only the place is wanted (`create_empty_checkpoint`). The same LazyTensor at two places is written once and linked.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray] | None = None
    kind: Kind = "torch"


@dataclass(frozen=True, eq=False)
class UnreadableLeaf:
    """A leaf that exists but is not read, such as a pickled Python object: reading a pickle can run any code."""

    key: str
    reason: str
    file: GuardedFile = field(repr=False)

    def read(self) -> NoReturn:
        """Raise a CheckpointError with the reason."""
        raise CheckpointError(
            f"{self.file.path}: '{self.key}' is {self.reason}; open with on_object=\"skip\" to do without it"
        )
