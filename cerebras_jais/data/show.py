"""Packed rows to look at: which tokens stand in a row, where each example ends, and what counts in the loss."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cerebras_jais.data.clean.languages import is_arabic_script
from cerebras_jais.data.documents import DataError
from cerebras_jais.data.packing import STREAM_FEATURES, filled_positions
from cerebras_jais.data.shards import HDF5Source
from cerebras_jais.data.tokenizer import vocabulary_size
from cerebras_jais.wording import counted

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_SIGN = "∎"
COUNTED_BAR, OTHER_BAR = "█", "│"
LEGEND = f"{COUNTED_BAR} counts in the loss, {OTHER_BAR} does not, {END_SIGN} end of text"
MOST_ROWS = 10_000
_JOINERS = "\u200c\u200d"  # without them Persian words and emoji fall apart


class Run(NamedTuple):
    """Neighbouring tokens as text, all of them in the loss or none."""

    text: str
    trained: bool


@dataclass(frozen=True)
class Piece:
    """One example of a row, or one document of a stream: its positions from `start` to before `end`, and its text."""

    start: int
    end: int
    trained: int
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Row:
    """One packed row; `sees_only_itself` is whether its pieces are hidden from one another (VSL)."""

    number: int
    length: int
    filled: int
    trained: int
    sees_only_itself: bool
    pieces: tuple[Piece, ...]


def open_rows(path: str | Path) -> HDF5Source:
    """Open a file of packed rows, a folder of such files, or the folder around `train` that `data` commands write.

    Raises DataError for what is none of them, and for a corpus, which is cut into rows only when it is read.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give what `cerebras-jais data chat` or `data pack` wrote")
    inner = path / "train"
    return HDF5Source(inner if inner.is_dir() and not any(path.glob("*.h5")) else path, use_vsl=None)


def read_rows(source: HDF5Source, numbers: Iterable[int], tokenizer: Tokenizer, eos_id: int) -> Iterator[Row]:
    """Yield rows by their numbers, each read as it is asked for; DataError for a token that the tokenizer has not."""
    vocabulary = vocabulary_size(tokenizer)
    for number in numbers:
        if not 0 <= number < len(source):
            raise DataError(
                f"row {number}: the data has {counted(len(source), 'row')}, 0 to {len(source) - 1}; choose among them"
            )
        (row,) = source.read(np.asarray([number]))
        for ids in (row[0], row[2]):
            if ids.max() >= vocabulary or ids.min() < 0:
                offender = ids.min() if ids.min() < 0 else ids.max()
                raise DataError(
                    f"{source.file_of(number)}: has the token id {offender}, which the tokenizer has not; "
                    "give the one that the data was packed with"
                )
        filled = filled_positions(row)
        packed = len(row) != len(STREAM_FEATURES)
        ends = _packed_ends(row, filled) if packed else _stream_ends(row, filled, eos_id)
        pieces = tuple(
            _piece(row, start, end, tokenizer, eos_id, whole=packed)
            for start, end in zip([0, *ends], ends, strict=False)
        )
        yield Row(number, row.shape[1], int(filled.sum()), int(row[1].sum()), packed, pieces)


def row_numbers(text: str) -> list[int]:
    """The numbers of `0-2,7`: [0, 1, 2, 7]; DataError for anything else, and for more than MOST_ROWS."""
    numbers: list[int] = []
    for part in text.split(","):
        written = re.fullmatch(r"\s*([0-9]{1,10})(?:-([0-9]{1,10}))?\s*", part)
        found = range(int(written[1]), int(written[2] or written[1]) + 1) if written else range(0)
        if not found or len(numbers) + len(found) > MOST_ROWS:
            raise DataError(f"rows {text!r}: give numbers and ranges such as 0-2,7, of {MOST_ROWS} rows at most")
        numbers.extend(found)
    return numbers


def title(row: Row) -> str:
    """A row's counts in one line."""
    kind = "example" if row.trained < row.filled else "document"
    others = "" if row.sees_only_itself else ", which see one another"
    return (
        f"row {row.number}: {counted(len(row.pieces), kind)}{others}, {row.filled} of "
        f"{counted(row.length, 'position')} filled, {row.trained} in the loss"
    )


def piece_title(number: int, piece: Piece) -> str:
    """An example's place and count in one line."""
    return f"{number}: positions {piece.start} to {piece.end - 1}, {piece.trained} in the loss"


def terminal_lines(piece: Piece) -> Iterator[tuple[str, bool]]:
    """Yield lines of text with whether they count in the loss.

    A line is of one kind, which the bar at its begin shows, so that no mark stands inside text that runs from right to
    left. Letters are in logical order, which a terminal turns. Control characters, those of direction too, are spelled
    out.
    """
    for run in piece.runs:
        for line in run.text.removesuffix("\n").split("\n"):
            yield f"{COUNTED_BAR if run.trained else OTHER_BAR} {_visible(line)}", run.trained


def html_page(rows: Iterable[Row], name: str) -> Iterator[str]:
    """Yield the parts of one page that needs nothing else: the loss marked, each line in the direction of its letters.

    All lines of an example stand on one side, that of its own letters.
    """
    yield _PAGE_HEAD.format(
        name=html.escape(name), legend="marked text counts in the loss, " + END_SIGN + " end of text"
    )
    for row in rows:
        yield f"<section>\n<h2>{title(row)}</h2>\n"
        for number, piece in enumerate(row.pieces, 1):
            whole = _direction("".join(run.text for run in piece.runs))
            yield f'<h3>{piece_title(number, piece)}</h3>\n<article dir="{whole}">\n'
            yield from (
                f'<p dir="{_direction(plain)}">{line or "<br>"}</p>\n' for line, plain in _html_lines(piece.runs)
            )
            yield "</article>\n"
        yield "</section>\n"
    yield "</body>\n</html>\n"


def _html_lines(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    """Yield lines as HTML and as they are."""
    line = plain = ""
    for run in runs:
        for number, part in enumerate(run.text.split("\n")):
            if number:
                yield line, plain
                line = plain = ""
            if part:
                tag = "mark" if run.trained else "span"
                line += f'<{tag} dir="{_direction(part)}">{html.escape(_visible(part))}</{tag}>'
                plain += part
    yield line, plain


def _direction(text: str) -> str:
    """Of most letters: a line of an Arabic message begins with a Latin marker, so its first letter tells nothing."""
    return "rtl" if is_arabic_script(text) else "ltr"


def _packed_ends(row: np.ndarray, filled: np.ndarray) -> list[int]:
    """Where each piece ends, of one that begins at 0: by the span of its first position."""
    ends: list[int] = []
    start, last = 0, int(filled.sum())
    while start < last:
        start = min(last, start + max(0, int(row[3, start])) + 1)
        ends.append(start)
    return ends


def _stream_ends(row: np.ndarray, filled: np.ndarray, eos_id: int) -> list[int]:
    last = int(filled.sum())
    ends = [int(place) + 1 for place in np.flatnonzero(row[0, :last] == eos_id)]
    return ends if ends and ends[-1] == last else [*ends, last]


def _piece(row: np.ndarray, start: int, end: int, tokenizer: Tokenizer, eos_id: int, *, whole: bool) -> Piece:
    """The piece at some positions; the last label belongs to a `whole` one, and to the end of a row."""
    mask = row[1]
    ids = row[0, start:end].tolist()
    trained = [bool(start and not whole and mask[start - 1]), *map(bool, mask[start : end - 1])]
    if whole or end == int(filled_positions(row).sum()):
        ids.append(int(row[2, end - 1]))
        trained.append(bool(mask[end - 1]))
    breaks = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(ids)]
    runs = tuple(Run(_text(ids[a:b], tokenizer, eos_id), trained[a]) for a, b in pairwise(breaks))
    return Piece(start, end, int(mask[start:end].sum()), runs)


def _text(ids: Sequence[int], tokenizer: Tokenizer, eos_id: int) -> str:
    """Tokens as text, the end of text as a sign of its own: the same letters may stand in a text."""
    parts: list[list[int]] = [[]]
    for token in ids:
        parts.append([]) if token == eos_id else parts[-1].append(token)
    return END_SIGN.join(tokenizer.decode(part, skip_special_tokens=False) for part in parts)


def _visible(line: str) -> str:
    return "".join(c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode() for c in line)


_PAGE_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1rem/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.3rem; }}
h2 {{ font-size: 1.1rem; margin-top: 2.5rem; }}
h3 {{ font-size: 0.85rem; font-weight: normal; opacity: 0.75; margin: 0.8rem 0 0; }}
article {{ border: 1px solid #8888; border-radius: 0.4rem; padding: 0.8rem 1rem; margin: 0.2rem 0 0.8rem; }}
p {{ margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }}
article[dir=rtl] p {{ text-align: right; }}
article[dir=ltr] p {{ text-align: left; }}
mark {{ background: #ffdf6b; color: #111; border-radius: 0.2rem; }}
</style>
</head>
<body>
<h1>{name}</h1>
<p>{legend}</p>
"""
