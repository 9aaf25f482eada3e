"""Attention by tiles is attention with a mask of every pair.

Contract: output and gradients are those of float64 with the whole mask, with at most twice the error that the kernel
has with the whole mask in float32, for any length, number of heads, interpolation and division into documents;
documents do not see one another; nothing of the size of the mask is made; spans that are not of documents are left to
the mask.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebras_jais.model.alibi import alibi_slopes
from cerebras_jais.model.kernels.tiled import TILE, make_tiling, tiled_attention
from tests.cerebras_jais.model.kernels.masked import SCALE, Largest, assert_as_exact, documents, ends_of, random_heads


def by_tiles(q, k, v, slopes_H, factor, span_BL):
    slopes = None if slopes_H is None else slopes_H / factor
    return tiled_attention(q, k, v, make_tiling(q.shape[2], q.shape[1], slopes, ends_of(span_BL)), SCALE)


def assert_tiles_are_exact(batch, heads, length, slopes_H, factor, span_BL, head_dim=16):
    assert_as_exact(by_tiles, random_heads(batch, heads, length, head_dim), (slopes_H, factor, span_BL))


LENGTHS = st.one_of(
    st.integers(1, 3 * TILE), st.sampled_from([k * TILE + d for k in (1, 2, 3, 4, 6, 7, 8) for d in (-1, 0, 1)])
)


@given(st.integers(1, 3), st.sampled_from([1, 3, 12]), LENGTHS, st.sampled_from([None, 1.0, 4.0]))
@settings(max_examples=12)
def test_whole_rows_of_any_length_are_exact(batch, heads, length, factor):
    slopes = None if factor is None else torch.tensor(alibi_slopes(heads))
    assert_tiles_are_exact(batch, heads, length, slopes, factor, None)


@given(
    st.lists(st.lists(st.integers(1, 2 * TILE), max_size=6), min_size=1, max_size=3),
    st.sampled_from([1, 4]),
    st.sampled_from([None, 1.0]),
    st.integers(0, 5),
)
@settings(max_examples=12)
def test_documents_of_packed_rows_are_exact(rows, heads, factor, more):
    total = max(1, max(map(sum, rows)) + more)
    spans = torch.cat([documents(row, total) for row in rows])
    slopes = None if factor is None else torch.tensor(alibi_slopes(heads))
    assert_tiles_are_exact(len(rows), heads, total, slopes, factor, spans)


@pytest.mark.slow
@pytest.mark.parametrize("heads", [12, 20, 40, 56])
def test_the_heads_of_the_family_are_exact_at_2048_tokens(heads):
    assert_tiles_are_exact(1, heads, 2048, torch.tensor(alibi_slopes(heads)), 1.0, None, head_dim=8)


def test_a_token_of_another_document_changes_nothing():
    span = documents([200, 300, 12], 512)
    q, k, v = (torch.randn(1, 4, 512, 16) for _ in range(3))
    slopes = torch.tensor(alibi_slopes(4))
    before = by_tiles(q, k, v, slopes, 1.0, span)
    k[:, :, 200:500], v[:, :, 200:500] = 9 * k[:, :, 200:500], -v[:, :, 200:500]
    after = by_tiles(q, k, v, slopes, 1.0, span)
    assert torch.equal(before[:, :, :200], after[:, :, :200])
    assert torch.equal(before[:, :, 500:], after[:, :, 500:])
    assert not torch.allclose(before[:, :, 200:500], after[:, :, 200:500])


@pytest.mark.parametrize("packed", [False, True])
def test_nothing_is_made_that_grows_with_the_square_of_the_length(packed):
    heads, head_dim = 8, 16
    made = []
    for length in (1024, 4096):
        q, k, v = (torch.randn(1, heads, length, head_dim, requires_grad=True) for _ in range(3))
        span = documents([500] * (length // 500), length) if packed else None
        with Largest() as largest:
            by_tiles(q, k, v, torch.tensor(alibi_slopes(heads)), 1.0, span).sum().backward()
        made.append(largest.elements)
    assert made[1] <= 4 * max(made[0], heads * 1024 * head_dim)


@pytest.mark.parametrize(
    "ends",
    [[3, 2, 3, 4], [2, 3, 3, 4], [1, 2, 3, 5], [0, 2, 3, 4]],
    ids=["within another", "sliding", "beyond the row", "before itself"],
)
def test_spans_that_are_not_of_documents_are_not_tiled(ends):
    assert make_tiling(4, 2, None, torch.tensor([ends])) is None
