"""Tokenised documents to rows of one length, by cutting a stream or by packing whole documents (VSL)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cerebras_jais.data.documents import DataError
from cerebras_jais.data.filling import fill_rows

STREAM_FEATURES = ("input_ids", "attention_mask", "labels")
VSL_FEATURES = (*STREAM_FEATURES, "attention_span", "position_ids")

# Documents are packed this many tokens at a time, which bounds memory (4 bytes each) and costs no measurable fill.
VSL_BUFFER_TOKENS = 64 * 1024 * 1024
PACKED_AT_ONCE = 2**18  # examples; with more nothing measurable is gained in fill


class Examples(Protocol):
    """Examples of conversations by number, in memory or on the disk."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 [n]."""

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of an example, int32 [tokens], and which of them are trained, bool [tokens]."""


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
    """Rows made one at a time while iterating; `report` tells what has been packed so far, all of it at the end.

    An iterator: it can be gone through once. Each row is an int32 array [features, max_sequence_length].
    """

    def __init__(
        self, features: tuple[str, ...], max_sequence_length: int, make: Callable[["PackedRows"], Iterator[np.ndarray]]
    ):
        self.features = features
        self.max_sequence_length = max_sequence_length
        self._documents = self._tokens = self._rows = self._filled = self._trained = 0
        self._iterator = make(self)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        row = next(self._iterator)
        self._rows += 1
        self._filled += int(filled_positions(row).sum())
        self._trained += int(row[1].sum())
        return row

    @property
    def report(self) -> PackingReport:
        counts = (self._documents, self._tokens, self._rows, self._filled, self._trained)
        return PackingReport(*counts, self.max_sequence_length)

    def _count(self, token_docs: Iterable[Sequence[int]], eos_id: int) -> Iterator[np.ndarray]:
        """Yield each document that has tokens, as int32, with the end-of-text token behind it."""
        for tokens in token_docs:
            if len(tokens) == 0:
                continue
            document = np.empty(len(tokens) + 1, dtype=np.int32)
            document[:-1] = as_int32(np.asarray(tokens), "tokens to pack")
            document[-1] = eos_id
            self._documents += 1
            self._tokens += len(document)
            yield document


def pack_stream(
    token_docs: Iterable[Sequence[int]], max_sequence_length: int, eos_id: int, pad_id: int | None = None
) -> PackedRows:
    """Cut the documents, each followed by `eos_id`, joined into one stream, into rows of `max_sequence_length`.

    Yields int32 [3, max_sequence_length]: input_ids, attention_mask (the loss mask) and labels, with
    labels[t] = input_ids[t + 1] in the stream: each row reads max_sequence_length + 1 tokens and the next one begins
    at its last. So every token but the very first is predicted exactly once. The last row is filled up with `pad_id`
    (eos_id unless given) under mask 0. Documents of one row see each other, as in the Model Zoo's pretraining data.
    """
    _check_length(max_sequence_length)
    pad_id = eos_id if pad_id is None else pad_id

    def make(rows: PackedRows) -> Iterator[np.ndarray]:
        waiting: list[np.ndarray] = []
        n_waiting = 0
        for document in rows._count(token_docs, eos_id):
            waiting.append(document)
            n_waiting += len(document)
            if n_waiting <= max_sequence_length:
                continue
            stream = np.concatenate(waiting)
            start = 0
            while n_waiting - start > max_sequence_length:
                yield _stream_row(stream[start : start + max_sequence_length + 1], max_sequence_length, pad_id)
                start += max_sequence_length
            waiting = [stream[start:]]
            n_waiting -= start
        if n_waiting > 1:
            yield _stream_row(np.concatenate(waiting), max_sequence_length, pad_id)

    return PackedRows(STREAM_FEATURES, max_sequence_length, make)


def pack_vsl(
    token_docs: Iterable[Sequence[int]],
    max_sequence_length: int,
    eos_id: int,
    pad_id: int,
    *,
    seed: int = 0,
    buffer_tokens: int = VSL_BUFFER_TOKENS,
) -> PackedRows:
    """Pack whole documents into rows of `max_sequence_length` (`fill_rows`), each attending to itself alone.

    Yields int32 [5, max_sequence_length]: input_ids, attention_mask (the loss mask), labels, attention_span,
    position_ids. A document of n tokens takes n positions: its inputs are its tokens, its labels the same shifted by
    one with `eos_id` at the end, so the end is learnt and no label belongs to another document. (The Model Zoo's own
    packing also feeds the end-of-text token as an input and trains it to predict the next document's first token.)
    At position p of n: position_ids = p, attention_span = n - 1 - p, the number of later queries that may attend to
    this key (Model Zoo, transformer_utils.create_vsl_mask). A document longer than a row is folded: each part is a
    row or a piece of its own, its last label the next part's first token. Padding: ids and labels pad_id, all else 0.

    Packing puts documents of similar length together, so rows come out in an order shuffled by `seed`. At most
    `buffer_tokens` tokens are held and packed at a time.
    """
    _check_length(max_sequence_length)

    def make(rows: PackedRows) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(seed)
        for documents in _buffers(rows._count(token_docs, eos_id), buffer_tokens):
            pieces = [
                document[start : start + max_sequence_length + 1]
                for document in documents
                for start in range(0, len(document) - 1, max_sequence_length)
            ]
            bins = fill_rows([len(piece) - 1 for piece in pieces], max_sequence_length)
            for index in rng.permutation(len(bins)):
                yield _vsl_row([(pieces[i], 1) for i in bins[index]], max_sequence_length, pad_id)

    return PackedRows(VSL_FEATURES, max_sequence_length, make)


def pack_examples(
    examples: Examples, max_sequence_length: int, pad_id: int, *, seed: int = 0, window: int = PACKED_AT_ONCE
) -> PackedRows:
    """Pack whole examples of conversations as `pack_vsl` packs documents, but with the loss on some tokens alone.

    An example of n tokens takes n - 1 positions, at most `max_sequence_length`: position p reads token p, its label is
    token p + 1, and attention_mask is 1 where that label is trained. The examples are taken in an order shuffled by
    `seed`, `window` at a time, each window packed by `fill_rows` and its rows shuffled. The bookkeeping takes
    about 200 bytes an example of the window and 16 of the others.
    """
    _check_length(max_sequence_length)

    def make(rows: PackedRows) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(seed)
        positions = examples.lengths - 1
        if len(positions) and not 1 <= positions.min() <= positions.max() <= max_sequence_length:
            raise ValueError(f"examples of 2 to {max_sequence_length + 1} tokens fit, got {examples.lengths}")
        order = rng.permutation(len(positions))
        for start in range(0, len(order), window):
            chosen = order[start : start + window]
            bins = fill_rows(positions[chosen].tolist(), max_sequence_length)
            for index in rng.permutation(len(bins)):
                members = [examples.read(int(chosen[i])) for i in bins[index]]
                rows._documents += len(members)
                rows._tokens += sum(len(ids) for ids, _ in members)
                yield _vsl_row([(ids, trained[1:]) for ids, trained in members], max_sequence_length, pad_id)

    return PackedRows(VSL_FEATURES, max_sequence_length, make)


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


def _check_length(max_sequence_length: int) -> None:
    if max_sequence_length < 1:
        raise DataError(f"max_sequence_length {max_sequence_length}: must be at least 1")


def _buffers(documents: Iterable[np.ndarray], buffer_tokens: int) -> Iterator[list[np.ndarray]]:
    buffer: list[np.ndarray] = []
    size = 0
    for document in documents:
        buffer.append(document)
        size += len(document)
        if size >= buffer_tokens:
            yield buffer
            buffer, size = [], 0
    if buffer:
        yield buffer


def _stream_row(tokens: np.ndarray, max_sequence_length: int, pad_id: int) -> np.ndarray:
    n = len(tokens) - 1
    row = np.full((3, max_sequence_length), pad_id, dtype=np.int32)
    row[0, :n] = tokens[:-1]
    row[1] = 0
    row[1, :n] = 1
    row[2, :n] = tokens[1:]
    return row


def _vsl_row(
    pieces: Iterable[tuple[np.ndarray, np.ndarray | int]], max_sequence_length: int, pad_id: int
) -> np.ndarray:
    """One row of pieces, each with what its labels are worth: 1 or 0 for all, or for each of them."""
    row = np.zeros((5, max_sequence_length), dtype=np.int32)
    row[0] = row[2] = pad_id
    start = 0
    for piece, trained in pieces:
        n = len(piece) - 1
        end = start + n
        row[0, start:end] = piece[:-1]
        row[1, start:end] = trained
        row[2, start:end] = piece[1:]
        row[4, start:end] = np.arange(n, dtype=np.int32)
        row[3, start:end] = row[4, start:end][::-1]
        start = end
    return row
