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
from torch.utils._python_dispatch import TorchDispatchMode

from cerebras_jais.model.alibi import alibi_slopes
from cerebras_jais.model.positions import alibi_bias_HLS, causal_mask_LS, packed_mask_B1LS
from cerebras_jais.model.tiled import TILE, make_tiling, tiled_attention

SCALE = 0.3


def documents(lengths, total):
    """Spans [1, total] of documents of these lengths, each token after them a document of its own."""
    lengths = [*lengths, *[1] * (total - sum(lengths))]
    return torch.cat([torch.arange(length - 1, -1, -1) for length in lengths])[None]


def with_mask(q, k, v, slopes_H, factor, span_BL):
    length = q.shape[2]
    visible = causal_mask_LS(length, "cpu")[None, None] if span_BL is None else packed_mask_B1LS(span_BL)
    bias = torch.zeros(1)
    if slopes_H is not None:
        here = torch.arange(length)
        bias = alibi_bias_HLS(slopes_H[:, None], here, here, factor)[None]
    bias = torch.where(visible, bias, float("-inf")).to(q.dtype)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=SCALE)


def by_tiles(q, k, v, slopes_H, factor, span_BL):
    ends = None if span_BL is None else span_BL + torch.arange(1, q.shape[2] + 1)
    slopes = None if slopes_H is None else slopes_H / factor
    return tiled_attention(q, k, v, make_tiling(q.shape[2], q.shape[1], slopes, ends), SCALE)


def results(attend, inputs, grad, dtype, *words):
    leaves = [x.to(dtype).detach().requires_grad_() for x in inputs]
    out = attend(*leaves, *words)
    out.backward(grad.to(dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def assert_as_exact(batch, heads, length, slopes_H, factor, span_BL, head_dim=16):
    torch.manual_seed(length)
    # As the decoder has them: views of [B, L, H, D]. Wide scores, so that softmax is neither flat nor one token's.
    *inputs, grad = (2 * torch.randn(batch, length, heads, head_dim).transpose(1, 2) for _ in range(4))
    words = (slopes_H, factor, span_BL)
    exact = results(with_mask, inputs, grad, torch.float64, *words)
    masked = results(with_mask, inputs, grad, torch.float32, *words)
    tiled = results(by_tiles, inputs, grad, torch.float32, *words)
    for name, found, before, right in zip(("out", "q", "k", "v"), tiled, masked, exact, strict=True):
        allowed = 2 * (before - right).abs().max() + 1e-7 * right.abs().max()
        assert (found - right).abs().max() <= allowed, name


LENGTHS = st.one_of(
    st.integers(1, 3 * TILE), st.sampled_from([k * TILE + d for k in (1, 2, 3, 4, 6, 7, 8) for d in (-1, 0, 1)])
)


@given(st.integers(1, 3), st.sampled_from([1, 3, 12]), LENGTHS, st.sampled_from([None, 1.0, 4.0]))
@settings(max_examples=12)
def test_whole_rows_of_any_length_are_exact(batch, heads, length, factor):
    slopes = None if factor is None else torch.tensor(alibi_slopes(heads))
    assert_as_exact(batch, heads, length, slopes, factor, None)


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
    assert_as_exact(len(rows), heads, total, slopes, factor, spans)


@pytest.mark.slow
@pytest.mark.parametrize("heads", [12, 20, 40, 56])
def test_the_heads_of_the_family_are_exact_at_2048_tokens(heads):
    assert_as_exact(1, heads, 2048, torch.tensor(alibi_slopes(heads)), 1.0, None, head_dim=8)


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


class Largest(TorchDispatchMode):
    """Notes the largest number of elements that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        return out


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
