"""Invertible operations that turn the Cerebras form of a weight into the Hugging Face form.

An operation only reorders elements. It is defined on pieces of tensors (rectangles of rows and columns), so a tensor of
any size is processed in bands; a whole tensor is one piece. Every operation has an inverse, and maps shapes without
values, so a conversion can be planned from headers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]


class Piece(NamedTuple):
    """A rectangle out of one of several tensors."""

    tensor: int
    """Which of the tensors it belongs to."""
    at: tuple[int, ...]
    """Index of its first element: (row, column), or (element,) of a vector."""
    values: np.ndarray

    @property
    def slices(self) -> tuple[slice, ...]:
        """Its position in its tensor."""
        return tuple(slice(start, start + size) for start, size in zip(self.at, self.values.shape, strict=True))


class Operation(Protocol):
    """The interface of every operation; the inverse restores every bit."""

    @property
    def inverse(self) -> Operation: ...

    @property
    def unit(self) -> int:
        """Rows of an input that move together: pieces begin and end at multiples of it."""
        ...

    @property
    def transposes(self) -> bool:
        """Whether rows of a matrix become columns, so that whole rows of an output are whole columns of inputs."""
        ...

    def shapes(self, shapes: Sequence[Shape]) -> Shapes:
        """Shapes of the outputs for shapes of the inputs."""
        ...

    def move(self, piece: Piece) -> tuple[Piece, ...]:
        """Where a piece of the inputs belongs in the outputs; the values may be views of it."""
        ...


def forward(operation: Operation, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The operation on whole tensors: arrays of one element type to new arrays of that type."""
    dtype = arrays[0].dtype
    bits = f"u{dtype.itemsize}"  # numpy copies its own integer types faster than ml_dtypes' bfloat16
    outputs = tuple(np.empty(shape, bits) for shape in operation.shapes([array.shape for array in arrays]))
    for index, array in enumerate(arrays):
        for piece in operation.move(Piece(index, (0,) * array.ndim, array.view(bits))):
            outputs[piece.tensor][piece.slices] = piece.values
    return tuple(output.view(dtype) for output in outputs)


@dataclass(frozen=True)
class Identity:
    """Tensors as they are."""

    unit = 1
    transposes = False

    @property
    def inverse(self) -> Identity:
        return self

    def shapes(self, shapes: Sequence[Shape]) -> Shapes:
        return tuple(shapes)

    def move(self, piece: Piece) -> tuple[Piece, ...]:
        return (piece,)


@dataclass(frozen=True)
class Transpose:
    """Each matrix transposed: torch's Linear keeps [out, in], GPT-2's Conv1D [in, out]. Vectors stay as they are."""

    unit = 1
    transposes = True

    @property
    def inverse(self) -> Transpose:
        return self

    def shapes(self, shapes: Sequence[Shape]) -> Shapes:
        return tuple(tuple(reversed(shape)) for shape in shapes)

    def move(self, piece: Piece) -> tuple[Piece, ...]:
        return (Piece(piece.tensor, piece.at[::-1], piece.values.T),)


@dataclass(frozen=True)
class MergeRows:
    """Tensors of `sizes` rows each, stacked into one: q | k | v as contiguous blocks."""

    sizes: tuple[int, ...]
    unit = 1
    transposes = False

    @property
    def inverse(self) -> SplitRows:
        return SplitRows(self.sizes)

    def shapes(self, shapes: Sequence[Shape]) -> Shapes:
        return ((sum(self.sizes), *shapes[0][1:]),)

    def move(self, piece: Piece) -> tuple[Piece, ...]:
        above = sum(self.sizes[: piece.tensor])
        return (Piece(0, (above + piece.at[0], *piece.at[1:]), piece.values),)


@dataclass(frozen=True)
class SplitRows:
    """One tensor cut into blocks of `sizes` rows."""

    sizes: tuple[int, ...]
    unit = 1
    transposes = False

    @property
    def inverse(self) -> MergeRows:
        return MergeRows(self.sizes)

    def shapes(self, shapes: Sequence[Shape]) -> Shapes:
        return tuple((size, *shapes[0][1:]) for size in self.sizes)

    def move(self, piece: Piece) -> tuple[Piece, ...]:
        first, *rest = piece.at
        pieces, above = [], 0
        for index, size in enumerate(self.sizes):
            start, stop = max(first, above), min(first + len(piece.values), above + size)
            if start < stop:
                pieces.append(Piece(index, (start - above, *rest), piece.values[start - first : stop - first]))
            above += size
        return tuple(pieces)


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
    transposes = False

    @property
    def inverse(self) -> RotaryInterleave:
        return RotaryInterleave(self.heads, self.head_dim, self.rotary_dim, not self.to_halves)

    @property
    def unit(self) -> int:
        return self.head_dim

    def shapes(self, shapes: Sequence[Shape]) -> Shapes:
        return tuple(shapes)

    def move(self, piece: Piece) -> tuple[Piece, ...]:
        pairs = (self.rotary_dim // 2, 2) if self.to_halves else (2, self.rotary_dim // 2)
        within = np.arange(self.head_dim)
        within[: self.rotary_dim] = within[: self.rotary_dim].reshape(pairs).T.reshape(-1)
        heads = np.arange(0, len(piece.values), self.head_dim)
        return (Piece(piece.tensor, piece.at, piece.values[(heads[:, None] + within).reshape(-1)]),)


@dataclass(frozen=True)
class Chain:
    """Operations one after the other."""

    operations: tuple[Operation, ...]

    @property
    def inverse(self) -> Chain:
        return Chain(tuple(operation.inverse for operation in reversed(self.operations)))

    @property
    def unit(self) -> int:
        return math.lcm(*(operation.unit for operation in self.operations))

    @property
    def transposes(self) -> bool:
        return any(operation.transposes for operation in self.operations)

    def shapes(self, shapes: Sequence[Shape]) -> Shapes:
        for operation in self.operations:
            shapes = operation.shapes(shapes)
        return tuple(shapes)

    def move(self, piece: Piece) -> tuple[Piece, ...]:
        pieces: tuple[Piece, ...] = (piece,)
        for operation in self.operations:
            pieces = tuple(moved for part in pieces for moved in operation.move(part))
        return pieces
