"""A text as several tokenizers cut it, side by side for a terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from cerebras_jais.encoding import encodings

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_SPACE, _BETWEEN = "␣", "·"
# A terminal that turns Arabic would otherwise turn the counts and the columns beside it, too.
_ISOLATE, _END_OF_ISOLATE = "\u2068", "\u2069"
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class Cut:
    """A word, with the white space before it, and for each tokenizer its pieces as they are shown."""

    word: str
    pieces: tuple[tuple[str, ...], ...]


def cuts(text: str, tokenizers: Sequence[Tokenizer]) -> list[Cut]:
    """The words of a text, each with the pieces that begin in it, for each tokenizer in turn.

    A piece is shown as the part of the text that it stands for. If several stand for one character, each is shown as
    the tokenizer calls it, such as <0xD8>.
    """
    ends = [match.end() for match in re.finditer(r"\s*\S+", text)] or [len(text)]
    ends[-1] = len(text)
    columns = [_by_word(encodings(tokenizer, [text])[0], text, ends) for tokenizer in tokenizers]
    words = [text[start:end] for start, end in pairwise([0, *ends])]
    return [
        Cut(word, tuple(map(tuple, pieces))) for word, pieces in zip(words, zip(*columns, strict=True), strict=True)
    ]


def _by_word(encoding: Encoding, text: str, ends: list[int]) -> list[list[str]]:
    found: list[list[str]] = [[] for _ in ends]
    offsets, word = encoding.offsets, 0
    for number, (start, end) in enumerate(offsets):
        while word < len(ends) - 1 and ends[word] <= start:
            word += 1
        neighbours = offsets[max(0, number - 1) : number] + offsets[number + 1 : number + 2]
        shares = any(start < other_end and other_start < end for other_start, other_end in neighbours)
        name = encoding.tokens[number]
        found[word].append(name if shares or start == end else text[start:end])
    return found


def lines(found: list[Cut], names: list[str]) -> Iterator[str]:
    """Lines for a terminal: under each word, for each tokenizer, how many pieces and which.

    A piece, and a word, stands by itself in its own direction, with letters in logical order.
    """
    wide = max((len(name) for name in names), default=0)
    for cut in found:
        yield _shown(cut.word.strip() or cut.word)
        for name, pieces in zip(names, cut.pieces, strict=True):
            yield f"  {name:<{wide}}  {len(pieces):>3}  {f' {_BETWEEN} '.join(map(_shown, pieces))}".rstrip()


def _shown(text: str) -> str:
    """Text that a terminal can show: spaces visible, control characters spelled, a mark without letter on a circle."""
    parts = [
        _SPACE
        if char == " "
        else char
        if char.isprintable() or char in _JOINERS
        else char.encode("unicode_escape").decode()
        for char in text
    ]
    if text and unicodedata.combining(text[0]):
        parts.insert(0, "◌")
    return f"{_ISOLATE}{''.join(parts)}{_END_OF_ISOLATE}"
