"""Documents of a token store to rows of one length, by cutting a stream or by packing whole documents (VSL)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cerebras_jais.data.documents import DataError
from cerebras_jais.data.filling import fill_rows
from cerebras_jais.data.token_store import TRAINED, Store

STREAM_FEATURES = ("input_ids", "attention_mask", "labels")
VSL_FEATURES = (*STREAM_FEATURES, "attention_span", "position_ids")

PACKED_AT_ONCE = 2**20  # documents; with more nothing measurable is gained in fill
_MADE_AT_ONCE = 2**16  # positions, of 20 bytes each: such a block stays in a processor's cache
_READ_BETWEEN = 2**20  # tokens; each of their documents may have brought 64 KiB of its file into memory


@dataclass(frozen=True)
class PackingReport:
    """What went into the rows: documents, their tokens (end-of-text included), rows, and positions.

    Attributes:
        filled_positions: those that hold a token.
        trained_positions: those that count in the loss: all that are filled, but in conversations.
    """

    documents: int
    tokens: int
    rows: int
    filled_positions: int
    trained_positions: int
    max_sequence_length: int

    @property
    def fill(self) -> float:
        """The share of positions that hold a token (0 without rows)."""
        return self.filled_positions / (self.rows * self.max_sequence_length) if self.rows else 0.0


class PackedRows:
    """Rows made while iterating, many at once; `report` tells what has been packed so far, all of it at the end.

    An iterator: it can be gone through once. Each row is an int32 array [features, max_sequence_length].
    """

    def __init__(
        self,
        store: Store,
        features: tuple[str, ...],
        max_sequence_length: int,
        make: Callable[[PackedRows], Iterator[np.ndarray]],
    ) -> None:
        if max_sequence_length < 1:
            raise DataError(f"max_sequence_length {max_sequence_length}: must be at least 1")
        self.features = features
        self.max_sequence_length = max_sequence_length
        self._documents = self._tokens = self._rows = self._filled = self._trained = 0
        self._store, self._released = store, 0
        self._iterator = (row for block in make(self) for row in block)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._iterator

    def __next__(self) -> np.ndarray:
        return next(self._iterator)

    @property
    def report(self) -> PackingReport:
        counts = (self._documents, self._tokens, self._rows, self._filled, self._trained)
        return PackingReport(*counts, self.max_sequence_length)

    def _count(self, block: np.ndarray, documents: int, tokens: int, filled: int) -> np.ndarray:
        self._documents += documents
        self._tokens += tokens
        self._rows += len(block)
        self._filled += filled
        self._trained += int(block[:, 1].sum())
        if self._filled - self._released > _READ_BETWEEN:
            self._store.release()
            self._released = self._filled
        return block


def pack_stream(store: Store, max_sequence_length: int, pad_id: int, *, order: np.ndarray | None = None) -> PackedRows:
    """Cut the documents of a store, which end with end of text, joined into one stream, into rows.

    Yields int32 [3, max_sequence_length]: input_ids, attention_mask (the loss mask) and labels, with
    labels[t] = input_ids[t + 1] in the stream: each row reads max_sequence_length + 1 tokens and the next one begins
    at its last. So every token but the very first is predicted exactly once. The last row is filled up with `pad_id`
    under mask 0. Documents of one row see each other, as in the Model Zoo's pretraining data.

    Args:
        order: the documents by number, int [n], as they follow one another; one may come again. None: all as they are.
    """
    order = np.arange(len(store)) if order is None else order

    def make(rows: PackedRows) -> Iterator[np.ndarray]:
        length = max_sequence_length
        stream = np.empty(0, np.uint32)
        for documents in _groups(order, store.lengths[order], _MADE_AT_ONCE + length):
            stream = np.concatenate([stream, *store.slices(documents)])
            whole = max(0, len(stream) - 1) // length
            filled = whole * length
            block = np.ones((whole, len(STREAM_FEATURES), length), dtype=np.int32)
            block[:, 0] = stream[:filled].reshape(whole, length)
            block[:, 2] = stream[1 : filled + 1].reshape(whole, length)
            yield rows._count(block, len(documents), int(store.lengths[documents].sum()), filled)
            stream = stream[filled:].copy()  # else the whole of it is kept
        left = len(stream) - 1
        if left > 0:
            block = np.full((1, len(STREAM_FEATURES), length), pad_id, dtype=np.int32)
            block[0, 0, :left] = stream[:-1]
            block[0, 1] = np.arange(length) < left
            block[0, 2, :left] = stream[1:]
            yield rows._count(block, 0, 0, left)

    return PackedRows(store, STREAM_FEATURES, max_sequence_length, make)


def pack_vsl(
    store: Store,
    max_sequence_length: int,
    pad_id: int,
    *,
    order: np.ndarray | None = None,
    marked: bool = False,
    seed: int = 0,
    window: int = PACKED_AT_ONCE,
) -> PackedRows:
    """Pack whole documents, which end with end of text, into rows (`fill_rows`), each attending to itself alone.

    Yields int32 [5, max_sequence_length]: input_ids, attention_mask (the loss mask), labels, attention_span,
    position_ids. A document of n tokens takes n - 1 positions: position p reads token p, its label is token p + 1, so
    the end is learnt and no label belongs to another document. (The Model Zoo's own packing also feeds the end-of-text
    token as an input and trains it to predict the next document's first token.) position_ids is p, attention_span
    n - 2 - p, the number of later queries that may attend to this key (Model Zoo, transformer_utils.create_vsl_mask).
    A document longer than a row is folded: each part is a row or a piece of its own, its last label the next part's
    first token. Padding: ids and labels pad_id, all else 0.

    Args:
        order: the documents by number, int [n], as they are taken; one may come again. None: all as they are.
        marked: whether the loss counts only the tokens with the bit TRAINED, as in conversations, else all.
        seed: `fill_rows` puts documents of similar length together, so the rows of a window are shuffled by it.
        window: documents packed at a time, which takes about 100 bytes for each of them.
    """
    order = np.arange(len(store)) if order is None else order

    def make(rows: PackedRows) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(seed)
        per_block = max(1, _MADE_AT_ONCE // max_sequence_length)
        for first in range(0, len(order), window):
            pieces = _fold(store, order[first : first + window], max_sequence_length)
            filling, sizes = fill_rows(pieces.lengths, max_sequence_length)
            ends = np.cumsum(sizes)
            permutation = rng.permutation(len(sizes))
            for start in range(0, len(permutation), per_block):
                chosen = permutation[start : start + per_block]
                counts = sizes[chosen]
                within = _ranges(ends[chosen] - counts, counts)
                block, filled = _vsl_block(
                    store, pieces.of(filling[within]), counts, max_sequence_length, pad_id, marked
                )
                yield rows._count(block, 0, 0, filled)
            lengths = store.lengths[order[first : first + window]]
            rows._documents += int((lengths > 1).sum())
            rows._tokens += int(lengths[lengths > 1].sum())

    return PackedRows(store, VSL_FEATURES, max_sequence_length, make)


def filled_positions(row: np.ndarray) -> np.ndarray:
    """Return which positions of a row, int32 [3 or 5, length], hold a token that is no padding, bool [length].

    The last token of a packed piece is known by its mask, all others by their span or place in the piece.
    """
    telling = [1] if len(row) == len(STREAM_FEATURES) else [1, 3, 4]
    return np.asarray(row[telling].any(axis=0))


def as_int32(values: np.ndarray, where: str) -> np.ndarray:
    """Return integers as int32; DataError naming `where` for one that does not fit: 2^32 + 5 must not become 5."""
    if values.size and values.dtype.kind not in "iu":
        raise DataError(f"{where}: holds {values.dtype}, and token ids are integers; tokenise and pack the text again")
    if values.size and not np.can_cast(values.dtype, np.int32):
        for value in (values.min(), values.max()):
            if not np.iinfo(np.int32).min <= int(value) <= np.iinfo(np.int32).max:
                raise DataError(f"{where}: holds {value}, which is no token id; tokenise and pack the text again")
    return values.astype(np.int32, copy=False)


@dataclass(frozen=True)
class _Pieces:
    """Parts of documents: of which one, from which token, and how many positions each takes; int64 [n] each."""

    documents: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def of(self, chosen: np.ndarray) -> _Pieces:
        return _Pieces(self.documents[chosen], self.starts[chosen], self.lengths[chosen])


def _fold(store: Store, documents: np.ndarray, max_sequence_length: int) -> _Pieces:
    """The pieces of documents, each at most a row long; one of a single token has no position."""
    positions = store.lengths[documents] - 1
    parts = -(-positions // max_sequence_length)
    starts = _ranges(np.zeros_like(parts), parts) * max_sequence_length
    lengths = np.minimum(np.repeat(positions, parts) - starts, max_sequence_length)
    return _Pieces(np.repeat(documents, parts), starts, lengths)


def _vsl_block(
    store: Store, pieces: _Pieces, counts: np.ndarray, max_sequence_length: int, pad_id: int, marked: bool
) -> tuple[np.ndarray, int]:
    """Rows of some pieces each, int32 [rows, 5, length], and the positions that are filled.

    What is left of a row is one more piece, of padding, so that all rows are one sequence without gaps. The inputs are
    the tokens of each piece but its last, the labels those but its first.
    """
    last = np.cumsum(counts)
    room = max_sequence_length - np.add.reduceat(pieces.lengths, last - counts)
    padded = np.flatnonzero(room)
    positions = np.insert(pieces.lengths, last[padded], room[padded]).astype(np.int32)
    ends = pieces.starts + pieces.lengths + 1
    parts = [
        ids[start:end]
        for ids, start, end in zip(store.slices(pieces.documents), pieces.starts.tolist(), ends.tolist(), strict=True)
    ]
    padding = np.full(max_sequence_length + 1, pad_id, dtype=np.uint32)
    for row in padded[::-1].tolist():  # from the last, so that the places before stay as they are
        parts.insert(last[row], padding[: room[row] + 1])
    shape = len(counts), max_sequence_length
    labels = np.concatenate([part[1:] for part in parts]).reshape(shape)

    block = np.empty((len(counts), len(VSL_FEATURES), max_sequence_length), dtype=np.int32)
    block[:, 0] = np.concatenate([part[:-1] for part in parts]).reshape(shape)
    block[:, 1] = labels >= TRAINED if marked else 1
    block[:, 2] = labels
    if marked:
        block[:, [0, 2]] &= np.int32(TRAINED - 1)
    firsts = np.cumsum(positions, dtype=np.int32) - positions
    block[:, 4] = (np.arange(labels.size, dtype=np.int32) - np.repeat(firsts, positions)).reshape(shape)
    block[:, 3] = np.repeat(positions - 1, positions).reshape(shape) - block[:, 4]
    for row in padded.tolist():
        block[row, [1, 3, 4], max_sequence_length - room[row] :] = 0
    return block, labels.size - int(room.sum())


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The whole numbers from each start, so many of each: starts [5, 0] and counts [2, 3] are 5, 6, 0, 1, 2."""
    before = np.cumsum(counts) - counts
    return np.asarray(np.arange(int(counts.sum())) + np.repeat(starts - before, counts))


def _groups(documents: np.ndarray, lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Yield the documents in runs of at least so many tokens, but the last."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(documents):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + tokens)) + 1
        yield documents[start:stop]
        start = stop
