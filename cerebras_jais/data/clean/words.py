"""Text into words by one regular expression, for Arabic and English: what the rules of quality count.

The published thresholds belong to spaCy's splitters, so the expression follows their main rules: a word is a run of
letters, digits, marks and characters that cannot be seen; numbers keep what parts their digits, and a hyphen before
them unless a digit precedes it; 's is a word, and so are initials with their full stops; every other character is a
word of its own, a run of full stops one word. In Arabic, spaCy leaves a full stop on the word before it unless two
letters precede it. docs/cleaning.md counts the differences that remain.
"""

from __future__ import annotations

import re

from cerebras_jais.data.clean.arabic import BIDI_CONTROLS, BYTE_ORDER_MARK, JOINERS, MARKS, ZERO_WIDTH_SPACE

_UNSEEN = f"{JOINERS}{BIDI_CONTROLS}{ZERO_WIDTH_SPACE}{BYTE_ORDER_MARK}"
_RUN = rf"[\w{MARKS}\u0300-\u036f{_UNSEEN}]+"
# Each alternative begins with what its first character is, and looks back past it: the search is a third faster so.
_INSIDE = r"[.,:/\u2013\u060c\u066b\u066c](?<=\d.)(?=\d)|-(?<=[^\W\d].)(?=\d)"
_WORD = f"{_RUN}(?:(?:{_INSIDE}){_RUN})*"
_BEFORE = r"['\u2019](?<=\w.)|-(?<!\S.)(?=\d)"
_INITIALS = r"[^\W\d_](?<!\w.)\.(?:[^\W\d_]\.){0,7}(?!\w)"  # bounded, so that the search stays linear
_FULL_STOP = r"(?:(?:[)\]\"\u201d\u00bb]+\.|\.(?<![^\W\d_]{2}.))(?!\S))?"


def _splitter(word: str) -> re.Pattern[str]:
    return re.compile(rf"{_INITIALS}|{word}|(?:{_BEFORE}){word}|\.\.+|\S")


_ARABIC, _OTHER = _splitter(_WORD + _FULL_STOP), _splitter(_WORD)


def split_words(text: str, language: str) -> list[str]:
    """Return the words and symbols of a text in order; joined without white space they are the text."""
    return (_ARABIC if language == "ar" else _OTHER).findall(text)
