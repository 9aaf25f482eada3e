"""What a tensor offers to be read, and tensors stored in one contiguous range of a file: safetensors, .bin, outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from cerebras_jais.checkpoint.dtypes import ELEMENT_TYPES
from cerebras_jais.checkpoint.io import aligned_empty, read_at, read_columns_at
from checkpoint_convert.errors import ConversionError

Shape = tuple[int, ...]


MOST_AXES = 32
UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
"""Largest relative error of rounding a number to an element type of weights."""
WEIGHT_TYPES = tuple(UNIT_ROUNDOFF)


def np_dtype(name: str) -> np.dtype:
    """The little-endian numpy dtype of a name such as "float32" or "bfloat16"."""
    return ELEMENT_TYPES[name].memory


def is_array_shape(shape: Shape, dtype: str) -> bool:
    """Whether an array can have this shape.

    numpy before 2.0 has 32 axes at most, and it counts the bytes of an empty array as if its empty axes were of size 1.
    """
    return len(shape) <= MOST_AXES and math.prod(n for n in shape if n) * np_dtype(dtype).itemsize < 1 << 63


StorageId = tuple[str, str | int]
"""(file, offset or key in it): equal for two names of one tensor, different for any two other tensors."""


class Tensor(Protocol):
    """A tensor that can be read: in a .mdl, in a safetensors file or in a pickle shard."""

    @property
    def shape(self) -> Shape: ...

    @property
    def dtype(self) -> str:
        """A name such as "float32" or "bfloat16"."""
        ...

    @property
    def nbytes(self) -> int: ...

    @property
    def storage_id(self) -> StorageId: ...

    @property
    def chunk_rows(self) -> int | None:
        """Rows that are decompressed together; None where nothing is compressed."""
        ...

    def read(self) -> np.ndarray: ...

    def read_rows(self, start: int, stop: int) -> np.ndarray: ...

    def read_columns(self, start: int, stop: int) -> np.ndarray:
        """Columns of an uncompressed matrix."""
        ...


@dataclass(frozen=True)
class TensorHeader:
    """Name, shape and element type of a tensor."""

    name: str
    shape: Shape
    dtype: str
    """A name such as "float32" or "bfloat16"."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np_dtype(self.dtype).itemsize


@dataclass(frozen=True, eq=False)
class FileTensor:
    """A tensor whose row-major little-endian elements begin at a byte of a file; read when asked for."""

    name: str
    shape: Shape
    dtype: str
    """A name such as "float32" or "bfloat16"."""
    path: Path
    offset: int
    """Byte of the file at which the data begins."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np_dtype(self.dtype).itemsize

    @property
    def storage_id(self) -> StorageId:
        """The file and the offset in it."""
        return str(self.path), self.offset

    @property
    def chunk_rows(self) -> None:
        """None: nothing is compressed."""
        return None

    def read(self) -> np.ndarray:
        """The whole tensor as a new array; bfloat16 as ml_dtypes.bfloat16."""
        return self._read(self.offset, self.shape)

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop (exclusive) of the first axis, as a new array."""
        row_bytes = self.nbytes // self.shape[0] if self.shape[0] else 0
        return self._read(self.offset + start * row_bytes, (stop - start, *self.shape[1:]))

    def read_columns(self, start: int, stop: int) -> np.ndarray:
        """Columns start to stop (exclusive) of a matrix, as a new array [rows, columns]."""
        rows, columns = self.shape
        values = np.empty((rows, stop - start), np_dtype(self.dtype))
        self._filled(lambda file: read_columns_at(file, values, start, columns, self.offset))
        return values

    def _read(self, offset: int, shape: Shape) -> np.ndarray:
        values = aligned_empty(shape, np_dtype(self.dtype))
        left = values.reshape(-1).view(np.uint8).data
        self._filled(lambda file: read_at(file, left, offset))
        return values

    def _filled(self, fill: Callable[[int], None]) -> None:
        """Call `fill` with the open file; errors name the file and the tensor."""
        try:
            with open(self.path, "rb", buffering=0) as file:
                fill(file.fileno())
        except EOFError:
            raise ConversionError(
                f"{self.path}: ends inside tensor {self.name!r}; it changed while it was read, rerun the command "
                "when its writer has finished"
            ) from None
        except OSError as error:
            raise ConversionError(f"{self.path}: cannot be read: {error.strerror or error}") from error
