"""How far a mean over so few questions can be trusted: the bootstrap's interval, and the sign test."""

from __future__ import annotations

from functools import cache
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Of all intervals."""
_RESAMPLES = 10_000
_SEED = 0


@cache
def _shares(count: int) -> NDArray[np.float64]:
    """[resamples, count]: the share that each value has in each resample; the same at each call."""
    drawn = np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    return drawn / count


def interval_of_mean(values: Any) -> tuple[float, float]:
    """The percentile bootstrap's interval of the mean of at least one value, at LEVEL.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3. Equal values in an equal
    order give an equal interval, and 1 - values its mirror, since the resamples are the same.
    """
    values = np.asarray(values, np.float64)
    means = np.sort((_shares(len(values)) @ values).round(9))  # sums of the same numbers, in whatever order
    outside = int((1 - LEVEL) / 2 * _RESAMPLES)
    return float(means[outside]), float(means[-1 - outside])


def sign_test(wins: int, losses: int) -> float:
    """How likely so uneven a split, or a more uneven one, is between equals: two-sided and exact; ties are left out."""
    count = wins + losses
    tail: int = sum(comb(count, k) for k in range(max(wins, losses), count + 1))
    return float(min(1.0, 2 * tail / 2**count))
