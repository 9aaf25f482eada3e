"""Attention by blocks of queries, for rows whose bias of every pair would be too large.

A block is one call of the kernel: queries one after another, with the keys from the first to the last that they see. So
nothing above the diagonal or between the texts of a row is computed but in the corners of blocks, and memory is linear
in the length.

The causal bias of a block depends on the distance alone. With the queries in reverse order, the bias of each is that of
the one before it moved by one key: it is a view of one row of numbers for each head and takes no memory. Where texts
are short, or masks leave holes, the block has a mask of every pair in it.

For the backward pass the fused kernel of a CPU keeps its inputs, output and row statistics alone. Other kernels write
the view out or keep the weights, so there a block is computed again in the backward pass, as is one with a mask.

Measured on a CPU, forward and backward, 4,096 tokens, 16 heads, against the causal kernel without a bias: blocks of 256
queries take 1.07 times as long, of 512 1.15 times, of 2,048 1.6 times. At 2,048 tokens: blocks of 256 1.13 times, with
the bias written out and computed again 2.2 times, one bias of all pairs 2.0 times. An autograd function that adds the
gradients of keys in place is no faster.

Shape suffixes: B batch, L query length, S key length, H heads, D head size, N distances.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from .alibi_jais import alibi_bias, alibi_by_distance, divisors
from .masks_jais import EVERY, Visibility, may_read

MOST_BIAS = 2**25  # numbers in the bias of one call
QUERIES = 256  # of one block
FEW_QUERIES = 64  # texts that are shorter share a block
CHECKPOINTS_COMPILE = torch.__version__ >= torch.torch_version.TorchVersion("2.6")  # with lengths that vary


class Segment(NamedTuple):
    """The queries [start, end) of a row, which see all keys of [first_key, end_key) up to themselves; by position."""

    start: int
    end: int
    first_key: int
    end_key: int
    length: int
    """Tokens of their text."""


class Block(NamedTuple):
    """What one call computes; the queries are counted from the first of the model's call."""

    rows: slice
    queries: slice
    keys: slice
    length: int | None
    """Tokens of the text, if each query sees all these keys up to itself; None if that needs a mask."""


class Blocks:
    """How the rows of a call are divided, and their biases; the same for all layers."""

    def __init__(self, sees: Visibility, train_seq_len: int | None, dtype: torch.dtype):
        self.sees = sees
        self.past = sees.past or 0  # blocks without a mask are made only if it is known
        self.train_seq_len = train_seq_len
        self.dtype = dtype
        self.blocks = list(_divide(sees, self.past))

    def masked_bias(self, slopes_H: torch.Tensor, block: Block) -> torch.Tensor:
        """The bias of a block with the mask of every pair in it, [B or 1, H, L, S]."""
        sees = self.sees
        bias_BHLS = alibi_bias(
            slopes_H.to(sees.positions_L.device),
            sees.positions_L[block.queries],
            sees.positions_of_keys(block.keys),
            divisors(sees.lengths(block.rows, block.queries), self.train_seq_len),
        )
        return mask_bias(bias_BHLS, sees, self.dtype, block.rows, block.queries, block.keys)

    def tables(self, slopes_H: torch.Tensor) -> dict[float, torch.Tensor]:
        """The bias by distance, [H, N] each, of each number that slopes are divided by."""
        farthest: dict[float, int] = {}
        for block in self.blocks:
            if block.length is not None:
                divisor = self._divisor(block.length)
                farthest[divisor] = max(farthest.get(divisor, 0), self._farthest(block))
        return {
            divisor: alibi_by_distance(slopes_H / divisor, distance, QUERIES, self.dtype)
            for divisor, distance in farthest.items()
        }

    def numbers_of(self, tables: dict[float, torch.Tensor], block: Block) -> torch.Tensor:
        """What a table has for a block without a mask: from its farthest pair, the last query and the first key, on."""
        table_HN = tables[self._divisor(block.length or 0)]
        first = table_HN.shape[1] - QUERIES - self._farthest(block)
        return table_HN[:, first : first + _size(block.queries) + _size(block.keys) - 1]

    def _divisor(self, length: int) -> float:
        return 1.0 if self.train_seq_len is None else max(1.0, length / self.train_seq_len)

    def _farthest(self, block: Block) -> int:
        return self.past + block.queries.stop - 1 - block.keys.start


def needs_blocks(sees: Visibility, n_head: int) -> bool:
    queries = sees.positions_L.shape[0]
    return queries > QUERIES and sees.rows * n_head * queries * sees.key_length > MOST_BIAS


def mask_bias(
    bias_BHLS: torch.Tensor,
    sees: Visibility,
    dtype: torch.dtype,
    rows: slice = EVERY,
    queries: slice = EVERY,
    keys: slice = EVERY,
) -> torch.Tensor:
    """The bias of these queries and keys as `dtype`, the lowest number where a query may not look."""
    additive_BHLS = sees.additive(rows, queries, keys)
    if additive_BHLS is not None:
        bias_BHLS = bias_BHLS + additive_BHLS
    lowest = torch.finfo(dtype).min
    bias_BHLS = bias_BHLS.to(dtype).clamp(min=lowest)

    # A query that may look nowhere, such as left padding, looks at itself: its output is never read, but a softmax
    # over nothing is NaN, and NaN spreads through the values. With it every row has a score that is not masked.
    allowed_BHLS = sees.allowed(rows, queries, keys)
    nowhere_BHL1 = ~allowed_BHLS.any(-1, keepdim=True)
    is_itself_LS = sees.positions_of_keys(keys) == sees.positions_L[queries].unsqueeze(1)
    return bias_BHLS.masked_fill(~(allowed_BHLS | (nowhere_BHL1 & is_itself_LS)), lowest)


def attend_by_blocks(
    attend, module, q_BHLD, k_BHSD, v_BHSD, slopes_H, blocks: Blocks, scaling: float, dropout: float
) -> torch.Tensor:
    """The output [B, L, H, D] of `attend`, an attention function of transformers, called for each block.

    slopes_H are those over the factor of alibi_scaling, in float32.
    """
    is_cpu = q_BHLD.device.type == "cpu"
    slopes_H = slopes_H.to(q_BHLD.device)
    tables = blocks.tables(slopes_H)

    def attend_block(q_BHLD, k_BHSD, v_BHSD, numbers, block):
        if block.length is None:
            bias_BHLS = blocks.masked_bias(numbers, block).to(q_BHLD.device)
        else:
            bias_BHLS = numbers.unfold(-1, k_BHSD.shape[2], 1).unsqueeze(0)
            q_BHLD = q_BHLD.flip(2)
        if not is_cpu:  # cast already, but for queries of another dtype than the hidden states
            bias_BHLS = bias_BHLS.to(q_BHLD.dtype)
        out_BLHD, _ = attend(module, q_BHLD, k_BHSD, v_BHSD, bias_BHLS, scaling=scaling, dropout=dropout)
        return out_BLHD if block.length is None else out_BLHD.flip(1)

    computes_again = torch.is_grad_enabled() and (CHECKPOINTS_COMPILE or not torch.compiler.is_compiling())
    is_fused = is_cpu and module.config._attn_implementation == "sdpa" and not dropout and not slopes_H.requires_grad
    # Copies, so that the tensor that queries, keys and values are views of is not kept for the backward pass.
    k_BHSD, v_BHSD = k_BHSD.contiguous(), v_BHSD.contiguous()
    parts = []
    for _, blocks_of_rows in groupby(blocks.blocks, key=lambda block: block.rows.start):
        group = list(blocks_of_rows)
        rows = group[0].rows
        row = []
        for block, part_BHLD in zip(
            group, q_BHLD[rows].split([_size(block.queries) for block in group], 2), strict=True
        ):
            inputs = (
                part_BHLD,
                k_BHSD[rows, :, block.keys],
                v_BHSD[rows, :, block.keys],
                slopes_H if block.length is None else blocks.numbers_of(tables, block),
                block,
            )
            if computes_again and (block.length is None or not is_fused):
                row.append(checkpoint(attend_block, *inputs, use_reentrant=False))
            else:
                row.append(attend_block(*inputs))
        parts.append(torch.cat(row, dim=1))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _divide(sees: Visibility, past: int) -> Iterator[Block]:
    by_row = _segments(sees)
    if by_row is None:
        step = max(1, QUERIES // sees.rows)
        for start in range(0, sees.positions_L.shape[0], step):
            queries = slice(start, min(start + step, sees.positions_L.shape[0]))
            yield Block(EVERY, queries, EVERY, None)
        return
    for rows, segments in by_row:
        for group in _share(segments):
            queries = slice(group[0].start - past, group[-1].end - past)
            keys = slice(min(each.first_key for each in group), max(each.end_key for each in group))
            yield Block(rows, queries, keys, group[0].length if len(group) == 1 else None)


def _share(segments: list[Segment]) -> Iterator[list[Segment]]:
    """The segments of a row as blocks: long ones cut, short ones that follow one another together."""
    few: list[Segment] = []
    for segment in segments:
        is_short = segment.end - segment.start < FEW_QUERIES
        if few and (not is_short or segment.end - few[0].start > QUERIES):
            yield few
            few = []
        if is_short:
            few.append(segment)
            continue
        for start in range(segment.start, segment.end, QUERIES):
            end = min(start + QUERIES, segment.end)
            yield [segment._replace(start=start, end=end, end_key=min(end, segment.end_key))]
    if few:
        yield few


def _segments(sees: Visibility) -> list[tuple[slice, list[Segment]]] | None:
    """The segments of each row, or of all rows alike; None if masks leave holes or cannot be read."""
    if sees.past is None or sees.allowed_BHLS is not None:
        return None
    end = sees.past + sees.positions_L.shape[0]
    marks = [*sees.texts, *([] if sees.is_token_BS is None else [sees.is_token_BS[:, :end].long()])]
    if not marks:
        return [(EVERY, [Segment(sees.past, end, 0, end, end)])]
    if not may_read(marks[0]) or any(bool((ids_BL[:, 1:] < ids_BL[:, :-1]).any()) for ids_BL in sees.texts):
        return None
    marks_BLM = torch.stack([mark.expand(sees.rows, -1) for mark in marks], dim=-1)
    by_row = []
    for row, marks_LM in enumerate(marks_BLM):
        segments = _segments_of_row(marks_LM, len(sees.texts), sees.past)
        if segments is None:
            return None
        by_row.append((EVERY if sees.rows == 1 else slice(row, row + 1), segments))
    return by_row


def _segments_of_row(marks_LM: torch.Tensor, texts: int, past: int) -> list[Segment] | None:
    """From the numbers of each token's text, and whether it is a token; None if padding stands within a text."""
    changes = (marks_LM[1:] != marks_LM[:-1]).any(-1).nonzero()[:, 0] + 1
    starts = [0, *changes.tolist()]
    runs = zip(starts, [*starts[1:], len(marks_LM)], marks_LM[starts].tolist(), strict=True)
    segments = []
    for _, runs_of_text in groupby(runs, key=lambda run: run[2][:texts]):
        of_text = list(runs_of_text)
        tokens = [(start, end) for start, end, marks in of_text if marks[texts:] != [0]]
        if len(tokens) > 1:
            return None
        text_start, text_end = of_text[0][0], of_text[-1][1]
        first, last = tokens[0] if tokens else (text_end, text_end)
        # Padding before a text is like a text of its own: its output is never read.
        segments.append(Segment(text_start, first, text_start, first, first - text_start))
        segments.append(Segment(first, text_end, first, last, last - first))
    clipped = (segment._replace(start=max(segment.start, past)) for segment in segments)
    return [segment for segment in clipped if segment.start < segment.end]


def _size(part: slice) -> int:
    return part.stop - part.start
