"""Text into words by one regular expression, for Arabic and English: what quality rules count.

A word is a run of letters, digits, marks and joiners; numbers keep their separators and words their apostrophes. Every
other character that is not white space is a word of its own, as in spaCy's splitters, but a run of full stops is one.
"""

from __future__ import annotations

import re

from cerebras_jais.data.clean.arabic import JOINERS, MARKS

_IN_WORDS = rf"\w{MARKS}\u0300-\u036f{JOINERS}"
_WORD = re.compile(rf"[{_IN_WORDS}]+(?:(?:(?<=\d)[.,\u066b\u066c](?=\d)|['\u2019](?=\w))[{_IN_WORDS}]+)*|\.\.+|[^\s]")


def split_words(text: str) -> list[str]:
    """Return the words and the single symbols of a text, in order; joined without white space they are the text."""
    return _WORD.findall(text)
