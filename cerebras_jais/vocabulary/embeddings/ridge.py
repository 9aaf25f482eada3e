"""Ridge least squares from one space to another, from moments that are summed block by block.

With X [N, D] and Y [N, M] centred, W = (X'X + s I)^-1 X'Y minimises |Y - XW|^2 + s |W|^2 (Hoerl and Kennard, 1970). X
and Y are never held whole. Products of a block are float32, their sums float64. A strength is given as a multiple of
the mean diagonal of X'X. Shapes: N rows, D source dimensions, M target dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

STRENGTHS = tuple(float(f"{10 ** (step / 2):.4g}") for step in range(-6, 7))
"""The strengths to choose from: half decades from 1e-3 to 1e3. Smaller ones follow the noise of a few thousand rows."""
JUDGED_COLUMNS = 256
_PANEL = 1024  # columns of a product at a time, which bounds the memory of the float32 part

Done = Callable[[float], object]
"""Called with floating-point operations just done."""


@contextmanager
def bfloat16_factors(will_do: bool) -> Iterator[None]:
    """Let torch take the factors of float32 products as bfloat16, and sum in float32, for the block, in all threads.

    It is twice as fast on a processor with instructions for it; another computes in float32 as before. Nothing is
    rounded where the factors are values of bfloat16.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if will_do else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Projection:
    """An affine map: y = (x - source_mean) weight + target_mean."""

    weight: np.ndarray
    """float32 [D, M]."""
    source_mean: np.ndarray
    """float32 [D]."""
    target_mean: np.ndarray
    """float32 [M]."""

    @cached_property
    def _offset(self) -> np.ndarray:
        """What 0 becomes, float32 [M]."""
        offset: np.ndarray = self.target_mean - self.source_mean @ self.weight
        return offset

    @cached_property
    def _rounded(self) -> torch.Tensor:
        return torch.from_numpy(self.weight).bfloat16()

    def __call__(self, x: np.ndarray, *, in_bfloat16: bool = False) -> np.ndarray:
        """Rows [N, D] in the target space, float32 [N, M].

        Args:
            x: the rows.
            in_bfloat16: round rows, map and result to bfloat16, and sum in float32: several times as fast on a
                processor with instructions for it, and about as near as a result can be that is stored so.
        """
        source = torch.from_numpy(x)
        if in_bfloat16:
            product = torch.addmm(torch.from_numpy(self._offset).bfloat16(), source.bfloat16(), self._rounded).float()
        else:
            product = torch.addmm(torch.from_numpy(self._offset), source, torch.from_numpy(self.weight))
        moved: np.ndarray = product.numpy()
        return moved


class Moments:
    """Sums of X'X, X'Y, X and Y about fixed points, in float64.

    Args:
        source: a point near the mean of X [D]; near it, centring loses no digits.
        target: one near the mean of Y [M].
    """

    def __init__(self, source: np.ndarray, target: np.ndarray) -> None:
        self._points = source.astype(np.float32), target.astype(np.float32)
        d, m = len(source), len(target)
        self._count = 0
        self._sums = torch.zeros(d, dtype=torch.float64), torch.zeros(m, dtype=torch.float64)
        self._gram = torch.zeros(d, d, dtype=torch.float64)  # its upper triangle alone
        self._cross = torch.zeros(d, m, dtype=torch.float64)

    @property
    def flops_of_row(self) -> float:
        """Floating-point operations that a row takes."""
        d, m = self._cross.shape
        return float(d) * (d + 2 * m)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add rows: x [n, D], y [n, M], float32."""
        with np.errstate(invalid="ignore"):  # of infinities, which show in the sums
            source, target = (torch.from_numpy(v - point) for v, point in zip((x, y), self._points, strict=True))
        self._count += len(x)
        for total, values in zip(self._sums, (source, target), strict=True):
            total += values.sum(0)
        for start in range(0, len(self._gram), _PANEL):
            panel = slice(start, start + _PANEL)
            stop = min(start + _PANEL, len(self._gram))
            self._gram[:stop, panel] += source[:, :stop].T @ source[:, panel]
        for start in range(0, len(target.T), _PANEL):
            panel = slice(start, start + _PANEL)
            self._cross[:, panel] += source.T @ target[:, panel]

    def centred(self) -> Normal:
        """The normal equations of the rows added so far, centred by their own means."""
        deltas = [total / self._count for total in self._sums]
        source, target = (point + delta.numpy() for point, delta in zip(self._points, deltas, strict=True))
        gram = torch.empty(self._gram.shape, dtype=torch.float32)
        cross = torch.empty(self._cross.shape, dtype=torch.float32)
        for start in range(0, len(gram), _PANEL):
            rows = slice(start, start + _PANEL)
            scaled = self._count * deltas[0][rows, None]
            gram[rows] = (self._gram[rows] - scaled * deltas[0]).float()
            cross[rows] = (self._cross[rows] - scaled * deltas[1]).float()
        return Normal(gram, cross, source.astype(np.float32), target.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Normal:
    """The normal equations of centred rows."""

    gram: torch.Tensor
    """X'X, float32 [D, D], of which only the upper triangle is read."""
    cross: torch.Tensor
    """X'Y, float32 [D, M]."""
    source_mean: np.ndarray
    target_mean: np.ndarray

    @property
    def flops_of_factor(self) -> float:
        """Floating-point operations of one factorisation."""
        return float(len(self.gram)) ** 3 / 3

    def factor(self, strength: float) -> torch.Tensor | None:
        """The upper Cholesky factor of X'X + s I; None where rounding leaves it not positive definite."""
        raised = self.gram.clone()
        raised.diagonal().add_(strength * float(self.gram.diagonal().mean()))
        factor, failed = torch.linalg.cholesky_ex(raised, upper=True)
        return None if int(failed) else factor

    def predict(self, factor: torch.Tensor, x: np.ndarray) -> np.ndarray:
        """What rows [n, D] become, float32 [n, M], by one solution for each row instead of one for each column."""
        inputs = torch.from_numpy(x - self.source_mean)
        solutions = torch.cholesky_solve(inputs.T.contiguous(), factor, upper=True)
        moved: np.ndarray = (solutions.T @ self.cross).numpy()
        moved += self.target_mean
        return moved

    def solve(self, factor: torch.Tensor) -> Projection:
        """The map of all columns."""
        weight = torch.cholesky_solve(self.cross, factor, upper=True).contiguous()
        return Projection(weight.numpy(), self.source_mean, self.target_mean)

    def squared_errors(
        self, x: np.ndarray, y: np.ndarray, columns: np.ndarray, strengths: Sequence[float], done: Done
    ) -> tuple[np.ndarray, dict[float, np.ndarray]]:
        """The squared errors on held-out rows: of the mean of the training rows, and of each strength's prediction.

        Both are sums over the rows, for each of `columns`. A strength that cannot be factorised is left out.

        Args:
            x: held-out rows [n, D].
            y: what they should become, their `columns` alone [n, columns].
            columns: numbers of columns of Y.
            strengths: to try.
            done: told of the operations.
        """
        inputs = torch.from_numpy(x - self.source_mean)
        wanted = torch.from_numpy(y - self.target_mean[columns])
        cross = self.cross[:, torch.from_numpy(columns)]
        found = {}
        for strength in strengths:
            factor = self.factor(strength)
            if factor is not None:
                missed = wanted - inputs @ torch.cholesky_solve(cross, factor, upper=True)
                found[strength] = missed.square().sum(0).numpy()
            done(self.flops_of_factor)
        return wanted.square().sum(0).numpy(), found
