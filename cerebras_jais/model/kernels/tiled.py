"""Causal attention in memory linear in the length: ALiBi or none, over whole rows or the documents of packed rows.

As a mask of every pair of tokens ALiBi takes heads x length x length numbers, and a kernel that is given a mask also
computes what lies above the diagonal. Here a row is cut into tiles of TILE tokens.

- Within a tile a mask of every pair is exact and small.
- The cut before token c, with h the largest power of two times TILE that divides c, has a rectangle: the queries
  [c, c + h) with the keys [c - h, c). Each pair of tokens of two tiles is in the rectangle of one cut alone. None of
  them is masked, and their bias -slope * (i - j) is -slope * (i - c), which moves all scores of a query alike, and
  -slope * (c - j), one number per key, which the kernel adds at no cost. As both count from the cut, the biases of near
  tokens are small numbers, and float32 rounds them no more than a mask of every pair.

The rectangles of one h are one call of the kernel. In a packed row, only the document that a cut divides has pairs in
its rectangle, and they are a rectangle again: nothing is computed across documents. The parts of a query are joined by
the logarithms of their sums; going backward, each part is given the sum of the whole row (FlashAttention,
arXiv:2205.14135, appendix B).

The kernel is PyTorch's for CPUs, which takes these masks in all supported versions.

B batch, H heads, L length, D head size, P rectangles or tiles of one call, Q and K queries and keys of each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TILE = 128
_TILE_BIAS_BYTES = 2**25  # of the masks of one call, where documents divide tiles

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class _Part:
    """What one call computes: block p has the queries from `query + p * step` on and the keys from `key + p * step`.

    The keys end where the queries begin, or are the same tokens: a tile.
    """

    rows: slice
    query: int
    key: int
    queries: int
    keys: int
    blocks: int = 1
    step: int = 1
    divided: bool = False
    """Whether documents end within these tiles, which then need masks of their own."""

    @property
    def is_tile(self) -> bool:
        return self.query == self.key

    def of_queries(self, x: Tensor) -> Tensor:
        return self._blocks(x, self.query, self.queries)

    def of_keys(self, x: Tensor) -> Tensor:
        return self._blocks(x, self.key, self.keys)

    def joined(self, x_BP: Tensor) -> Tensor:
        """[B, P, ...] as the batch of a call."""
        return x_BP.flatten(0, 1)

    def parted(self, x: Tensor) -> Tensor:
        """The batch of a call as [B, P, ...]."""
        return x.view(-1, self.blocks, *x.shape[1:])

    def _blocks(self, x_BHL: Tensor, start: int, size: int) -> Tensor:
        """The blocks of [B, H, L, ...] as a view [B, P, H, size, ...]."""
        end = start + (self.blocks - 1) * self.step + size
        windows = x_BHL[self.rows, :, start:end].unfold(2, size, self.step)  # [B, H, P, ..., size]
        return windows.movedim(2, 1).movedim(-1, 3)


@dataclass(frozen=True)
class Tiling:
    """How rows of one length are cut, and their biases; the same for all layers."""

    parts: tuple[_Part, ...]
    heads: int
    starts_BL: Tensor | None
    """Position of the first token of each token's document, int64; None where each row is one document."""
    bias_HL: Tensor | None
    """-slope * distance, float32, of distances L ... 1; None without ALiBi."""

    def attend(self, q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, scale: float) -> Tensor:
        """See `tiled_attention`."""
        out: Tensor = tiled_attention(q_BHLD, k_BHLD, v_BHLD, self, scale)
        return out

    def bias_of(self, part: _Part) -> Tensor | None:
        """What is added to the scores of a part, [1 or B * P, H, Q or 1, K]; of a rectangle, the share of its keys."""
        if not part.is_tile:
            return None if self.bias_HL is None else self.bias_HL[None, :, None, -part.keys :]
        device = torch.device("cpu")
        here = torch.arange(part.queries, device=device)
        distance = here[:, None] - here[None, :]
        if self.bias_HL is None:
            bias = torch.zeros(1, 1, *distance.shape)
        else:
            by_distance = torch.nn.functional.pad(self.bias_HL, (0, 1))  # distances L ... 0
            bias = by_distance[None, :, -1 - distance.clamp(min=0)]
        visible = (distance >= 0)[None, None]
        if part.divided and self.starts_BL is not None:
            starts = part.joined(part.of_queries(self.starts_BL[:, None]))  # [B * P, 1, Q]
            offsets = part.query + part.step * torch.arange(part.blocks, device=device)
            offsets = offsets.repeat(starts.shape[0] // part.blocks)[:, None, None, None]
            visible = visible & (starts[..., None] - offsets <= here)
        return torch.where(visible, bias, float("-inf")).expand(-1, self.heads, -1, -1)

    def bias_of_queries(self, part: _Part) -> Tensor | None:
        """The share of a rectangle's queries, -slope * (i - c), [1, H, Q]; None where it is zero."""
        if part.is_tile or self.bias_HL is None:
            return None
        return torch.nn.functional.pad(self.bias_HL, (0, 1))[None, :, -part.queries :].flip(-1)


def make_tiling(length: int, heads: int, slopes_H: Tensor | None, ends_BL: Tensor | None) -> Tiling | None:
    """The tiling of rows [B, length]; None where `ends_BL` is not that of documents one after another.

    Args:
        heads: number of query heads.
        slopes_H: ALiBi's slopes over the interpolation factor, float32; None without ALiBi.
        ends_BL: position after the last token of each token's document, int64; None where each row is one document.
    """
    bias = None
    if slopes_H is not None:
        bias = -slopes_H.float()[:, None] * torch.arange(length, 0, -1, dtype=torch.float32)
    if ends_BL is None:
        return Tiling(tuple(_parts(length)), heads, None, bias)
    starts = _starts(ends_BL)
    if starts is None:
        return None
    return Tiling(tuple(_parts_of_documents(starts, ends_BL, heads)), heads, starts, bias)


def _starts(ends_BL: Tensor) -> Tensor | None:
    """Where the document of each token starts, from where it ends."""
    here = torch.arange(ends_BL.shape[1]).expand_as(ends_BL)
    first = torch.ones_like(ends_BL, dtype=torch.bool)
    first[:, 1:] = ends_BL[:, :-1] == here[:, 1:]
    starts = torch.where(first, here, 0).cummax(dim=1).values
    valid = (ends_BL == ends_BL.gather(1, starts)).all() and (ends_BL > here).all() and (ends_BL <= len(here[0])).all()
    return starts if valid else None


def _parts(length: int) -> Iterator[_Part]:
    every = slice(None)
    for size, start, blocks in _tiles(length):
        yield _Part(every, start, start, size, size, blocks, TILE)
    height = TILE
    while height < length:
        whole = length // (2 * height)
        if whole:
            yield _Part(every, height, 0, height, height, whole, 2 * height)
        cut = height + whole * 2 * height
        if cut < length:  # the last queries are fewer
            yield _Part(every, cut, cut - height, length - cut, height)
        height *= 2


def _tiles(length: int) -> Iterator[tuple[int, int, int]]:
    """Size, start and number of the whole tiles, and of what is left."""
    whole, rest = divmod(length, TILE)
    if whole:
        yield TILE, 0, whole
    if rest:
        yield rest, whole * TILE, 1


def _parts_of_documents(starts_BL: Tensor, ends_BL: Tensor, heads: int) -> Iterator[_Part]:
    batch, length = starts_BL.shape
    for size, start, blocks in _tiles(length):
        firsts = torch.arange(start, start + blocks * TILE, TILE)
        divided = (starts_BL[:, firsts + size - 1] > firsts).tolist()
        for row in range(batch):
            yield from _runs_of_tiles(slice(row, row + 1), size, start, divided[row], heads)
    cuts = range(TILE, length, TILE)
    for row in range(batch):
        document_starts, document_ends = (
            starts_BL[row, cuts.start :: TILE].tolist(),
            ends_BL[row, cuts.start :: TILE].tolist(),
        )
        for cut, start, end in zip(cuts, document_starts, document_ends, strict=True):
            if start < cut:
                height = cut & -cut  # the largest power of two that divides the cut
                key = max(start, cut - height)
                yield _Part(slice(row, row + 1), cut, key, min(end, cut + height) - cut, cut - key)


def _runs_of_tiles(rows: slice, size: int, start: int, divided: list[bool], heads: int) -> Iterator[_Part]:
    """Tiles one after another that need no mask of their own, or all need one, are one call."""
    for is_divided, run in itertools.groupby(divided):
        left = len(list(run))
        most = max(1, _TILE_BIAS_BYTES // (4 * heads * size**2)) if is_divided else left
        while left:
            blocks = min(left, most)
            yield _Part(rows, start, start, size, size, blocks, TILE, is_divided)
            start, left = start + blocks * TILE, left - blocks


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiling: Tiling, scale: float) -> Tensor:
        out, sums = _empty_like(q), q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32).transpose(1, 2)
        for part in tiling.parts:
            found, logsum = _attend(
                part.joined(part.of_queries(q)),
                part.joined(part.of_keys(k)),
                part.joined(part.of_keys(v)),
                attn_mask=tiling.bias_of(part),
                scale=scale,
            )
            mine, mine_sum, found = part.of_queries(out), part.of_queries(sums), part.parted(found)
            share = tiling.bias_of_queries(part)
            logsum = part.parted(logsum if share is None else logsum + share)
            if part.is_tile:
                mine.copy_(found)
                mine_sum.copy_(logsum)
            else:
                mine.lerp_(found, torch.sigmoid(logsum - mine_sum)[..., None].to(found.dtype))
                mine_sum.copy_(torch.logaddexp(mine_sum, logsum))
        ctx.save_for_backward(q, k, v, out, sums)
        ctx.tiling, ctx.scale = tiling, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, sums = ctx.saved_tensors
        tiling: Tiling = ctx.tiling
        grads = [_empty_like(q) for _ in range(3)]
        for part in tiling.parts:
            logsum, share = part.joined(part.of_queries(sums)), tiling.bias_of_queries(part)
            if share is not None:
                logsum = logsum - share
            found = _attend_backward(
                *(part.joined(part.of_queries(x)) for x in (grad, q)),
                *(part.joined(part.of_keys(x)) for x in (k, v)),
                part.joined(part.of_queries(out)),
                logsum.transpose(1, 2).contiguous().transpose(1, 2),
                0.0,
                False,
                attn_mask=tiling.bias_of(part),
                scale=ctx.scale,
            )
            for mine, of_part, new in zip(grads, (part.of_queries, part.of_keys, part.of_keys), found, strict=True):
                if part.is_tile:
                    of_part(mine).copy_(part.parted(new))
                else:
                    of_part(mine).add_(part.parted(new))
        return *grads, None, None


# The tracer mistakes the strides of the kernel's results.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def tiled_attention(q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, tiling: Tiling, scale: float) -> Tensor:
    """softmax(scale * q.k + bias) v over the visible keys of each query, [B, H, L, D].

    Args:
        q_BHLD, k_BHLD, v_BHLD: queries, keys and values, of one type, on the CPU.
        tiling: of rows [B, L].
    """
    out: Tensor = _TiledAttention.apply(q_BHLD, k_BHLD, v_BHLD, tiling, scale)  # type: ignore[no-untyped-call]
    return out


def _empty_like(x_BHLD: Tensor) -> Tensor:
    """An empty tensor [B, H, L, D] whose tokens lie one after another, as the kernel's results."""
    batch, heads, length, size = x_BHLD.shape
    return x_BHLD.new_empty(batch, length, heads, size).transpose(1, 2)
