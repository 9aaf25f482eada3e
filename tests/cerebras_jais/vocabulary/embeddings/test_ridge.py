"""The ridge of summed moments is the closed formula on whole matrices.

Contract: sums over blocks about any points give what numpy gives in float64 on the centred matrices; held-out errors
are those of the formula at each strength; what is predicted without the map is what the map gives.
"""

import numpy as np
import pytest
import torch

from cerebras_jais.vocabulary.embeddings.ridge import STRENGTHS, Moments, Projection, bfloat16_factors
from tests import tolerances

ROWS, SOURCE, TARGET = 300, 40, 23


@pytest.fixture
def data():
    """Rows of two spaces with means far from 0, and some held out."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((ROWS, SOURCE)) + 5 * rng.standard_normal(SOURCE)
    y = x @ rng.standard_normal((SOURCE, TARGET)) / SOURCE**0.5 + rng.standard_normal((ROWS, TARGET)) + 3
    return x.astype(np.float32), y.astype(np.float32)


def normal_of(x, y, blocks):
    moments = Moments(x[:10].mean(0), y[:10].mean(0))
    for part_x, part_y in zip(np.array_split(x, blocks), np.array_split(y, blocks), strict=True):
        moments.add(part_x, part_y)
    return moments.centred()


def formula(x, y, strength):
    """(X'X + s I)^-1 X'Y of centred matrices in float64."""
    x, y = (matrix.astype(np.float64) - matrix.mean(0, dtype=np.float64) for matrix in (x, y))
    gram = x.T @ x
    return np.linalg.solve(gram + strength * np.trace(gram) / len(gram) * np.eye(len(gram)), x.T @ y)


@pytest.mark.parametrize("blocks", [1, 7])
@pytest.mark.parametrize("strength", [1e-3, 1.0, 1e3])
def test_the_map_is_that_of_the_closed_formula(data, blocks, strength):
    x, y = data
    normal = normal_of(x, y, blocks)
    found = normal.solve(normal.factor(strength))
    np.testing.assert_allclose(found.weight, formula(x, y, strength), rtol=0, atol=tolerances.RIDGE_WEIGHT)
    np.testing.assert_allclose(found.source_mean, x.mean(0, dtype=np.float64), rtol=0, atol=tolerances.RIDGE_WEIGHT)
    np.testing.assert_allclose(found.target_mean, y.mean(0, dtype=np.float64), rtol=0, atol=tolerances.RIDGE_WEIGHT)


def test_values_of_bfloat16_give_the_map_of_the_closed_formula(data):
    """About 0, as they are: with factors of bfloat16 nothing is rounded but the sums."""
    x, y = (torch.from_numpy(matrix).bfloat16().float().numpy() for matrix in data)
    moments = Moments(np.zeros(SOURCE, np.float32), np.zeros(TARGET, np.float32))
    before = torch.get_float32_matmul_precision()
    with bfloat16_factors(True):
        for part in np.array_split(np.arange(ROWS), 3):
            moments.add(x[part], y[part])
    assert torch.get_float32_matmul_precision() == before
    normal = moments.centred()
    found = normal.solve(normal.factor(0.1))
    np.testing.assert_allclose(found.weight, formula(x, y, 0.1), rtol=0, atol=tolerances.RIDGE_WEIGHT)
    np.testing.assert_allclose(
        found(x, in_bfloat16=True), found(x), rtol=0, atol=tolerances.SAME_IN_BFLOAT16 * np.abs(found(x)).max()
    )


def test_two_targets_side_by_side_are_each_alone(data):
    x, y = data
    both, alone = normal_of(x, np.hstack([y, y[:, ::-1]]), 3), normal_of(x, y[:, ::-1].copy(), 3)
    weight = both.solve(both.factor(0.1)).weight[:, TARGET:]
    np.testing.assert_allclose(weight, alone.solve(alone.factor(0.1)).weight, rtol=0, atol=tolerances.RIDGE_WEIGHT)


def test_predictions_without_the_map_are_those_of_the_map(data):
    x, y = data
    normal = normal_of(x[50:], y[50:], 2)
    factor = normal.factor(0.3)
    np.testing.assert_allclose(
        normal.predict(factor, x[:50]), normal.solve(factor)(x[:50]), rtol=0, atol=tolerances.SAME_IN_FLOAT32
    )


def test_held_out_errors_are_those_of_the_formula(data):
    x, y = data
    train, held, columns = slice(50, None), slice(0, 50), np.array([0, 4, 22])
    of_mean, errors = normal_of(x[train], y[train], 2).squared_errors(
        x[held], y[held][:, columns], columns, STRENGTHS, lambda flops: None
    )
    centred = (y[held] - y[train].mean(0))[:, columns]
    np.testing.assert_allclose(of_mean, (centred**2).sum(0), rtol=tolerances.RIDGE_ERRORS_RELATIVE)
    assert list(errors) == list(STRENGTHS)
    for strength, found in errors.items():
        predicted = (x[held] - x[train].mean(0)) @ formula(x[train], y[train], strength)[:, columns]
        np.testing.assert_allclose(found, ((centred - predicted) ** 2).sum(0), rtol=tolerances.RIDGE_ERRORS_RELATIVE)


def test_the_strengths_are_half_decades_from_a_thousandth_to_a_thousand():
    np.testing.assert_allclose(STRENGTHS, np.logspace(-3, 3, 13), rtol=1e-3)


def test_a_matrix_that_rounding_makes_singular_has_no_factor_at_strength_zero():
    x = np.ones((8, 5), np.float32) * np.arange(8, dtype=np.float32)[:, None]
    normal = normal_of(x, x[:, :2].copy(), 1)
    assert normal.factor(0.0) is None
    assert normal.factor(1e-3) is not None


def test_a_projection_is_affine():
    projection = Projection(np.eye(2, dtype=np.float32) * 3, np.float32([1, 2]), np.float32([10, 20]))
    np.testing.assert_array_equal(projection(np.float32([[1, 2], [2, 2]])), [[10, 20], [13, 20]])
