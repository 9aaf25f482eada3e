"""The element types of a checkpoint: their names here, in torch, in the appliance, and on the disk.

Source: cerebras.appliance/data/conversions.py (codes of RtFxProto); bfloat16 is stored as its int16 bit pattern.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class ElementType:
    """One element type."""

    name: str
    """As in numpy, ml_dtypes and, behind "torch.", in torch."""
    memory: np.dtype
    """What `read` returns."""
    disk: np.dtype
    """What the HDF5 dataset holds; differs from `memory` for bfloat16 only."""
    code: int | None
    """The appliance's number of the type; None for a type that only numpy arrays can have."""

    @property
    def itemsize(self) -> int:
        return self.memory.itemsize


def _element_type(name: str, code: int | None) -> ElementType:
    if name == "bfloat16":
        return ElementType(name, np.dtype(ml_dtypes.bfloat16), np.dtype("<i2"), code)
    dtype = np.dtype(name).newbyteorder("<")
    return ElementType(name, dtype, dtype, code)


_CODES: dict[str, int | None] = {
    "bool": 1,
    "int8": None,
    "int16": 3,
    "int32": 4,
    "int64": 5,
    "uint8": 6,
    "uint16": 7,
    "uint32": 8,
    "uint64": 9,
    "float16": 10,
    "float32": 11,
    "float64": 12,
    "bfloat16": 15,
}
ELEMENT_TYPES: dict[str, ElementType] = {name: _element_type(name, code) for name, code in _CODES.items()}
NAME_BY_CODE: dict[int, str] = {code: name for name, code in _CODES.items() if code is not None}


def element_type_of(dtype: np.dtype) -> ElementType | None:
    """Return the element type of a numpy dtype in any byte order, or None when a checkpoint cannot hold it."""
    return ELEMENT_TYPES.get(np.dtype(dtype).name)
