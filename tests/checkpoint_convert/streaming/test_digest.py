"""The digest of a tensor, against its definition written down again.

Contract: the digest is BLAKE3 of the element type, the shape and the BLAKE3 of each tile, row-major, little-endian;
the order in which pieces come does not matter, nor how they lie in memory; one changed bit, another shape or another
element type gives another digest; what is copied on the way is the piece.
"""

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_convert.streaming.digest import TileDigest

ROWS, COLUMNS = 600, 300


def defined(values: np.ndarray, dtype: str) -> str:
    tiles = (
        [values[i : i + 65536] for i in range(0, len(values), 65536)]
        if values.ndim == 1
        else [
            values[i : i + 256, j : j + 256] for i in range(0, len(values), 256) for j in range(0, values.shape[1], 256)
        ]
    )
    text = f"{dtype} {list(values.shape)}\n".encode()
    return blake3(text + b"".join(blake3(tile.tobytes()).digest() for tile in tiles)).hexdigest()


def digest(values: np.ndarray, dtype: str = "float32", rows: int | None = None, backwards: bool = False) -> str:
    found = TileDigest(values.shape, dtype)
    starts = range(0, len(values), rows or len(values))
    for start in reversed(starts) if backwards else starts:
        piece = values[start : start + (rows or len(values))]
        found.add((start, *(0,) * (values.ndim - 1)), piece)
    return found.hexdigest()


@pytest.fixture
def matrix():
    return np.random.default_rng(0).standard_normal((ROWS, COLUMNS), dtype=np.float32).view("u4")


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 700), st.integers(1, 600), st.sampled_from(["u1", "u2", "u4"]))
def test_a_matrix_of_any_shape_and_width_has_the_digest_that_is_defined(rows, columns, kind):
    values = np.random.default_rng(rows).integers(0, 256, (rows, columns)).astype(kind)
    assert digest(values) == defined(values, "float32")


@pytest.mark.parametrize("size", [1, 65536, 65537, 200_000])
def test_so_does_a_vector(size):
    values = np.arange(size, dtype="u4")
    assert digest(values) == defined(values, "float32")


@pytest.mark.parametrize("backwards", [False, True])
def test_pieces_may_come_in_any_order_and_lie_by_columns(matrix, backwards):
    assert digest(matrix, rows=256, backwards=backwards) == defined(matrix, "float32")
    assert digest(np.asfortranarray(matrix), rows=256, backwards=backwards) == defined(matrix, "float32")


def test_every_bit_the_shape_and_the_element_type_matter(matrix):
    changed = matrix.copy()
    changed[ROWS - 1, COLUMNS - 1] ^= 1
    ways = [matrix, changed, matrix.reshape(COLUMNS, ROWS), matrix.T]
    assert len({digest(way) for way in ways} | {digest(matrix, "int32")}) == len(ways) + 1


def test_what_is_hashed_is_copied_on_the_way(matrix):
    copy = np.zeros_like(matrix)
    TileDigest(matrix.shape, "float32").add((0, 0), matrix, copy_to=copy)
    assert np.array_equal(copy, matrix)
    turned = np.zeros((COLUMNS, ROWS), "u4")
    TileDigest(matrix.shape, "float32").add((0, 0), matrix, copy_to=turned.T)
    assert np.array_equal(turned, matrix.T)
