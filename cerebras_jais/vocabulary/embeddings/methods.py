"""How the rows of new tokens are made: by a projection from a donor, or by the methods that one compares it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from cerebras_jais.vocabulary.embeddings.ridge import Projection
from cerebras_jais.vocabulary.embeddings.rows import blocks, mean_rows
from cerebras_jais.vocabulary.errors import VocabularyError
from checkpoint_convert.formats.tensors import Tensor, np_dtype
from checkpoint_convert.mapping.operations import Shape

Sources = Mapping[int, tuple[int, ...]]
"""Id of a token -> ids of the tokens of another vocabulary that spell it."""
RowMaker = Callable[[Sequence[int]], np.ndarray]
"""Makes the rows of some token ids: float32 [ids, columns]."""


class Method(StrEnum):
    """How the row of a new token is made."""

    PROJECTION = "projection"
    """The donor's row through the map that is learned on the tokens that both models have."""
    PIECES = "pieces"
    """The mean of the rows of the tokens that spell it in the base."""
    MEAN = "mean"
    """The mean of all rows of the base."""
    RANDOM = "random"
    """Normal, with the mean and the spread of all entries of the base."""


@dataclass(frozen=True)
class Statistics:
    """What is known of all rows of a matrix."""

    mean: np.ndarray
    """Their mean, float32 [columns]."""
    spread: float
    """Standard deviation of all entries."""
    norm: float
    """Mean norm of the rows."""


def statistics_of(tensor: Tensor, count: int) -> Statistics:
    """The statistics of the first `count` rows of a matrix."""
    sums, squares, norms = np.zeros(tensor.shape[1]), 0.0, 0.0
    for start, stop in blocks(count, tensor.shape[1]):
        values = tensor.read_rows(start, stop).astype(np.float32)
        of_rows = np.einsum("ij,ij->i", values, values, dtype=np.float32).astype(np.float64)
        sums += values.sum(axis=0, dtype=np.float64)
        squares, norms = squares + of_rows.sum(), norms + np.sqrt(of_rows).sum()
    size = count * tensor.shape[1]
    variance = max(0.0, squares / size - (sums.sum() / size) ** 2)
    return Statistics((sums / count).astype(np.float32), float(variance**0.5), float(norms / count))


def projected(
    donor: Tensor,
    sources: Sources,
    projection: Projection,
    factor: float,
    mean: np.ndarray,
    *,
    in_bfloat16: bool = False,
) -> RowMaker:
    """Rows by the projection, times `factor`; `mean` where no token of the donor spells the token.

    `in_bfloat16` is for rows that are read and stored as bfloat16.
    """

    def make(ids: Sequence[int]) -> np.ndarray:
        groups = [sources[number] for number in ids]
        rows = projection(mean_rows(donor, groups, projection.source_mean), in_bfloat16=in_bfloat16)
        rows *= np.float32(factor)
        rows[[not group for group in groups]] = mean
        return rows

    return make


def mean_of_pieces(base: Tensor, sources: Sources, mean: np.ndarray) -> RowMaker:
    """Rows that are the mean of those of the base's tokens; `mean` where there are none."""
    return lambda ids: mean_rows(base, [sources[number] for number in ids], mean)


def mean_of_all(mean: np.ndarray) -> RowMaker:
    """One row for all."""
    return lambda ids: np.tile(mean, (len(ids), 1))


def drawn(statistics: Statistics, seed: int, matrix: int) -> RowMaker:
    """Rows drawn at random; that of an id depends on the seed, the number of the matrix and the id alone."""

    def make(ids: Sequence[int]) -> np.ndarray:
        middle, columns = statistics.mean.mean(dtype=np.float64), len(statistics.mean)
        rows = [np.random.default_rng([seed, matrix, number]).standard_normal(columns) for number in ids]
        found: np.ndarray = (middle + statistics.spread * np.array(rows)).astype(np.float32)
        return found

    return make


@dataclass(eq=False)
class GrownMatrix:
    """A matrix of the base with rows for more tokens, as a tensor that can be read.

    Rows below `kept` are the base's, bit for bit. Rows of new tokens come from `make`, which is set before they are
    read. All others are padding, ids that no text has, and are the mean row of the base.
    """

    base: Tensor
    kept: int
    rows: int
    new: frozenset[int]
    mean: np.ndarray | None = None
    make: RowMaker | None = None

    @property
    def shape(self) -> Shape:
        return self.rows, self.base.shape[1]

    @property
    def dtype(self) -> str:
        return self.base.dtype

    @property
    def nbytes(self) -> int:
        return self.rows * self.base.shape[1] * np_dtype(self.dtype).itemsize

    @property
    def storage_id(self) -> tuple[str, str | int]:
        """That of the base's matrix: two names of one stay two names of one."""
        return self.base.storage_id

    @property
    def chunk_rows(self) -> int | None:
        return self.base.chunk_rows

    def read(self) -> np.ndarray:
        """The whole matrix."""
        return self.read_rows(0, self.rows)

    def read_columns(self, start: int, stop: int) -> np.ndarray:
        """Columns of the whole matrix, which is read for them."""
        return self.read()[:, start:stop]

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop (exclusive), in the element type of the base."""
        assert self.make is not None
        assert self.mean is not None
        values = np.empty((stop - start, self.base.shape[1]), np_dtype(self.dtype))
        if start < self.kept:
            values[: self.kept - start] = self.base.read_rows(start, min(stop, self.kept))
        ids = [number for number in range(start, stop) if number in self.new]
        if ids:
            made = self.make(ids).astype(values.dtype)
            if not np.isfinite(made.astype(np.float32)).all():
                raise VocabularyError(
                    f"the row of a new token between {ids[0]} and {ids[-1]} is not finite in {self.dtype}; look at the "
                    "donor's embeddings of it, or choose another --method"
                )
            values[np.array(ids) - start] = made
        padding = [number - start for number in range(max(start, self.kept), stop) if number not in self.new]
        values[padding] = self.mean.astype(values.dtype)
        return values
