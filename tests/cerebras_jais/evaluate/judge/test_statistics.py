"""The interval holds the true rate as often as it says, mirrors with its values, and the sign test is exact."""

import itertools

import numpy as np
import pytest

from cerebras_jais.evaluate.judge.statistics import interval_of_mean, intervals_of_means, sign_test

SIMULATIONS, QUESTIONS = 5000, 80


@pytest.mark.parametrize("ties", [0.0, 0.3])
@pytest.mark.parametrize("rate", [0.2, 0.35, 0.5, 0.65, 0.8])
def test_95_of_100_intervals_hold_the_true_rate(rate, ties):
    """5,000 sets of 80 questions; sets with equal counts have one interval, since the order does not matter."""
    won = rate - ties / 2
    counts = np.random.default_rng(int(100 * rate)).multinomial(QUESTIONS, [won, ties, 1 - won - ties], SIMULATIONS)
    distinct, which = np.unique(counts, axis=0, return_inverse=True)
    values = np.stack([np.repeat([1.0, 0.5, 0.0], row) for row in distinct], axis=1)
    low, high = intervals_of_means(values)[:, which.ravel()]
    assert abs(((low <= rate) & (rate <= high)).mean() - 0.95) <= 0.02


def test_an_interval_of_mirrored_values_is_the_mirror():
    values = np.random.default_rng(1).choice([0.0, 0.5, 1.0], 80)
    low, high = interval_of_mean(values)
    assert interval_of_mean(1 - values) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    assert interval_of_mean(values) == (low, high)
    assert low < values.mean() < high


def test_an_interval_is_near_the_normal_one_of_many_ratings():
    values = np.random.default_rng(2).normal(6, 2, 400).clip(1, 10)
    error = 1.96 * values.std() / 20
    assert interval_of_mean(values) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.02)


def test_the_sign_test_counts_the_outcomes_that_are_as_uneven():
    for count in range(9):
        splits = [sum(flips) for flips in itertools.product((0, 1), repeat=count)]
        for wins in range(count + 1):
            uneven = sum(abs(2 * other - count) >= abs(2 * wins - count) for other in splits)
            assert sign_test(wins, count - wins) == pytest.approx(uneven / len(splits))
    assert sign_test(600, 400) == pytest.approx(2.7e-10, rel=0.1)
