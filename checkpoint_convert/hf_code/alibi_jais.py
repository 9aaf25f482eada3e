"""What Jais adds to its attention scores: the ALiBi bias, and the masks that come with a call. Plain attention too.

bias is -slope[head] * |key position - query position| (Press et al., arXiv 2108.12409). Distances are whole numbers
taken in float32, whatever the precision of the model. Where a query may look is kept apart from the bias until both
are put into one tensor.

Positions count the keys of a call from 0: those in the cache, then the new ones. Where several texts stand in one row,
a query looks at its own text alone, and distances within a text are those between positions.

Shape suffixes: B batch, L query length, S key length, H heads, D head size, M hidden size.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers.cache_utils import Cache

from .configuration_jais import JAISConfig


def alibi_slopes(n_head: int) -> list[float]:
    """The ALiBi slope of each head, in head order.

    With n a power of two, 2^(-8/n), 2^(-16/n) ... 2^-8. Otherwise those of the next lower power of two, then every
    other one of the next higher (arXiv 2108.12409, section 3, and its published code).
    """

    def geometric(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    below = 2 ** (n_head.bit_length() - 1)
    return geometric(below) + geometric(2 * below)[::2][: n_head - below]


class JAISRelativePositions(nn.Module):
    """Holds the ALiBi slopes ([H, 1], as in every Jais checkpoint) and turns positions into a float32 bias."""

    def __init__(self, config: JAISConfig):
        super().__init__()
        scaling = config.alibi_scaling or {}
        self.factor = scaling.get("factor")
        self.train_seq_len = scaling.get("train_seq_len")
        self.trainable = config.alibi_trainable_slopes
        self.standard = alibi_slopes(config.n_head)
        self.slopes = nn.Parameter(self.standard_slopes().unsqueeze(1))

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Keeps fixed slopes fixed: from_pretrained of transformers 5 puts a trainable parameter in their place."""
        if param is not None and not self.trainable:
            param.requires_grad_(False)
        super().register_parameter(name, param)

    def standard_slopes(self, device: torch.device | None = None) -> torch.Tensor:
        return torch.tensor(self.standard, dtype=torch.float32, device=device)

    def exact_slopes(self) -> torch.Tensor:
        """The slopes [H] in float32, undoing what a half precision did to them.

        Slopes that are the standard ones rounded to bfloat16 or float16 give way to the standard ones: an error
        in a slope grows with the distance that it multiplies. All other stored values are taken as they are.
        """
        stored_H = self.slopes[:, 0].float()
        if self.trainable:
            return stored_H
        stored_H = stored_H.detach()
        standard_H = self.standard_slopes(stored_H.device)
        bfloat16_H, float16_H = standard_H.bfloat16(), standard_H.half()
        rounded = (bfloat16_H, float16_H, float16_H.bfloat16())
        is_rounded = torch.stack([(stored_H == candidate_H.float()).all() for candidate_H in rounded]).any()
        return torch.where(is_rounded, standard_H, stored_H)  # a tensor choice: no synchronisation, no graph break

    def forward(self, positions_L: torch.Tensor, positions_S: torch.Tensor, lengths_BL: torch.Tensor) -> torch.Tensor:
        """The bias [B or 1, H, L, S], float32, of integer positions; lengths_BL: tokens of the text of each query.

        lengths_BL may be [B, 1], where all queries of a row are of one text.
        """
        slopes_BHL = self.exact_slopes()[None, :, None]
        if self.factor is not None:
            slopes_BHL = slopes_BHL / self.factor
        elif self.train_seq_len is not None:
            slopes_BHL = slopes_BHL / (lengths_BL.float() / self.train_seq_len).clamp(min=1.0).unsqueeze(1)
        distances_LS = (positions_S.unsqueeze(0) - positions_L.unsqueeze(1)).abs().float()
        return -slopes_BHL.unsqueeze(-1) * distances_LS


def attention_bias(
    relative_pe: JAISRelativePositions,
    h_BLM: torch.Tensor,
    cache: Cache | None,
    positions_L: torch.Tensor,
    dtype: torch.dtype,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
) -> tuple[torch.Tensor, bool]:
    """ALiBi and every mask in one tensor [B or 1, H, L, S] of `dtype`; the arguments are those of JAISModel.

    Also returns whether a row is known to hold several texts, which a cache cannot tell apart later.

    Raises:
        ValueError: a mask or a position does not fit the tokens of the call and of the cache.
    """
    key_length = count_keys(cache, h_BLM.shape[1])
    positions_S = torch.arange(key_length, device=h_BLM.device)
    allowed_BHLS = (positions_S <= positions_L.unsqueeze(1))[None, None]
    is_token_BS, additive_BHLS = None, None
    if attention_mask is not None and attention_mask.dim() == 2:
        is_token_BS = _read_padding(attention_mask.to(h_BLM.device), positions_L, key_length, cache)
        if is_token_BS is not None:
            allowed_BHLS = allowed_BHLS & is_token_BS[:, None, None, :]
    elif attention_mask is not None:
        allowed_BHLS, additive_BHLS = _read_full_mask(attention_mask.to(h_BLM.device), h_BLM, key_length)
        position_ids = None  # such a mask says by itself where each query may look

    lengths_BL = allowed_BHLS[:, 0, -1].sum(-1, keepdim=True)
    cu_seq_lens = [lens for lens in (cu_seq_lens_q, cu_seq_lens_k) if lens is not None]
    same_text_BLS = _read_texts(h_BLM, cache, positions_L, is_token_BS, position_ids, seq_idx, cu_seq_lens)
    if same_text_BLS is not None:
        same_text_BLS = functional.pad(same_text_BLS, (0, key_length - same_text_BLS.shape[-1]), value=False)
        lengths_BL = (same_text_BLS if is_token_BS is None else same_text_BLS & is_token_BS.unsqueeze(1)).sum(-1)
        allowed_BHLS = allowed_BHLS & same_text_BLS.unsqueeze(1)

    bias_BHLS = relative_pe(positions_L, positions_S, lengths_BL).to(h_BLM.device)
    if additive_BHLS is not None:
        bias_BHLS = bias_BHLS + additive_BHLS
    lowest = torch.finfo(dtype).min
    bias_BHLS = bias_BHLS.to(dtype).clamp(min=lowest)

    # A query that may look nowhere, such as left padding, looks at itself: its output is never read, but a softmax
    # over nothing is NaN, and NaN spreads through the values. With it every row has a score that is not masked.
    nowhere_BHL1 = ~allowed_BHLS.any(-1, keepdim=True)
    allowed_BHLS = allowed_BHLS | (nowhere_BHL1 & (positions_S == positions_L.unsqueeze(1)))
    return bias_BHLS.masked_fill(~allowed_BHLS, lowest), same_text_BLS is not None and may_read(h_BLM)


def place_queries(h_BLM: torch.Tensor, cache: Cache | None, cache_position: torch.Tensor | None) -> torch.Tensor:
    """The positions [L] of the new tokens.

    Raises:
        ValueError: cache_position says otherwise than the cache.
    """
    if cache_position is not None and cache is not None and cache.is_compileable and not _is_of_version_5(cache):
        return cache_position  # a static cache of transformers 4 writes where this says
    past_length = 0 if cache is None else cache.get_seq_length()
    positions_L = torch.arange(h_BLM.shape[1], device=h_BLM.device) + past_length
    if cache_position is not None and may_read(h_BLM) and not torch.equal(cache_position.to(positions_L), positions_L):
        raise ValueError(
            f"cache_position must count the {h_BLM.shape[1]} new tokens from {int(past_length)}, the number of tokens "
            f"in the cache, got {cache_position.tolist()}"
        )
    return positions_L


def one_cache(cache, past_key_values):
    """The cache of a call, whichever of its two names it has."""
    if cache is not None and past_key_values is not None and cache is not past_key_values:
        raise ValueError("cache and past_key_values are two names of one argument: give one of them, not both")
    return past_key_values if cache is None else cache


def count_keys(cache: Cache | None, query_length: int) -> int:
    """How many keys the attention will see: a static cache hands out all its slots, used or not."""
    if cache is None:
        return query_length
    if cache.is_compileable:
        return getattr(cache, "get_max_length" if _is_of_version_5(cache) else "get_max_cache_shape")()
    return cache.get_seq_length() + query_length


def _is_of_version_5(cache: Cache) -> bool:
    return hasattr(cache, "get_max_length")


def may_read(tensor: torch.Tensor) -> bool:
    """Whether Python may branch on values: a compiled graph cannot, and a meta tensor has none."""
    return tensor.device.type != "meta" and not torch.compiler.is_compiling()


def _read_padding(
    attention_mask: torch.Tensor, positions_L: torch.Tensor, key_length: int, cache: Cache | None
) -> torch.Tensor | None:
    """Which keys are tokens, [B, S] booleans; None if all are, where one bias may serve all rows of the batch."""
    least, length = key_length, attention_mask.shape[1]
    if cache is not None and cache.is_compileable:  # slots that nothing has been written to need no column
        least = int(positions_L[-1]) + 1 if may_read(positions_L) else 0
    if not least <= length <= key_length:
        raise ValueError(
            f"attention_mask has {length} columns, but there are {least} tokens, with those in the cache, and "
            f"{key_length} keys: it needs one column for each token"
        )
    # Asked where it pays, at several queries: it saves B times the size of the bias, but waits for the device.
    if positions_L.shape[0] > 1 and may_read(attention_mask) and bool((attention_mask != 0).all()):
        return None
    return functional.pad(attention_mask != 0, (0, key_length - length), value=False)


def _read_full_mask(
    attention_mask: torch.Tensor, h_BLM: torch.Tensor, key_length: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Where a 4-D mask lets a query look, [B or 1, 1 or H, L, S] booleans, and what it adds there if it is additive."""
    batch, query_length = h_BLM.shape[:2]
    shape = tuple(attention_mask.shape)
    if len(shape) != 4 or not _has_shape(attention_mask[:, 0], batch, query_length, key_length):
        raise ValueError(
            f"attention_mask must have shape [B, S] or [B, 1, L, S], here {[batch, key_length]} or "
            f"{[batch, 1, query_length, key_length]}, got {list(shape)}"
        )
    if not attention_mask.is_floating_point():
        return attention_mask != 0, None
    # Half of the lowest number is far below any real bias, and above the sum of a lowest number and some score.
    return attention_mask > torch.finfo(attention_mask.dtype).min / 2, attention_mask


def _read_texts(
    h_BLM: torch.Tensor,
    cache: Cache | None,
    positions_L: torch.Tensor,
    is_token_BS: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    seq_idx: torch.Tensor | None,
    cu_seq_lens: list[torch.Tensor],
) -> torch.Tensor | None:
    """Which new tokens are of one text, [B or 1, L, L] booleans; None if each row, with its cache, is one text.

    position_ids count the tokens of each text, seq_idx numbers the texts, and cu_seq_lens are where texts begin, over
    all rows.
    """
    batch, query_length = h_BLM.shape[:2]
    for name, ids in (("position_ids", position_ids), ("seq_idx", seq_idx)):
        if ids is not None and not _has_shape(ids, batch, query_length):
            raise ValueError(f"{name} must have shape {[batch, query_length]}, got {list(ids.shape)}")

    texts: list[torch.Tensor] = []
    if seq_idx is not None:
        texts.append(seq_idx)
    if len(cu_seq_lens) == 2 and may_read(cu_seq_lens[0]) and not torch.equal(*cu_seq_lens):
        raise ValueError("cu_seq_lens_q and cu_seq_lens_k must be the same")
    for ends in cu_seq_lens[:1]:
        if may_read(ends) and (ends[0] != 0 or ends[-1] != batch * query_length):
            raise ValueError(f"cu_seq_lens must go from 0 to {batch * query_length}, got {ends.tolist()}")
        places = torch.arange(batch * query_length, device=ends.device, dtype=ends.dtype)
        texts.append(torch.bucketize(places, ends, right=True).view(batch, query_length))
    if texts and _is_filled(cache, positions_L):
        raise ValueError("seq_idx and cu_seq_lens describe whole texts and cannot be given with a filled cache")
    if position_ids is not None:
        texts_BL = _texts_by_position(position_ids.to(h_BLM.device), cache, positions_L, is_token_BS)
        texts += [] if texts_BL is None else [texts_BL]

    same_text_BLS = None
    for ids_BL in texts:
        same_BLS = (ids_BL.unsqueeze(2) == ids_BL.unsqueeze(1)).to(h_BLM.device)
        same_text_BLS = same_BLS if same_text_BLS is None else same_text_BLS & same_BLS
    return same_text_BLS


def _has_shape(tensor: torch.Tensor, batch: int, *lengths: int) -> bool:
    """Whether a tensor has `batch` rows, or one for all, and these lengths; a compiler can guard each comparison."""
    sizes = tensor.shape[1:]
    if len(sizes) != len(lengths) or (tensor.shape[0] != 1 and tensor.shape[0] != batch):
        return False
    return all(size == length for size, length in zip(sizes, lengths, strict=True))


def _texts_by_position(
    position_ids: torch.Tensor, cache: Cache | None, positions_L: torch.Tensor, is_token_BS: torch.Tensor | None
) -> torch.Tensor | None:
    """The number of each token's text in its row, [B or 1, L]; None if the tokens of each row are one text.

    Positions rise by one within a text. Another text begins where they return to 0, or to the first one of the row.
    Padding is passed over, and what follows it goes on at any position but 0, since libraries number it in many ways.
    """
    is_filled = _is_filled(cache, positions_L)
    readable = may_read(position_ids)
    if is_filled and not readable:  # keys in the cache are taken to be of the text that goes on
        return None
    if is_token_BS is None:
        is_token_BL = torch.ones_like(position_ids, dtype=torch.bool)
    else:
        is_token_BL = is_token_BS[:, positions_L]
    position_ids = position_ids.expand(is_token_BL.shape)
    places_L = torch.arange(position_ids.shape[1], device=position_ids.device)
    latest_BL = torch.where(is_token_BL, places_L, -1).cummax(-1).values  # the last token up to each place
    before_BL = functional.pad(latest_BL, (1, -1), value=-1)
    is_next_BL = is_token_BL & (before_BL >= 0) & (before_BL == places_L - 1)
    first_B1 = position_ids.gather(-1, is_token_BL.int().argmax(-1, keepdim=True))
    begins_BL = (is_token_BL & (before_BL >= 0) & (position_ids == 0)) | (is_next_BL & (position_ids == first_B1))
    if not readable:
        return begins_BL.cumsum(-1)

    previous_BL = position_ids.gather(-1, before_BL.clamp(min=0))
    if bool((is_next_BL & ~begins_BL & (position_ids != previous_BL + 1)).any()):
        raise ValueError("position_ids must rise by one within a text, and return to 0 where another text begins")
    if is_filled:
        went_before_B1 = True if is_token_BS is None else is_token_BS[:, : int(positions_L[0])].any(-1, keepdim=True)
        if bool((begins_BL | (is_token_BL & (position_ids == 0) & went_before_B1)).any()):
            raise ValueError("position_ids begin anew after a filled cache: they must continue its text")
        return None
    return begins_BL.cumsum(-1) if bool(begins_BL.any()) else None


def _is_filled(cache: Cache | None, positions_L: torch.Tensor) -> bool:
    """Whether the cache has tokens; taken to be so where that cannot be read."""
    if cache is None:
        return False
    if cache.is_compileable:
        return not may_read(positions_L) or bool(positions_L[0] > 0)
    return cache.get_seq_length() > 0


def bias_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which a fused kernel on the device of `tensor` takes its bias.

    On the CPU at least float32, whatever the queries are: rounded to bfloat16, a bias of -1000 would be off by 2. The
    kernels of other devices demand the dtype of the queries, and autocast casts the bias to its own.
    """
    device_type = tensor.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return torch.promote_types(tensor.dtype, torch.float32) if device_type == "cpu" else tensor.dtype


def eager_attention(module, q_BHLD, k_BHSD, v_BHSD, bias_BHLS, scaling, dropout=0.0, **_):
    """Plain attention with a float32 softmax; the scale is put on q, so that q.k stays in the range of float16.

    Returns (output [B, L, H, D], weights [B, H, L, S]), both in the dtype of v.
    """
    scores_BHLS = torch.matmul(q_BHLD * scaling, k_BHSD.transpose(2, 3)).float() + bias_BHLS.float()
    weights_BHLS = functional.softmax(scores_BHLS, dim=-1).to(v_BHSD.dtype)
    weights_BHLS = functional.dropout(weights_BHLS, p=dropout, training=module.training)
    return torch.matmul(weights_BHLS, v_BHSD).transpose(1, 2), weights_BHLS
