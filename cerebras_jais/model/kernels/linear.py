"""Linear layers whose float32 products go through oneDNN where MKL does not use the processor's AVX-512.

PyTorch gives a float32 product to MKL, which uses AVX-512 on Intel's processors alone; oneDNN uses it on all. bfloat16
products are oneDNN's in PyTorch itself. Both libraries add float32 products in float32, in orders of their own.

N outputs, K inputs, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cerebras_jais.model.config import SUMMED_AT_ONCE

# Products of two numbers in a matrix product; below, what oneDNN takes to look up its kernel is not made up for.
_LARGE = 2**22
_ROWS_IN_CACHE = 128  # of a product, that `add_product_` adds at a time: up to 1.6 times as quick as all


def _mkl_lacks_avx512() -> bool:
    """Whether the processor has AVX-512 and is not Intel's, as Linux says (elsewhere: no)."""
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "avx512f" in words and "GenuineIntel" not in words


_ONEDNN_IS_QUICKER = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and _mkl_lacks_avx512()
)


class Linear(nn.Linear):
    """torch.nn.Linear through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """x [..., K] -> x W^T + b [..., N], as torch.nn.functional.linear, autocast included."""
    x_TK = x.reshape(-1, x.shape[-1])
    if not _by_onednn(x_TK, weight_NK.t()) or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight_NK, bias_N)
    out: Tensor = _Linear.apply(x_TK, weight_NK, bias_N)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], -1)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices, each of them or its transpose contiguous; without a gradient."""
    if not _by_onednn(a, b):
        return a @ b
    # The kernel reads its first operand by row, and copies it where it lies otherwise: the smaller one then.
    if not a.is_contiguous() and b.shape[1] < a.shape[0]:
        return _onednn(b.t(), a.t(), None).t()
    return _onednn(a, b, None)


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add to `total`, in place, what `matmul` gives, which is never there as a whole where it has to be made first."""
    if _by_onednn(a, b):
        # Of a transposed `a` oneDNN makes the transposed product, whose sum is quick while it is in the cache.
        b_turned = b.t().contiguous()
        for part in _parts(len(total), _ROWS_IN_CACHE):
            total[part] += _onednn(b_turned, a[part].t().contiguous(), None).t()
    elif total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        for part in _parts(len(total), max(1, SUMMED_AT_ONCE // b.shape[1])):
            total[part] += a[part] @ b


def _parts(rows: int, at_once: int) -> Iterator[slice]:
    return (slice(start, start + at_once) for start in range(0, rows, at_once))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_TK, weight_NK)
        return _onednn(x_TK, weight_NK.t(), bias_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor | None, ...]:
        x_TK, weight_NK = ctx.saved_tensors
        grad_TN = grad_TN.contiguous()
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            matmul(grad_TN, weight_NK) if of_x else None,
            matmul(grad_TN.t(), x_TK) if of_weight else None,
            grad_TN.sum(0) if of_bias else None,
        )


def _by_onednn(a: Tensor, b: Tensor) -> bool:
    return (
        _ONEDNN_IS_QUICKER
        and a.device.type == b.device.type == "cpu"
        and a.dtype == b.dtype == torch.float32
        and a.shape[0] * a.shape[1] * b.shape[1] >= _LARGE
        and (b.is_contiguous() or b.t().is_contiguous())
    )


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a b + bias, without a gradient."""
    return _in_graph(a, b, bias) if torch.compiler.is_compiling() else _call(a, b, bias)


def _call(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(a, b.t(), bias, "none", [], "")
    return out


# torch.compile takes PyTorch's own operation with constant weights alone; one that it does not know it calls as it is.
_in_graph = torch.library.custom_op(
    "cerebras_jais::product", _call, mutates_args=(), schema="(Tensor a, Tensor b, Tensor? bias) -> Tensor"
)
_in_graph.register_fake(lambda a, b, bias: a.new_empty(a.shape[0], b.shape[1]))
