"""Matrices are copied with every bit, however either side lies in memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_convert.streaming.transpose import contiguous, copy_transposed

LAYOUTS = {
    "rows": lambda values: values,
    "columns": lambda values: np.asfortranarray(values),
    "part of wider rows": lambda values: np.tile(values, (1, 2))[:, : values.shape[1]],
    "part of longer columns": lambda values: np.tile(values.T, (1, 2))[:, : values.shape[0]].T,
}


@given(
    st.integers(1, 600),
    st.integers(1, 600),
    st.sampled_from("1248"),
    st.sampled_from(list(LAYOUTS)),
    st.sampled_from(list(LAYOUTS)),
)
def test_an_array_is_copied_bit_for_bit(rows, columns, size, source, target):
    values = np.random.default_rng(0).integers(0, 256, (rows, columns * int(size)), np.uint8).view(f"u{size}")
    into = LAYOUTS[target](np.zeros_like(values))
    copy_transposed(LAYOUTS[source](values), into)
    assert np.array_equal(into, values)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1), (256, 256), (257, 600), (1000, 3), (3, 1000)])
def test_what_is_made_contiguous_is_equal(shape, layout):
    values = np.random.default_rng(0).standard_normal(shape).view("u8")
    laid = contiguous(LAYOUTS[layout](values))
    assert laid.flags.c_contiguous and np.array_equal(laid, values)


def test_what_is_contiguous_is_not_copied():
    values = np.zeros((300, 300))
    assert contiguous(values) is values
    assert contiguous(values[0]).base is not None
