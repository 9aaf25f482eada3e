"""Which characters belong to a script, by their Unicode names, and which letters Arabic itself is written with."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from cerebras_jais.vocabulary.errors import VocabularyError

# Letters, tashkeel and Quranic marks of Arabic in the block U+0600-06FF. Persian, Urdu, Kurdish and Pashto use others
# beside them: peh, tcheh, jeh, gaf, keheh, Farsi yeh, tteh, noon ghunna and more.
_ARABIC_LETTERS = re.compile(r"[\u0621-\u063a\u0640-\u065f\u0670\u0671\u06d6-\u06ed]")


def scripts_of(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern for the Unicode name of a character of one of these scripts, such as arabic or cyrillic.

    "ARABIC-INDIC DIGIT ONE" and "EXTENDED ARABIC-INDIC DIGIT ONE" count as Arabic. Raises VocabularyError for a script
    that no character is named after, and for Latin.
    """
    wanted = [name.strip().upper() for name in names]
    for name in wanted:
        if name == "LATIN":
            raise VocabularyError(
                "--script latin: the base's own languages are written in it, and their tokens would change; give "
                "another script"
            )
        if not _is_a_script(name):
            raise VocabularyError(
                f"--script {name.lower()[:40]!r}: no character has a Unicode name that begins so; give for example "
                "arabic, cyrillic, devanagari, greek, hangul, hebrew or thai"
            )
    return re.compile(rf"(?:EXTENDED )?(?:{'|'.join(map(re.escape, wanted))})[ -]")


def _is_a_script(name: str) -> bool:
    if not name:
        return False
    return any(unicodedata.name(chr(code), "").startswith(f"{name} ") for code in range(0x370, 0x30000))


def is_written_in(text: str, script: re.Pattern[str]) -> bool:
    """Whether a token can be taken: characters of the script alone, with at most one space before them.

    A number of several digits is not: in the way of Llama-2 each digit is a token of its own. A token of several
    characters that has a digit is therefore refused, too.
    """
    letters = text.removeprefix(" ")
    if not letters or not all(script.match(unicodedata.name(char, "")) for char in letters):
        return False
    return len(text) == 1 or not any(char.isdigit() for char in letters)


def has_foreign_letters(text: str) -> bool:
    """Whether a letter or mark of the text is none of Arabic's own: Persian's, Urdu's, or a presentation form."""
    return any(unicodedata.category(char)[0] in "LM" and not _ARABIC_LETTERS.match(char) for char in text)
