"""Invertible operations on tensors: what stands between the Cerebras and the Hugging Face form of a weight.

An operation takes a tuple of arrays to a tuple of arrays without changing a bit of any element, and knows its inverse.
`shapes` says the same of shapes alone, so that a conversion can be planned from headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Arrays = tuple[np.ndarray, ...]
Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]


class Operation(Protocol):
    """What every operation offers; `operation.inverse.forward(operation.forward(arrays))` is `arrays`, bit for bit."""

    @property
    def inverse(self) -> Operation: ...

    def forward(self, arrays: Sequence[np.ndarray]) -> Arrays: ...

    def shapes(self, shapes: Sequence[Shape]) -> Shapes: ...


@dataclass(frozen=True)
class Identity:
    """Arrays as they are."""

    @property
    def inverse(self) -> Identity:
        return self

    def forward(self, arrays: Sequence[np.ndarray]) -> Arrays:
        return tuple(arrays)

    def shapes(self, shapes: Sequence[Shape]) -> Shapes:
        return tuple(shapes)


@dataclass(frozen=True)
class Transpose:
    """Each matrix transposed: torch's Linear keeps [out, in], GPT-2's Conv1D [in, out]. Vectors stay as they are."""

    @property
    def inverse(self) -> Transpose:
        return self

    def forward(self, arrays: Sequence[np.ndarray]) -> Arrays:
        return tuple(_rearranged(array, _transposed) for array in arrays)

    def shapes(self, shapes: Sequence[Shape]) -> Shapes:
        return tuple(tuple(reversed(shape)) for shape in shapes)


@dataclass(frozen=True)
class MergeRows:
    """Arrays of `sizes` rows each, stacked into one: q | k | v as contiguous blocks."""

    sizes: tuple[int, ...]

    @property
    def inverse(self) -> SplitRows:
        return SplitRows(self.sizes)

    def forward(self, arrays: Sequence[np.ndarray]) -> Arrays:
        return (np.concatenate([_bits(array) for array in arrays]).view(arrays[0].dtype),)

    def shapes(self, shapes: Sequence[Shape]) -> Shapes:
        return ((sum(self.sizes), *shapes[0][1:]),)


@dataclass(frozen=True)
class SplitRows:
    """One array cut into blocks of `sizes` rows."""

    sizes: tuple[int, ...]

    @property
    def inverse(self) -> MergeRows:
        return MergeRows(self.sizes)

    def forward(self, arrays: Sequence[np.ndarray]) -> Arrays:
        (array,) = arrays
        ends = np.cumsum(self.sizes).tolist()
        return tuple(array[end - size : end] for size, end in zip(self.sizes, ends, strict=True))

    def shapes(self, shapes: Sequence[Shape]) -> Shapes:
        return tuple((size, *shapes[0][1:]) for size in self.sizes)


@dataclass(frozen=True)
class RotaryInterleave:
    """Rows of a query or key projection from halves (i, i + R/2) to neighbours (2i, 2i + 1), head by head.

    Hugging Face's Llama rotates dimension i of a head together with i + R/2, the Model Zoo 2i with 2i + 1. Only the
    first `rotary_dim` (R) of the `head_dim` rows of each head move. Weights [heads * head_dim, M] and biases
    [heads * head_dim] alike. `to_halves` is the way back.
    """

    heads: int
    head_dim: int
    rotary_dim: int
    to_halves: bool = False

    @property
    def inverse(self) -> RotaryInterleave:
        return RotaryInterleave(self.heads, self.head_dim, self.rotary_dim, not self.to_halves)

    def forward(self, arrays: Sequence[np.ndarray]) -> Arrays:
        return tuple(_rearranged(array, lambda bits: bits[self._order()]) for array in arrays)

    def shapes(self, shapes: Sequence[Shape]) -> Shapes:
        return tuple(shapes)

    def _order(self) -> np.ndarray:
        """Row of the input that each row of the output is."""
        pairs = (self.rotary_dim // 2, 2) if self.to_halves else (2, self.rotary_dim // 2)
        within = np.arange(self.head_dim)
        within[: self.rotary_dim] = within[: self.rotary_dim].reshape(pairs).T.reshape(-1)
        return (np.arange(self.heads)[:, None] * self.head_dim + within).reshape(-1)


@dataclass(frozen=True)
class Chain:
    """Operations one after the other."""

    operations: tuple[Operation, ...]

    @property
    def inverse(self) -> Chain:
        return Chain(tuple(operation.inverse for operation in reversed(self.operations)))

    def forward(self, arrays: Sequence[np.ndarray]) -> Arrays:
        for operation in self.operations:
            arrays = operation.forward(arrays)
        return tuple(arrays)

    def shapes(self, shapes: Sequence[Shape]) -> Shapes:
        for operation in self.operations:
            shapes = operation.shapes(shapes)
        return tuple(shapes)


def _bits(array: np.ndarray) -> np.ndarray:
    """The array's elements as unsigned integers: bfloat16 is no type of numpy's own, and moves slowly as itself."""
    return array.view(f"u{array.dtype.itemsize}")


def _transposed(bits: np.ndarray) -> np.ndarray:
    """The transpose of a matrix, copied in bands that fill a cache line of the output at a time: 4 times as fast."""
    if bits.ndim < 2:
        return bits
    turned = np.empty(bits.shape[::-1], bits.dtype)
    band = 64 // bits.itemsize
    for start in range(0, len(bits), band):
        turned[:, start : start + band] = bits[start : start + band].T
    return turned


def _rearranged(array: np.ndarray, move) -> np.ndarray:
    return np.ascontiguousarray(move(_bits(array))).view(array.dtype)
