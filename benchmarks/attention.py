"""Attention alone, forward and backward on a CPU: by tiles, with a mask of every pair, and without any bias.

    python benchmarks/attention.py [--length 4096] [--rounds 5] [--errors 2048 16384]

Speed: 16 heads of 128 in float32, one row. The contenders take turns, and the fastest time of each counts. The limit is
PyTorch's causal kernel without a bias. The packed row has documents of 300 to 700 tokens. `column` gives ALiBi as one
more column of queries and keys, filled up to eight, to that kernel.

Errors: two heads of 128, those with the steepest and the flattest slope of 56, against float64, computed a block of
queries at a time; by tiles, by the blocks of a release's code, and with a mask of every pair, which is left out beyond
4,096 tokens. An error is the largest difference over the largest magnitude.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

import torch
import torch.nn.functional as F
from torch import Tensor

from cerebras_jais.model.alibi import alibi_slopes
from cerebras_jais.model.kernels.tiled import make_tiling, tiled_attention
from cerebras_jais.model.positions import alibi_bias_HLS, causal_mask_LS, packed_mask_B1LS

HEADS, SIZE, SCALE = 16, 128, 1 / 128
BLOCK = 512  # queries at a time in float64
LONGEST_MASK = 4096


def random_heads(heads: int, length: int) -> list[Tensor]:
    """Queries, keys, values and the gradient of the output, float32 [1, H, L, D], as the decoder has them."""
    torch.manual_seed(0)
    return [4 * torch.randn(1, length, heads, SIZE).transpose(1, 2) for _ in range(4)]


def spans_of_documents(length: int) -> Tensor:
    """`attention_span` [1, L] of documents of 300 to 700 tokens."""
    draw, spans = random.Random(0), []
    while len(spans) < length:
        size = min(draw.randint(300, 700), length - len(spans))
        spans += range(size - 1, -1, -1)
    return torch.tensor([spans])


def masked_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=SCALE)


def whole_bias(slopes: Tensor, length: int, spans: Tensor | None = None) -> Tensor:
    """ALiBi's bias with -inf at what is not visible, float32 [1, H, L, L]."""
    here = torch.arange(length)
    visible = causal_mask_LS(length, torch.device("cpu"))[None, None] if spans is None else packed_mask_B1LS(spans)
    return torch.where(visible, alibi_bias_HLS(slopes[:, None], here, here, 1.0)[None], float("-inf"))


def with_columns(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """Slope times the key's position as an inner product; the kernel wants values of the same width."""
    length, more = q.shape[2], (*q.shape[:3], 8)
    q_more, k_more = q.new_zeros(more), k.new_zeros(more)
    q_more[..., 0] = slopes[:, None] / SCALE
    k_more[..., 0] = torch.arange(length) - length // 2
    joined = torch.cat((q, q_more), -1), torch.cat((k, k_more), -1), torch.cat((v, v.new_zeros(more)), -1)
    return F.scaled_dot_product_attention(*joined, is_causal=True, scale=SCALE)[..., :SIZE]


def both_ways(attend: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Output, and the gradients of queries, keys and values."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attend(*leaves)
    out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def measure_speed(length: int, rounds: int) -> None:
    *inputs, grad = random_heads(HEADS, length)
    slopes, spans = torch.tensor(alibi_slopes(HEADS)), spans_of_documents(length)

    def packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ends = spans + torch.arange(1, length + 1)
        return tiled_attention(q, k, v, make_tiling(length, HEADS, slopes, ends), SCALE)

    contenders: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "no bias (limit)": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE),
        "tiles": lambda q, k, v: tiled_attention(q, k, v, make_tiling(length, HEADS, slopes, None), SCALE),
        "tiles, packed row": packed,
        "column": lambda q, k, v: with_columns(q, k, v, slopes),
        "mask": lambda q, k, v: masked_attention(q, k, v, whole_bias(slopes, length)),
        "mask, packed row": lambda q, k, v: masked_attention(q, k, v, whole_bias(slopes, length, spans)),
    }
    best: dict[str, float] = {}
    for _ in range(rounds + 1):  # the first warms up
        for name, attend in contenders.items():
            start = time.perf_counter()
            both_ways(attend, inputs, grad)
            best[name] = min(best.get(name, float("inf")), time.perf_counter() - start)
    limit = best["no bias (limit)"]
    print(f"{HEADS} heads of {SIZE}, {length:,} tokens, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, seconds in best.items():
        print(f"  {name:<20}{seconds * 1000:8.0f} ms {seconds / limit:6.2f} x the limit")
    print(f"  a packed row takes 1/{best['tiles'] / best['tiles, packed row']:.1f} of a plain one's time")


def exact(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, slopes: Tensor) -> list[Tensor]:
    """Output and gradients in float64, by the formulas of softmax and its derivative."""
    q, k, v, grad, slopes = (x.double() for x in (q, k, v, grad, slopes))
    out, dq, dk, dv = (torch.zeros_like(q) for _ in range(4))
    for start in range(0, q.shape[2], BLOCK):
        rows, keys = slice(start, start + BLOCK), slice(0, start + BLOCK)
        distance = torch.arange(start, min(start + BLOCK, q.shape[2]))[:, None] - torch.arange(q.shape[2])[keys]
        scores = SCALE * q[:, :, rows] @ k[:, :, keys].mT - slopes[:, None, None] * distance
        p = torch.where(distance >= 0, scores, float("-inf")).softmax(-1)
        out[:, :, rows] = p @ v[:, :, keys]
        along = (grad[:, :, rows] * out[:, :, rows]).sum(-1, keepdim=True)
        ds = SCALE * p * (grad[:, :, rows] @ v[:, :, keys].mT - along)
        dq[:, :, rows] = ds @ k[:, :, keys]
        dk[:, :, keys] += ds.mT @ q[:, :, rows]
        dv[:, :, keys] += p.mT @ grad[:, :, rows]
    return [out, dq, dk, dv]


def release_attention(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """As the code of a release does it in transformers, by blocks of queries."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from checkpoint_convert.hf_code.blocks_jais import Blocks, attend_by_blocks
    from checkpoint_convert.hf_code.masks_jais import Visibility

    module = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"), is_causal=True)
    sees = Visibility(q.transpose(1, 2).flatten(2), None, torch.arange(q.shape[2]))
    blocks = Blocks(sees, None, q.dtype)
    out_BLHD = attend_by_blocks(sdpa_attention_forward, module, q, k, v, slopes, blocks, scaling=SCALE, dropout=0.0)
    return out_BLHD.transpose(1, 2)


def measure_errors(length: int) -> None:
    *inputs, grad = random_heads(2, length)
    slopes = torch.tensor(sorted(alibi_slopes(56)))[[0, -1]]
    right = exact(*inputs, grad, slopes)
    ways: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "tiles": lambda q, k, v: tiled_attention(q, k, v, make_tiling(length, 2, slopes, None), SCALE),
        "release's blocks": lambda q, k, v: release_attention(q, k, v, slopes),
        "mask": lambda q, k, v: masked_attention(q, k, v, whole_bias(slopes, length)),
    }
    print(f"errors at {length:,} tokens: output and gradients of queries, keys and values")
    for name, attend in ways.items():
        if name != "mask" or length <= LONGEST_MASK:
            found = both_ways(attend, inputs, grad)
            errors = ((a - b).abs().max() / b.abs().max() for a, b in zip(found, right, strict=True))
            print(f"  {name:<20}" + "  ".join(f"{error.item():.1e}" for error in errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--errors", type=int, nargs="*", default=[2048, 16384], metavar="LENGTH")
    options = parser.parse_args()
    measure_speed(options.length, options.rounds)
    for length in options.errors:
        measure_errors(length)


if __name__ == "__main__":
    main()
