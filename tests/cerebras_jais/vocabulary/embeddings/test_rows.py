"""Rows are read by number, in any order and with repetitions, and only few others with them."""

import numpy as np
import pytest

from cerebras_jais.vocabulary.embeddings.methods import statistics_of
from cerebras_jais.vocabulary.embeddings.rows import mean_rows, read_rows
from tests import tolerances


class Stored:
    """A matrix that counts the rows that are read."""

    dtype, chunk_rows = "float32", None

    def __init__(self, values, chunk_rows=None):
        self.values, self.chunk_rows, self.shape, self.read = values, chunk_rows, values.shape, 0

    def read_rows(self, start, stop):
        self.read += stop - start
        return self.values[start:stop]


@pytest.mark.parametrize("chunk_rows", [None, 50])
def test_rows_come_in_the_order_asked(chunk_rows):
    rng = np.random.default_rng(0)
    stored = Stored(rng.standard_normal((1000, 7)).astype(np.float32), chunk_rows)
    for numbers in (np.array([5, 999, 5, 0]), rng.integers(0, 1000, 300), np.arange(10), np.array([], dtype=np.int64)):
        np.testing.assert_array_equal(read_rows(stored, numbers), stored.values[numbers])


def test_rows_far_apart_are_read_alone():
    stored = Stored(np.zeros((100_000, 3), np.float32))
    read_rows(stored, np.array([7, 90_000, 8, 50_000]))
    assert stored.read == 4


def test_means_of_groups():
    stored = Stored(np.arange(12, dtype=np.float32).reshape(4, 3))
    found = mean_rows(stored, [(0, 2), (), (3,)], np.float32([7, 7, 7]))
    np.testing.assert_array_equal(found, [[3, 4, 5], [7, 7, 7], [9, 10, 11]])


def test_statistics_are_numpys():
    values = np.random.default_rng(1).normal(0.3, 2.0, (500, 9)).astype(np.float32)
    found = statistics_of(Stored(np.vstack([values, np.full((3, 9), 99, np.float32)])), 500)
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=0, atol=tolerances.SAME_IN_FLOAT32)
    assert found.spread == pytest.approx(values.std(), rel=tolerances.SAME_IN_FLOAT32)
    assert found.norm == pytest.approx(np.linalg.norm(values, axis=1).mean(), rel=tolerances.SAME_IN_FLOAT32)
