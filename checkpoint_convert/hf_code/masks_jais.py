"""Which keys each query of a call may see: what its masks, positions, texts and cache say.

Positions count the keys of a call from 0: those in the cache, then the new ones. Where several texts stand in one row,
a query looks at its own text alone.

Shape suffixes: B batch, L query length, S key length, H heads, M hidden size.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers.cache_utils import Cache

EVERY = slice(None)


class Visibility:
    """What one call says about which keys its queries may see, the same for all layers; no tensor of L x S is made.

    Attributes:
        positions_L: of the queries.
        key_length: S.
        past: how many tokens are in the cache; None if that cannot be read.
        is_token_BS: which keys are tokens; None if all are.
        allowed_BHLS, additive_BHLS: a mask of four dimensions, and what it adds to the bias; None without.
        texts: number of each new token's text, [B or 1, L], by each argument that says it. Tokens whose numbers are
            all the same are of one text. Empty if each row, with its cache, is one text.

    Raises:
        ValueError: a mask or a position does not fit the tokens of the call and of the cache.
    """

    def __init__(
        self,
        h_BLM: torch.Tensor,
        cache: Cache | None,
        positions_L: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        seq_idx: torch.Tensor | None = None,
        cu_seq_lens_q: torch.Tensor | None = None,
        cu_seq_lens_k: torch.Tensor | None = None,
    ):
        self.positions_L = positions_L
        self.key_length = count_keys(cache, h_BLM.shape[1])
        self.past = _count_past(cache, positions_L)
        self.is_token_BS, self.allowed_BHLS, self.additive_BHLS = None, None, None
        if attention_mask is not None and attention_mask.dim() == 2:
            self.is_token_BS = _read_padding(attention_mask.to(h_BLM.device), positions_L, self.key_length, cache)
        elif attention_mask is not None:
            mask_BHLS = attention_mask.to(h_BLM.device)
            self.allowed_BHLS, self.additive_BHLS = _read_full_mask(mask_BHLS, h_BLM, self.key_length)
            position_ids = None  # such a mask says by itself where each query may look
        cu_seq_lens = [lens for lens in (cu_seq_lens_q, cu_seq_lens_k) if lens is not None]
        self.texts = _read_texts(h_BLM, cache, positions_L, self.is_token_BS, position_ids, seq_idx, cu_seq_lens)

    @property
    def rows(self) -> int:
        """How many rows see differently: 1 if a row of the batch is like all the others."""
        given = (self.is_token_BS, self.allowed_BHLS, self.additive_BHLS, *self.texts)
        return max([1, *(tensor.shape[0] for tensor in given if tensor is not None)])

    def positions_of_keys(self, keys: slice = EVERY) -> torch.Tensor:
        return torch.arange(self.key_length, device=self.positions_L.device)[keys]

    def allowed(self, rows: slice = EVERY, queries: slice = EVERY, keys: slice = EVERY) -> torch.Tensor:
        """Whether these queries may see these keys, [B or 1, 1 or H, L, S] booleans."""
        if self.allowed_BHLS is not None:
            allowed_BHLS = of_rows(self.allowed_BHLS, rows)[:, :, queries, keys]
        else:
            allowed_BHLS = (self.positions_of_keys(keys) <= self.positions_L[queries].unsqueeze(1))[None, None]
        if self.is_token_BS is not None:
            allowed_BHLS = allowed_BHLS & of_rows(self.is_token_BS, rows)[:, None, None, keys]
        same_text_BLS = self._same_text(rows, queries, keys)
        return allowed_BHLS if same_text_BLS is None else allowed_BHLS & same_text_BLS.unsqueeze(1)

    def additive(self, rows: slice, queries: slice, keys: slice) -> torch.Tensor | None:
        """What the mask adds to the bias of these queries and keys, [B or 1, 1 or H, L, S]."""
        return None if self.additive_BHLS is None else of_rows(self.additive_BHLS, rows)[:, :, queries, keys]

    def lengths(self, rows: slice = EVERY, queries: slice = EVERY) -> torch.Tensor:
        """Tokens of the text of each of these queries, [B or 1, L], or [B or 1, 1] where a row is one text."""
        same_text_BLS = self._same_text(rows, queries, EVERY)
        if same_text_BLS is None:
            return self.allowed(rows, slice(-1, None))[:, 0, -1].sum(-1, keepdim=True)
        if self.is_token_BS is not None:
            same_text_BLS = same_text_BLS & of_rows(self.is_token_BS, rows).unsqueeze(1)
        return same_text_BLS.sum(-1)

    def _same_text(self, rows: slice, queries: slice, keys: slice) -> torch.Tensor | None:
        same_text_BLS = None
        for ids_BL in self.texts:
            ids_BL = of_rows(ids_BL, rows)
            same_BLS = ids_BL[:, queries].unsqueeze(2) == ids_BL[:, keys].unsqueeze(1)
            same_text_BLS = same_BLS if same_text_BLS is None else same_text_BLS & same_BLS
        if same_text_BLS is None:
            return None
        unused = len(range(self.key_length)[keys]) - same_text_BLS.shape[-1]  # slots of a static cache
        return functional.pad(same_text_BLS, (0, unused), value=False)


def of_rows(tensor: torch.Tensor, rows: slice) -> torch.Tensor:
    """These rows of what has one for each row of the batch, or one for all."""
    return tensor if tensor.shape[0] == 1 else tensor[rows]


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


def _count_past(cache: Cache | None, positions_L: torch.Tensor) -> int | None:
    if cache is None or not cache.is_compileable:
        return 0 if cache is None else cache.get_seq_length()
    return int(positions_L[0]) if may_read(positions_L) else None


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
) -> tuple[torch.Tensor, ...]:
    """The number of each new token's text, [B or 1, L], by each argument; none if each row is one text.

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

    return tuple(ids_BL.to(h_BLM.device) for ids_BL in texts)


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
