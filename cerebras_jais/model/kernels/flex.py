"""Causal attention in memory linear in the length on a GPU: ALiBi or none, whole rows or the documents of packed rows.

FlexAttention compiles a kernel that adds the bias to each score in float32, from a distance in whole numbers, and that
computes only the blocks of BLOCK x BLOCK pairs in which a query sees a key. The blocks are found from the ends of the
documents; their lists take (L / BLOCK)^2 numbers per row, 64 KiB at 16,384 tokens. PyTorch's `create_block_mask` makes
a mask of every pair first, 256 MiB per row there, or compiles a second kernel to avoid it.

Not taken: ALiBi as further columns of q and k for the plain causal kernel. 16 bits hold a slope in three parts and a
position in two, so a head of 128 would have 134 columns, which the kernel fills up, and scores as large as slope * L,
which float32 rounds by 10^-3 at 16,384 tokens where the distance itself is exact; and it knows no documents.

B batch, H query heads, G key/value heads, L length, D head size, N blocks of a row, T tokens of a block.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.torch_version import TorchVersion

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
# Compiled forms of FlexAttention in one process: whole or packed rows, one row or several, few tokens, the lengths of
# the phases, with gradients or without. Beyond its limit, 8, PyTorch computes every pair.
_GRAPHS = 64


@dataclass(frozen=True)
class FlexMask:
    """What tokens of rows of one length add to one another's scores, and which see which; the same for all layers."""

    add_bias: Callable[..., Tensor] | None
    blocks: BlockMask
    kernel: Callable[..., Any]
    """FlexAttention, compiled."""

    def attend(self, q_BHLD: Tensor, k_BGLD: Tensor, v_BGLD: Tensor, scale: float) -> Tensor:
        """softmax(scale * q.k + bias) v over the visible keys of each query, [B, H, L, D].

        Args:
            q_BHLD, k_BGLD, v_BGLD: queries, keys and values, of one type: float32, bfloat16 or float16.
        """
        size = q_BHLD.shape[-1]
        # The kernels multiply blocks whose sides are powers of two; PyTorch 2.7 takes no other head size.
        fill = max(16, 1 << (size - 1).bit_length()) - size
        if fill:
            q_BHLD, k_BGLD, v_BGLD = (F.pad(x, (0, fill)) for x in (q_BHLD, k_BGLD, v_BGLD))
        out_BHLD: Tensor = self.kernel(
            q_BHLD,
            k_BGLD,
            v_BGLD,
            score_mod=self.add_bias,
            block_mask=self.blocks,
            scale=scale,
            enable_gqa=q_BHLD.shape[1] != k_BGLD.shape[1],
        )
        return out_BHLD[..., :size]


def flex_serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this PyTorch has FlexAttention for rows of any length in `dtype` on this device.

    That is release 2.7 with Triton on a GPU of compute capability 8 or more, whose kernels know bfloat16. Release 2.6
    has no kernel for the gradients of 16-bit heads of 128.
    """
    return (
        device.type == "cuda"
        and dtype in (torch.float32, torch.bfloat16, torch.float16)
        and torch.__version__ >= TorchVersion("2.7")
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(device)[0] >= 8
    )


def make_flex_mask(
    length: int,
    slopes_H: Tensor | None,
    ends_BL: Tensor | None,
    device: torch.device,
    kernel: Callable[..., Any] | None = None,
) -> FlexMask:
    """The mask of rows [B, length].

    Args:
        slopes_H: ALiBi's slopes over the interpolation factor, float32; None without ALiBi.
        ends_BL: position after the last query that may attend to each key; None where each row is one document.
        device: of the rows.
        kernel: FlexAttention; None compiles it.
    """
    from torch.nn.attention.flex_attention import BlockMask

    part, whole = _visible_blocks(length, ends_BL, device)
    blocks = BlockMask.from_kv_blocks(
        *_listed(part),
        *_listed(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=_causal if ends_BL is None else _causal_until(ends_BL.to(torch.int32)),
        seq_lengths=(length, length),
    )
    return FlexMask(None if slopes_H is None else _alibi(slopes_H), blocks, kernel or _compiled())


def _alibi(slopes_H: Tensor) -> Callable[..., Tensor]:
    def add_bias(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score - slopes_H[h] * (q - k)

    return add_bias


def _causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return q >= k


def _causal_until(ends_BL: Tensor) -> Callable[..., Tensor]:
    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (q < ends_BL[b, k])

    return visible


@functools.cache
def _compiled() -> Callable[..., Any]:
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
    return torch.compile(flex_attention)


def _visible_blocks(length: int, ends_BL: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of which blocks of keys a block of queries sees some pairs, and of which all, bool [1 or B, 1, N, N]."""
    count = -(-length // BLOCK)
    number_N = torch.arange(count, device=device)
    query_N1, key_N = number_N[:, None], number_N
    seen = (key_N <= query_N1)[None, None]
    # Of the last block of queries, where it is not full, the kernels check the length only with the mask.
    whole = ((key_N < query_N1) & (query_N1 < length // BLOCK))[None, None]
    if ends_BL is not None:
        ends_BNT = F.pad(ends_BL, (0, count * BLOCK - length)).view(-1, count, BLOCK)
        last_B11N, first_B11N = (ends_BN[:, None, None] for ends_BN in (ends_BNT.amax(-1), ends_BNT.amin(-1)))
        seen = seen & (last_B11N > query_N1 * BLOCK)
        whole = whole & (first_B11N >= (query_N1 + 1) * BLOCK)
    return seen & ~whole, whole


def _listed(visible_B1NN: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, int32 [B, 1, N], and their numbers first, [B, 1, N, N]."""
    visible_B1NN = visible_B1NN.contiguous()  # the kernels expect it of the lists
    order = visible_B1NN.to(torch.int32).argsort(dim=-1, descending=True, stable=True)
    return visible_B1NN.sum(-1, dtype=torch.int32), order.to(torch.int32)
