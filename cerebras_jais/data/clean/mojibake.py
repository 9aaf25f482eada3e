"""UTF-8 that was read as Windows-1256, Windows-1252 or Latin-1 and stored so, read back where it is certain.

Arabic letters are two bytes in UTF-8, of which the first is D8 or D9. Read as Windows-1256 these are tah and zah, read
as Latin-1 "Ø" and "Ù", each before a character of the bytes 80 to BF: two such pairs side by side are the sign that is
looked for. What is read back is the run of characters around the sign that are UTF-8 byte by byte, ASCII among them,
so a damaged line inside a sound text is repaired and the rest is left.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class _Misreading:
    """One wrong code page: its characters as bytes, the sign, and the runs of characters that are UTF-8."""

    to_byte: dict[int, int]
    sign: re.Pattern[str]
    run: re.Pattern[str]


def _misreading(code_page: str) -> _Misreading:
    # Python leaves five bytes of cp1252 undefined; software that meets them keeps them as control characters.
    chars = [bytes([byte]).decode(code_page, errors="ignore") or chr(byte) for byte in range(0x80, 0x100)]
    spelt = {byte: {char} for byte, char in enumerate(chars, start=0x80)}
    if code_page == "cp1252":  # Latin-1 differs from it in the control characters alone
        for byte in range(0x80, 0xA0):
            spelt[byte].add(chr(byte))

    def any_of(first: int, last: int) -> str:
        return f"[{re.escape(''.join(char for byte in range(first, last + 1) for char in sorted(spelt[byte])))}]"

    tail = any_of(0x80, 0xBF)
    character = (
        f"(?:{any_of(0xC2, 0xDF)}{tail}|{any_of(0xE0, 0xEF)}{tail}{tail}|{any_of(0xF0, 0xF4)}{tail}{tail}{tail})"
    )
    return _Misreading(
        {ord(char): byte for byte, chars in spelt.items() for char in chars},
        re.compile(2 * (any_of(0xD8, 0xD9) + tail)),
        re.compile(f"{character}(?:[\x00-\x7f]*{character})*"),
    )


# The letters and vowel marks of Arabic itself: Windows-1256 shows some of the bytes as letters of Persian and Urdu.
_ARABIC = re.compile("[\u0621-\u063a\u0641-\u0652\u0670]")
_MISREADINGS = (_misreading("cp1256"), _misreading("cp1252"))


def repair_mojibake(text: str, changes: Counter[str]) -> str:
    """Return the text with each damaged run read back, until none is left; counts the runs as "mojibake".

    A run is replaced only if its bytes are strictly valid UTF-8 and the share of Arabic in it rises.
    """
    for misreading in _MISREADINGS:
        if misreading.sign.search(text):
            repaired = misreading.run.sub(partial(_read_back, misreading, changes), text)
            if repaired != text:
                return repair_mojibake(repaired, changes)
    return text


def _read_back(misreading: _Misreading, changes: Counter[str], found: re.Match[str]) -> str:
    run = found[0]
    if not misreading.sign.search(run):
        return run
    try:
        read = bytes(misreading.to_byte.get(ord(char), ord(char)) for char in run).decode("utf-8")
    except UnicodeDecodeError:
        return run
    if len(_ARABIC.findall(read)) * len(run) <= len(_ARABIC.findall(run)) * len(read):
        return run
    changes["mojibake"] += 1
    return read
