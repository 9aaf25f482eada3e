"""How far a mean over so few questions can be trusted: the bootstrap's interval, and the sign test."""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Of all intervals."""
_RESAMPLES, _AT_ONCE = 10_000, 500
_SEED = 0


def interval_of_mean(values: Any) -> tuple[float, float]:
    """The interval of the mean of at least one value; see `intervals_of_means`."""
    low, high = intervals_of_means(np.asarray(values, np.float64)[:, None])[:, 0]
    return float(low), float(high)


def intervals_of_means(values_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """The percentile bootstrap's intervals of the means of K samples of N values, at LEVEL: [2, K], low and high.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3. The resamples are the same at
    each call, so equal values in an equal order have an equal interval, and 1 - values its mirror.
    """
    count = len(values_NK)
    generator = np.random.default_rng(_SEED)
    blocks = []
    for _ in range(_RESAMPLES // _AT_ONCE):
        times_RN = generator.multinomial(count, np.full(count, 1 / count), size=_AT_ONCE)
        blocks.append(times_RN @ values_NK / count)
    means = np.sort(np.concatenate(blocks).round(9), axis=0)  # sums in different orders differ by rounding
    outside = round((1 - LEVEL) / 2 * _RESAMPLES)
    found: NDArray[np.float64] = means[[outside, -1 - outside]]
    return found


def sign_test(wins: int, losses: int) -> float:
    """How likely so uneven a split, or a more uneven one, is between equals: two-sided and exact; ties are left out."""
    count = wins + losses
    tail: int = sum(comb(count, k) for k in range(max(wins, losses), count + 1))
    return float(min(1.0, 2 * tail / 2**count))
