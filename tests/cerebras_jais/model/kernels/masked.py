"""What the tests of the kernels compare with: attention with a mask of every pair, in float64."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cerebras_jais.model.positions import alibi_bias_HLS, causal_mask_LS, packed_mask_B1LS

SCALE = 0.3


def documents(lengths, total):
    """Spans [1, total] of documents of these lengths, each token after them a document of its own."""
    lengths = [*lengths, *[1] * (total - sum(lengths))]
    return torch.cat([torch.arange(length - 1, -1, -1) for length in lengths])[None]


def ends_of(span_BL):
    """Position after the last token of each token's document, or None where there are no spans."""
    return None if span_BL is None else span_BL + torch.arange(1, span_BL.shape[1] + 1, device=span_BL.device)


def whole_bias(q, slopes_H, factor, span_BL):
    """What is added to the scores of every pair, float32 on the device of the queries."""
    length = q.shape[2]
    visible = causal_mask_LS(length, q.device)[None, None] if span_BL is None else packed_mask_B1LS(span_BL)
    bias = torch.zeros(1, device=q.device)
    if slopes_H is not None:
        here = torch.arange(length, device=q.device)
        bias = alibi_bias_HLS(slopes_H[:, None], here, here, factor)[None]
    # Not -inf, of which the kernel of torch 2.4 makes NaN where a query sees none of the keys that it takes at a time.
    return torch.where(visible, bias, -1e30)


def with_mask(q, k, v, slopes_H, factor, span_BL):
    bias = whole_bias(q, slopes_H, factor, span_BL).to(q.dtype)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=SCALE)


def results(attend, inputs, grad, dtype, *words):
    leaves = [x.to(dtype).detach().requires_grad_() for x in inputs]
    out = attend(*leaves, *words)
    out.backward(grad.to(dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def random_heads(batch, heads, length, head_dim, device="cpu", dtype=torch.float32):
    """Queries, keys, values and a gradient as the decoder has them: views of [B, L, H, D].

    Wide scores, so that softmax is neither flat nor one token's.
    """
    torch.manual_seed(length)
    shape = (batch, length, heads, head_dim)
    return [(2 * torch.randn(shape)).to(device, dtype).transpose(1, 2) for _ in range(4)]


def assert_as_exact(attend, heads_of, words):
    """Output and gradients have at most twice the error of the kernel with a mask in float32, against float64."""
    *inputs, grad = heads_of
    exact = results(with_mask, inputs, grad, torch.float64, *words)
    masked = results(with_mask, inputs, grad, torch.float32, *words)
    fused = results(attend, inputs, grad, torch.float32, *words)
    for name, found, other, right in zip(("out", "q", "k", "v"), fused, masked, exact, strict=True):
        allowed = 2 * (other - right).abs().max() + 1e-7 * right.abs().max()
        assert (found - right).abs().max() <= allowed, name


class Largest(TorchDispatchMode):
    """Notes the largest number of elements that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        return out
