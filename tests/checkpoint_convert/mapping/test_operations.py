"""Operations move elements and nothing else.

Contract: every operation is undone by its inverse bit for bit, whatever the shapes, element types and values (NaN
payloads and signed zeros included); `shapes` says what `forward` does; each does what its formula says.
"""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_convert.mapping.operations import (
    Chain,
    Identity,
    MergeRows,
    Piece,
    RotaryInterleave,
    SplitRows,
    Transpose,
    forward,
)

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int64]


def random_array(shape, dtype, seed):
    """Random bits, so that floats are NaN, infinite and subnormal too."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8).view(dtype).reshape(shape)


@st.composite
def operation_and_arrays(draw):
    columns = draw(st.integers(1, 6))
    kind = draw(st.sampled_from(["identity", "transpose", "merge", "split", "rotary", "qkv"]))
    sizes = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    operation, rows = Identity(), [draw(st.integers(1, 6))]
    if kind == "transpose":
        operation = Transpose()
    elif kind == "merge":
        operation, rows = MergeRows(sizes), list(sizes)
    elif kind == "split":
        operation, rows = SplitRows(sizes), [sum(sizes)]
    elif kind == "qkv":
        operation, rows = Chain((MergeRows(sizes), Transpose())), list(sizes)
    elif kind == "rotary":
        heads, half, still = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(0, 3))
        operation = RotaryInterleave(heads, 2 * half + still, 2 * half, draw(st.booleans()))
        rows = [heads * (2 * half + still)]
    vector = kind not in ("transpose", "qkv") and draw(st.booleans())
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**32))
    shapes = [(n,) if vector else (n, columns) for n in rows]
    return operation, tuple(random_array(shape, dtype, seed + i) for i, shape in enumerate(shapes))


@settings(deadline=None, max_examples=200)
@given(operation_and_arrays())
def test_every_operation_is_undone_by_its_inverse_bit_for_bit(drawn):
    operation, arrays = drawn
    there = forward(operation, arrays)
    back = forward(operation.inverse, there)
    assert [a.shape for a in there] == list(operation.shapes([a.shape for a in arrays]))
    assert operation.inverse.inverse == operation
    assert [a.tobytes() for a in back] == [a.tobytes() for a in arrays]
    assert [(a.shape, a.dtype) for a in back] == [(a.shape, a.dtype) for a in arrays]


@settings(deadline=None, max_examples=200)
@given(operation_and_arrays(), st.integers(1, 4))
def test_bands_of_the_inputs_give_the_whole_outputs(drawn, units):
    """The operation on bands of any number of units, in any order, is the operation on whole tensors."""
    operation, arrays = drawn
    whole = forward(operation, arrays)
    filled = [np.zeros_like(array) for array in whole]
    rows = units * operation.unit
    bands = [(index, start) for index, array in enumerate(arrays) for start in range(0, len(array), rows)]
    for index, start in reversed(bands):
        values = arrays[index][start : start + rows]
        for piece in operation.move(Piece(index, (start,) + (0,) * (values.ndim - 1), values)):
            filled[piece.tensor][piece.slices] = piece.values
    assert [a.tobytes() for a in filled] == [a.tobytes() for a in whole]


def test_merging_and_transposing_gives_the_columns_of_q_then_k_then_v():
    q, k, v = (np.arange(6).reshape(2, 3) + 10 * i for i in range(3))
    (c_attn,) = forward(Chain((MergeRows((2, 2, 2)), Transpose())), (q, k, v))
    assert c_attn.tolist() == [[0, 3, 10, 13, 20, 23], [1, 4, 11, 14, 21, 24], [2, 5, 12, 15, 22, 25]]


@pytest.mark.parametrize(("heads", "head_dim", "rotary_dim"), [(12, 4, 4), (40, 8, 8), (7, 10, 4), (1, 2, 2)])
def test_interleaving_is_the_reshape_of_halves_to_pairs(heads, head_dim, rotary_dim):
    weight = np.random.default_rng(0).normal(size=(heads * head_dim, 5)).astype(np.float32)
    (pairs,) = forward(RotaryInterleave(heads, head_dim, rotary_dim), (weight,))
    per_head = weight.reshape(heads, head_dim, 5)
    turning = per_head[:, :rotary_dim].reshape(heads, 2, rotary_dim // 2, 5).swapaxes(1, 2)
    wanted = np.concatenate([turning.reshape(heads, rotary_dim, 5), per_head[:, rotary_dim:]], axis=1)
    assert np.array_equal(pairs, wanted.reshape(-1, 5))


def test_interleaving_keeps_rotated_scores():
    """Rotating halves of q and k, or pairs of their interleaved forms, gives the same q.k: the reason to interleave."""
    rng, size, position = np.random.default_rng(1), 8, 5.0
    q, k = rng.normal(size=(2, size))
    angle = position * 10000.0 ** (-np.arange(size // 2) / (size // 2))
    cos, sin = np.cos(angle), np.sin(angle)

    def by_halves(x):
        a, b = x[: size // 2], x[size // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin])

    def by_pairs(x):
        a, b = x[0::2], x[1::2]
        return np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(-1)

    q_pairs, k_pairs = forward(RotaryInterleave(1, size, size), (q, k))
    assert by_halves(q) @ k == pytest.approx(by_pairs(q_pairs) @ k_pairs)
