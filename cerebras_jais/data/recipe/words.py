"""The words by which documents are compared: without case, marks, punctuation and the values of numbers."""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache
from itertools import groupby

import numpy as np

# As datatrove's simplify_text has it (utils/text.py of 0.10.1): these characters separate words, and a number with or
# without decimals counts as 0. Arabic question marks, commas and semicolons are no separators there, so none here.
_PUNCTUATION = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»" + "".join(
    map(chr, (*range(9), *range(11, 32), *range(127, 160)))
)
_NUMBER = re.compile(r"\d+(?:[.,،٫⎖⎗⎘]\d+)?")
_SEPARATORS = re.compile(rf"[\s{re.escape(_PUNCTUATION)}]+")


@cache
def _marks(first: int, last: int) -> re.Pattern[str]:
    """What fits a mark (category Mn) of a range of characters."""
    codes = [code for code in range(first, last + 1) if unicodedata.category(chr(code)) == "Mn"]
    runs = [[code for _, code in run] for _, run in groupby(enumerate(codes), lambda item: item[1] - item[0])]
    return re.compile(f"[{''.join(f'{chr(run[0])}-{chr(run[-1])}' for run in runs)}]")


# A class with characters beyond U+FFFF is looked through range by range, so they have one of their own.
_BEYOND = re.compile("[\U00010000-\U0010ffff]")
_SPACES = re.compile(" {2,}")


def simplified(text: str) -> str:
    """The words of a text, one space between them, as datatrove's MinHash normalises them.

    Lower case; a number is 0; punctuation and white space separate; marks go, so that أ, إ and آ become ا and tashkeel
    disappears (canonical decomposition without category Mn). Tatweel, ة and ى stay.
    """
    text = _SEPARATORS.sub(" ", _NUMBER.sub("0", text.lower()))
    if not text.isascii():
        text = _marks(0, 0xFFFF).sub("", unicodedata.normalize("NFD", text))
        if _BEYOND.search(text):
            text = _marks(0x10000, sys.maxunicode).sub("", text)
        if "  " in text:
            text = _SPACES.sub(" ", text)
    return text.strip()


def word_bounds(simple: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Where the words of a simplified text, as UTF-8, begin and end, int64 each."""
    if not simple:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    spaces = np.flatnonzero(np.frombuffer(simple, np.uint8) == ord(" "))
    return np.concatenate([[0], spaces + 1]), np.append(spaces, len(simple))


def run_hashes(simple: str, length: int) -> np.ndarray:
    """A hash of each run of `length` words of a simplified text, uint64 [words - length + 1] or empty."""
    from xxhash import xxh64_intdigest

    words = simple.encode("utf-8").split(b" ") if simple else []
    count = len(words) - length + 1
    if count < 1:
        return np.empty(0, np.uint64)
    hashed = np.fromiter(map(xxh64_intdigest, words), np.uint64, len(words))
    total = np.zeros(count, np.uint64)
    for offset in range(length):
        total = total * np.uint64(0x9E3779B97F4A7C15) + hashed[offset : offset + count]
    return total
