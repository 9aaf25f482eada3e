"""The matrices of generation, in one of three element types, each in the layout in which one token reads it quickest.

N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cerebras_jais.errors import UserError
from cerebras_jais.model.precision import cpu_multiplies_bfloat16

Weights = Literal["float32", "bfloat16", "int4"]
WEIGHTS: tuple[Weights, ...] = ("float32", "bfloat16", "int4")
_GROUP = 32  # numbers of an int4 row that share a scale and a zero
_ROWS = 4096  # of a matrix that are rounded at once
_TOKENS = 8  # that oneDNN chooses a layout for: as quick for 1 as its layout for 1, and twice as quick for 8
# Numbers of a matrix. A smaller one is kept in a second layout for one token: in the 10 us in which oneDNN looks up its
# kernel, 0.2 million float32 numbers are read. The smallest have that of MKL in float32, which starts quickest.
_LARGE, _SMALL = 2**20, 2**17
# Numbers of a row of that layout: long enough to be read at full rate, and a sum that fits into AVX512's registers.
_NARROWEST, _WIDEST = 64, 384


def activation_dtype(weights: Weights) -> torch.dtype:
    """The type of what goes between the matrices."""
    return torch.float32 if weights == "float32" else torch.bfloat16


def check_weights(weights: str, device: torch.device) -> None:
    """Raise UserError for an element type that is not known, or that this torch or device has no kernel for."""
    if weights not in WEIGHTS:
        raise UserError(f"weights {weights!r}: known: {', '.join(WEIGHTS)}")
    if weights == "int4" and device.type != "cpu":
        raise UserError(f"int4 weights are for a CPU, not for {device.type}; take bfloat16")
    if weights == "int4" and not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        raise UserError(f"int4 weights need torch 2.6 or later, and this is {torch.__version__}; take bfloat16")


def linear(weight_NK: Tensor, bias_N: Tensor | None, weights: Weights) -> Callable[[Tensor], Tensor]:
    """A function x [..., K] -> x W^T + b [..., N] of activations of `activation_dtype(weights)`.

    A matrix whose sizes int4 does not divide (N by 16, K by 32) is kept in bfloat16.
    """
    dtype = activation_dtype(weights)
    bias_N = None if bias_N is None else bias_N.to(dtype)
    if weights == "int4" and weight_NK.shape[0] % 16 == 0 and weight_NK.shape[1] % _GROUP == 0:
        return _int4(weight_NK, bias_N)
    weight_NK = weight_NK.to(dtype)
    if not _has_onednn(weight_NK):
        return lambda x: F.linear(x, weight_NK, bias_N)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_NK.contiguous(), _TOKENS)
    product = torch.ops.mkldnn._linear_pointwise.default
    if weight_NK.numel() >= _LARGE:
        return lambda x: product(x, packed, bias_N, "none", [], "")
    one_token, inputs = _for_one_token(weight_NK, bias_N), weight_NK.shape[1]
    return lambda x: one_token(x) if x.numel() == inputs else product(x, packed, bias_N, "none", [], "")


def _has_onednn(weight_NK: Tensor) -> bool:
    if weight_NK.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight_NK.dtype == torch.float32 or cpu_multiplies_bfloat16()


def _for_one_token(weight_NK: Tensor, bias_N: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The function of `linear` for an x of K numbers."""
    if weight_NK.dtype == torch.float32 and weight_NK.numel() < _SMALL:
        by_column = weight_NK.t().contiguous().t()  # MKL reads it a third quicker than by row
        return lambda x: F.linear(x, by_column, bias_N)
    return _sum_of_columns(weight_NK, bias_N)


def _sum_of_columns(weight_NK: Tensor, bias_N: Tensor | None) -> Callable[[Tensor], Tensor]:
    """x W^T + b as the sum of W's columns times the numbers of x, and of b times 1; one call at a time.

    PyTorch computes weighted sums of a table's rows, as `embedding_bag`, at the rate at which memory is read, and one
    thread makes one sum. The outputs are therefore cut into blocks, as many for each thread: a block is a table of
    K + 1 rows, and its outputs are their sum.
    """
    outputs, inputs = weight_NK.shape
    threads = max(1, min(torch.get_num_threads(), outputs // _NARROWEST))
    fewest = threads * -(-outputs // (threads * _WIDEST))
    blocks = next((n for n in range(fewest, 2 * fewest, threads) if outputs % n == 0), fewest)
    width = -(-outputs // blocks)
    bias_N = weight_NK.new_zeros(outputs) if bias_N is None else bias_N
    padded = F.pad(torch.cat([weight_NK, bias_N[:, None]], dim=1), (0, 0, 0, blocks * width - outputs))
    table = padded.view(blocks, width, inputs + 1).transpose(1, 2).contiguous().view(-1, width)
    rows = torch.arange(len(table), dtype=torch.int32)
    starts = rows[:: inputs + 1].contiguous()
    factors = weight_NK.new_ones(blocks, 1, inputs + 1)
    x_B1K, factors_R = factors[..., :-1], factors.view(-1)

    def apply(x: Tensor) -> Tensor:
        x_B1K.copy_(x)
        sums = torch.embedding_bag(table, rows, starts, False, 0, False, factors_R)[0]
        out = sums.view(*x.shape[:-1], -1)
        return out if out.shape[-1] == outputs else out[..., :outputs]

    return apply


def _int4(weight_NK: Tensor, bias_N: Tensor | None) -> Callable[[Tensor], Tensor]:
    packed, scales_zeros = rounded_to_int4(weight_NK)
    product = torch.ops.aten._weight_int4pack_mm_for_cpu.default

    def apply(x: Tensor) -> Tensor:
        out: Tensor = product(x.reshape(-1, x.shape[-1]), packed, _GROUP, scales_zeros)
        if bias_N is not None:
            out += bias_N
        return out.view(*x.shape[:-1], -1)

    return apply


def rounded_to_int4(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as PyTorch's kernel reads it: packed numbers q of 0 to 15, and [K / 32, N, 2] of scale and zero.

    Each 32 neighbours of a row become (q - 8) * scale + zero, with scale and zero in bfloat16, so that their least and
    largest are the ends of the range: 5 bits a number.
    """
    packed, parameters = [], []
    for begin in range(0, len(weight_NK), _ROWS):
        rows_NGK = weight_NK[begin : begin + _ROWS].float().view(-1, weight_NK.shape[1] // _GROUP, _GROUP)
        least, largest = rows_NGK.aminmax(dim=-1, keepdim=True)
        # Rounded first, so that q makes up for what they lose.
        scale = ((largest - least) / 15).clamp(min=1e-30).bfloat16()
        zero = (least + 8 * scale.float()).bfloat16()
        q_NGK = ((rows_NGK - zero.float()) / scale.float() + 8).round_().clamp_(0, 15)
        packed.append(torch.ops.aten._convert_weight_to_int4pack_for_cpu(q_NGK.flatten(1).int(), 1))
        parameters.append(torch.cat([scale, zero], dim=-1))
    return torch.cat(packed), torch.cat(parameters).transpose(0, 1).contiguous()
