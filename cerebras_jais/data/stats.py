"""What a folder of packed rows or a token store holds: documents, tokens, lengths, languages, fill, duplicates."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cerebras_jais.data.clean.languages import detect_language
from cerebras_jais.data.documents import DataError
from cerebras_jais.data.packing import STREAM_FEATURES
from cerebras_jais.data.shards import HDF5Source
from cerebras_jais.data.token_store import MANIFEST, TRAINED, open_store
from cerebras_jais.encoding import Tokens
from cerebras_jais.errors import UserError
from cerebras_jais.files import MIB, parse_json, read_text, shown_path
from cerebras_jais.wording import counted

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_READ_AT_ONCE = 2**20  # tokens
_LOOKED_AT = 10_000  # documents whose language is told
_BAR = 40  # characters of the longest bar


@dataclass
class Statistics:
    """Counts of one folder.

    Attributes:
        rows: packed rows; 0 in a store.
        positions: of all rows.
        filled: positions that hold a token that is no padding.
        trained: those that count in the loss.
        languages: of the documents that were looked at, by their letters.
    """

    rows: int = 0
    positions: int = 0
    filled: int = 0
    trained: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    _lengths: array[int] = field(default_factory=lambda: array("q"))
    _hashes: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, or of the part of it that a row holds, int64 [documents]."""
        return np.array(self._lengths, dtype=np.int64)

    @property
    def duplicates(self) -> int:
        """Documents with the tokens of an earlier one."""
        return len(self._hashes) - len(np.unique(np.array(self._hashes, dtype=np.uint64)))

    def add(self, documents: Tokens, looked_at: int, tokenizer: Tokenizer | None) -> None:
        """Count documents; the language of the first `looked_at` of them is told where there is a tokenizer."""
        for number, ids in enumerate(documents.split()):
            self._lengths.append(len(ids))
            self._hashes.append(int.from_bytes(blake2b(ids.tobytes(), digest_size=8).digest(), "little"))
            if tokenizer is not None and number < looked_at:
                self.languages[detect_language(tokenizer.decode(ids.tolist()))] += 1


def data_folders(path: str | Path) -> list[Path]:
    """The folders of packed files and the token stores at a path and below it; DataError where there are none."""
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{shown_path(path)}: no such folder; give one that a `data` command wrote")
    found = sorted({file.parent for kind in ("*.h5", MANIFEST) for file in path.rglob(kind)})
    if not found:
        raise DataError(
            f"{shown_path(path)}: holds no packed files and no token store; give what a `data` command wrote"
        )
    return found


def count(folder: Path, tokenizer: Tokenizer | None = None) -> Statistics:
    """Read all of one folder and count what it holds.

    Documents that are packed whole are told by their positions, those of a stream by the end of text, whose id is that
    of data_params.json. Memory: 16 bytes a document. Raises DataError for files that cannot be read.
    """
    found = Statistics()
    if (folder / MANIFEST).exists():
        store = open_store(folder)
        groups = np.array_split(np.arange(len(store)), max(1, store.tokens // _READ_AT_ONCE))
        for group in groups:
            ids = np.concatenate([np.empty(0, np.uint32), *store.slices(group)])
            found.trained += int((ids >= TRAINED).sum())
            found.add(Tokens(ids & ~TRAINED, np.cumsum(store.lengths[group])), _LOOKED_AT // len(groups) + 1, tokenizer)
            store.release()
        return found
    source = HDF5Source(folder, use_vsl=None)
    step = max(1, _READ_AT_ONCE // source.tokens_per_sample)
    looked_at = _LOOKED_AT * step // len(source) + 1
    stream = _Stream(folder) if source.n_features == len(STREAM_FEATURES) else None
    for start in range(0, len(source), step):
        rows = source.read(np.arange(start, min(start + step, len(source))))
        # As `filled_positions` has it, of many rows.
        filled = np.asarray((rows[:, [1]] if stream else rows[:, [1, 3, 4]]).any(axis=1))
        found.rows += len(rows)
        found.positions += filled.size
        found.filled += int(filled.sum())
        found.trained += int(rows[:, 1].sum())
        found.add(stream.documents(rows, filled) if stream else _packed(rows, filled), looked_at, tokenizer)
    if stream:
        found.add(stream.rest(), 1, tokenizer)
    return found


def lines(found: Statistics) -> Iterator[str]:
    """Yield statistics as text for a user."""
    lengths = found.lengths
    if found.rows:
        length = found.positions // found.rows
        yield (
            f"{counted(found.rows, 'row')} of {length} ({found.filled / found.positions:.2%} full), "
            f"{counted(found.trained, 'position')} in the loss"
        )
    tokens = int(lengths.sum())
    if not tokens:
        return
    sizes = f"{counted(len(lengths), 'document')}, {counted(tokens, 'token')}"
    yield f"{sizes}; {found.duplicates} of them equal to an earlier one"
    yield f"tokens of a document: {np.median(lengths):.0f} median, {lengths.mean():.0f} mean, {lengths.max()} at most"
    powers = np.bincount(np.frexp(lengths)[1] - 1)
    width = len(f"{2 ** (len(powers) - 1)}-{2 ** len(powers) - 1}")
    for power, number in enumerate(powers.tolist()):
        if number or powers[:power].any():
            bar = "#" * -(-_BAR * number // int(powers.max()))
            yield f"  {f'{2**power}-{2 ** (power + 1) - 1}':>{width}} {number:>9} {bar}".rstrip()
    if found.languages:
        shares = (f"{name} {number / found.languages.total():.1%}" for name, number in found.languages.most_common())
        yield f"languages by letters, of {counted(found.languages.total(), 'document')}: {', '.join(shares)}"


class _Stream:
    """The documents of rows that were cut from a stream, each to its end of text."""

    def __init__(self, folder: Path) -> None:
        file = folder / "data_params.json"
        try:
            self._eos_id = int(parse_json(read_text(file, MIB), str(file))["processing"]["eos_id"])
        except (UserError, LookupError, TypeError, ValueError):
            raise DataError(
                f"{shown_path(file)}: names no eos_id, which ends the documents of a stream; give a folder that "
                "`cerebras-jais data pack` wrote"
            ) from None
        self._rest = np.empty(0, np.uint32)
        self._last = -1

    def documents(self, rows: np.ndarray, filled: np.ndarray) -> Tokens:
        """Those that end in rows, int32 [n, 3, length]."""
        # A row begins with the last label of the one before, unless that one ended a stream.
        ends = np.cumsum(filled.sum(axis=1))
        labels = rows[:, 2][filled]
        before = np.concatenate([[self._last], np.where(filled[:-1, -1], rows[:-1, 2, -1], -1)])
        anew = np.flatnonzero(rows[:, 0, 0] != before)
        starts = np.concatenate([[0], ends[:-1]])[anew]
        tokens = np.insert(labels, starts, rows[anew, 0, 0]).astype(np.uint32)
        tokens = np.concatenate([self._rest, tokens])
        stops = np.flatnonzero(tokens == self._eos_id) + 1
        last = int(stops[-1]) if len(stops) else 0
        self._rest, self._last = tokens[last:], int(rows[-1, 2, -1]) if filled[-1, -1] else -1
        return Tokens(tokens[:last], stops)

    def rest(self) -> Tokens:
        """A document without its end."""
        return Tokens(self._rest, np.asarray([len(self._rest)] if len(self._rest) else [], dtype=np.int64))


def _packed(rows: np.ndarray, filled: np.ndarray) -> Tokens:
    """The pieces of rows, int32 [n, 5, length], in which documents are packed whole: each with its last label."""
    starts = np.flatnonzero((rows[:, 4] == 0)[filled])
    ids, labels = rows[:, 0][filled], rows[:, 2][filled]
    ends = np.append(starts[1:], len(ids))
    tokens = np.insert(ids, ends, labels[ends - 1]).astype(np.uint32)
    return Tokens(tokens, ends + np.arange(1, len(ends) + 1))
