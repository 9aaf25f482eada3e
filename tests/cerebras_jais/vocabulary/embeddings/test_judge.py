"""Rows are judged as numpy ranks them, and a grown matrix is the base's rows, new ones and padding at any cut."""

import numpy as np
import pytest

from cerebras_jais.errors import UserError
from cerebras_jais.vocabulary.embeddings.judge import RANKED, judge
from cerebras_jais.vocabulary.embeddings.methods import GrownMatrix, Statistics, drawn
from tests import tolerances
from tests.cerebras_jais.vocabulary.embeddings.test_rows import Stored


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_figures_are_those_of_numpy():
    rng = np.random.default_rng(5)
    base = rng.standard_normal((400, 16)).astype(np.float32) + 1
    mean = base.mean(0)
    ids = rng.choice(400, 150, replace=False)
    made = {"near": base[ids] + rng.standard_normal((150, 16)).astype(np.float32), "mean": np.tile(mean, (150, 1))}
    near, of_mean = judge("head", Stored(base), 400, mean, ids, made, base[ids], lambda flops: None)
    assert (near.method, near.matrix, of_mean.method) == ("near", "head", "mean")
    cosine = (unit(made["near"]) * unit(base[ids])).sum(1).mean()
    assert near.cosine == pytest.approx(cosine, rel=tolerances.SAME_IN_FLOAT32)
    ratio = np.linalg.norm(made["near"], axis=1).mean() / np.linalg.norm(base[ids], axis=1).mean()
    assert near.norm_ratio == pytest.approx(ratio, rel=tolerances.SAME_IN_FLOAT32)
    similar = unit(made["near"][:RANKED].astype(np.float64) - mean) @ unit(base.astype(np.float64) - mean).T
    ranks = 1 + (similar > similar[np.arange(RANKED), ids[:RANKED]][:, None]).sum(1)
    assert near.median_rank == np.median(ranks)
    assert near.reciprocal_rank == pytest.approx((1 / ranks).mean(), rel=tolerances.SAME_IN_FLOAT32)
    assert of_mean.median_rank == 1 + 399 / 2  # all are equally near


@pytest.fixture
def grown():
    base = Stored(np.arange(12, dtype=np.float32).reshape(6, 2))
    made = GrownMatrix(base, kept=4, rows=9, new=frozenset({4, 5, 7}))
    made.mean, made.make = np.float32([-1, -2]), lambda ids: np.array([[number, 100] for number in ids], np.float32)
    return made


def test_any_rows_of_a_grown_matrix_are_those_of_the_whole(grown):
    whole = [[0, 1], [2, 3], [4, 5], [6, 7], [4, 100], [5, 100], [-1, -2], [7, 100], [-1, -2]]
    np.testing.assert_array_equal(grown.read(), whole)
    for start in range(9):
        for stop in range(start, 10):
            np.testing.assert_array_equal(grown.read_rows(start, stop), np.reshape(whole[start:stop], (-1, 2)))
    np.testing.assert_array_equal(grown.read_columns(1, 2), np.array(whole)[:, 1:])
    assert grown.shape == (9, 2)
    assert grown.nbytes == 72


def test_a_row_that_is_not_finite_is_refused(grown):
    grown.make = lambda ids: np.full((len(ids), 2), np.inf, np.float32)
    with pytest.raises(UserError, match="the row of a new token between 4 and 7 is not finite in float32"):
        grown.read()


def test_a_random_row_depends_on_its_id_alone():
    make = drawn(Statistics(np.full(8, 0.5, np.float32), 2.0, 1.0), seed=1, matrix=0)
    np.testing.assert_array_equal(make([7, 9, 11])[1:], make([9, 11]))
    assert not np.array_equal(make([7]), drawn(Statistics(np.full(8, 0.5, np.float32), 2.0, 1.0), 1, 1)([7]))
    rows = make(list(range(4000)))
    assert rows.mean() == pytest.approx(0.5, abs=0.05)  # statistical: 32,000 values
    assert rows.std() == pytest.approx(2.0, rel=0.02)
