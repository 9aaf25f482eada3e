"""Text normalised for a tokenizer that keeps tashkeel: what cannot be seen goes, no letter becomes another.

Kept: tashkeel and Quranic marks, hamza forms, alef variants, teh marbuta, alef maqsura, both sets of digits,
joiners between letters, a tatweel that stands alone, ends a word or carries a mark. Removed: tatweel between letters,
zero-width spaces, byte order marks, bidirectional controls, control characters. Presentation forms become the letters
they show. NFKC would do that too, but it rewrites much else ("³", "…", "ﷺ"), so a table of the Arabic forms is used.

NFC puts a vowel before shadda, while people type shadda first, as does Unicode's own order for display (UTR #53).
A model whose training text is in NFC therefore meets other tokens in prompts, so the default is shadda first.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

TATWEEL = "\u0640"
SHADDA = "\u0651"
ZERO_WIDTH_SPACE = "\u200b"
BYTE_ORDER_MARK = "\ufeff"
JOINERS = "\u200c\u200d"
BIDI_CONTROLS = "\u061c\u200e\u200f" + "".join(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))

# Vowels, shadda, sukun and dagger alef: the marks that canonical order sorts by fixed positions (classes 27 to 35).
TASHKEEL = "\u064b-\u0652\u0670"
# All combining marks of the Arabic blocks, as a class of a regular expression.
MARKS = "\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0898-\u089f\u08ca-\u08ff"
# Letters of the Arabic blocks without tatweel, presentation forms aside.
LETTERS = (
    "\u0620-\u063f\u0641-\u064a\u066e\u066f\u0671-\u06d3\u06d5\u06ee\u06ef\u06fa-\u06fc\u06ff"
    "\u0750-\u077f\u0870-\u0887\u0889-\u088e\u08a0-\u08c9"
)

_COMBINING_HAMZAS = "\u0653\u0654\u0655"  # madda above, hamza above, hamza below
# Signs rather than spellings; NFKC makes whole phrases of them (of U+FDFC, the rial sign, one with a Persian yeh).
_SIGNS = re.compile("[\ufdfa\ufdfb\ufdfc]")


class MarkOrder(StrEnum):
    """In which order the marks of a letter stand."""

    SHADDA_FIRST = "shadda-first"
    NFC = "nfc"
    AS_WRITTEN = "as-written"


@dataclass(frozen=True)
class Normalisation:
    """How text is normalised.

    mark_order: `shadda-first` composes U+0653 to U+0655 with their letters and puts shadda before the other marks;
        `nfc` is Unicode's NFC of the whole text; `as-written` composes and orders nothing.
    spell_out_signs: whether the signs U+FDFA, U+FDFB and U+FDFC become the words they stand for.
    persian_letters: whether, in documents whose language is Arabic and that have none of the letters peh, tcheh, jeh
        and gaf, Farsi yeh and keheh become yeh and kaf.
    """

    mark_order: MarkOrder = MarkOrder.SHADDA_FIRST
    spell_out_signs: bool = False
    persian_letters: bool = False


def _shown_letters(form: str) -> str:
    """The letters that a presentation form shows; a form of a mark alone, which NFKC sets on a space, is the mark."""
    return unicodedata.normalize("NFKC", form).lstrip(" ")


def _forms() -> dict[str, str]:
    forms = map(chr, (*range(0xFB50, 0xFE00), *range(0xFE70, 0xFEFD)))
    return {form: _shown_letters(form) for form in forms if unicodedata.decomposition(form) and not _SIGNS.match(form)}


def _hamza_forms() -> dict[str, str]:
    """Letter and combining madda or hamza, to the one character they are canonically."""
    pairs = {unicodedata.normalize("NFD", chr(code)): chr(code) for code in range(0x0600, 0x0700)}
    return {pair: letter for pair, letter in pairs.items() if len(pair) == 2 and pair[1] in _COMBINING_HAMZAS}


_FORMS = _forms()
_HAMZA_FORMS = _hamza_forms()
_CONTROLS = "".join(chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n")
_LINE_ENDS = "\r\x0b\x0c\x85"

_NAMES: dict[str, str] = (
    dict.fromkeys(_CONTROLS, "controls")
    | dict.fromkeys(_LINE_ENDS, "line_ends")
    | dict.fromkeys(BIDI_CONTROLS, "bidi_controls")
    | dict.fromkeys(_FORMS, "presentation_forms")
    | {ZERO_WIDTH_SPACE: "zero_width_spaces"}
)
_REPLACEMENTS: dict[str, str] = dict.fromkeys(_NAMES, "") | dict.fromkeys(_LINE_ENDS, "\n") | _FORMS

_REPLACED = re.compile(f"[{re.escape(''.join(_NAMES))}]")
_PARTING_BYTE_ORDER_MARKS = re.compile(f"(?<=[\\w{MARKS}]){BYTE_ORDER_MARK}+(?=\\w)")
_COMPOSABLE = re.compile(
    f"([{''.join(sorted({pair[0] for pair in _HAMZA_FORMS}))}])([{TASHKEEL}]*)([{_COMBINING_HAMZAS}])"
)
_VOWEL_BEFORE_SHADDA = re.compile(f"[\u064b-\u0650\u0652\u0670]{SHADDA}")
_SEVERAL_MARKS = re.compile(f"[{TASHKEEL}]{{2,}}")
_JOINERS = re.compile(f"[{JOINERS}]+")
_INNER_TATWEEL = re.compile(f"{TATWEEL}(?<=[{LETTERS}{MARKS}]{TATWEEL}){TATWEEL}*(?=[{LETTERS}]|{TATWEEL}[{MARKS}])")
_PERSIAN_ONLY = re.compile("[\u067e\u0686\u0698\u06af]")
_PERSIAN_FORMS = re.compile("[\u06cc\u06a9]")
_ARABIC_FOR_PERSIAN = {"\u06cc": "\u064a", "\u06a9": "\u0643"}


def normalise(text: str, language: str | None, settings: Normalisation, changes: Counter[str]) -> str:
    """Return the normalised text; counts into `changes`, by name, the characters (or runs of them) that changed."""
    if found := _REPLACED.findall(text):
        changes.update(map(_NAMES.__getitem__, found))
        text = _REPLACED.sub(_replacement, text.replace("\r\n", "\n"))
    if settings.spell_out_signs:
        text, signs = _SIGNS.subn(lambda sign: _shown_letters(sign[0]), text)
        changes["signs"] += signs
    if BYTE_ORDER_MARK in text:
        changes["byte_order_marks"] += text.count(BYTE_ORDER_MARK)
        # Where nothing else parts two words, as between joined files, a space does.
        text = _PARTING_BYTE_ORDER_MARKS.sub(" ", text).replace(BYTE_ORDER_MARK, "")
    if "\u200c" in text or "\u200d" in text:
        joiners = text.count("\u200c") + text.count("\u200d")
        text = _JOINERS.sub(_joiners_between_letters, text)
        changes["joiners"] += joiners - text.count("\u200c") - text.count("\u200d")
    if settings.persian_letters and language == "ar" and not _PERSIAN_ONLY.search(text):
        text, forms = _PERSIAN_FORMS.subn(lambda form: _ARABIC_FOR_PERSIAN[form[0]], text)
        changes["persian_letters"] += forms
    if settings.mark_order is MarkOrder.NFC:
        if not unicodedata.is_normalized("NFC", text):
            changes["nfc"] += 1
            text = unicodedata.normalize("NFC", text)
    elif settings.mark_order is MarkOrder.SHADDA_FIRST:
        if any(mark in text for mark in _COMBINING_HAMZAS):
            length = len(text)
            text = _COMPOSABLE.sub(_composed, text)
            changes["composed"] += length - len(text)
        if _VOWEL_BEFORE_SHADDA.search(text):
            text = _SEVERAL_MARKS.sub(partial(_shadda_first, changes), text)
    if TATWEEL in text:
        tatweels = text.count(TATWEEL)
        text = _INNER_TATWEEL.sub("", text)
        changes["tatweel"] += tatweels - text.count(TATWEEL)
    return text


def _replacement(found: re.Match[str]) -> str:
    return _REPLACEMENTS[found[0]]


def _composed(found: re.Match[str]) -> str:
    letter, between, mark = found.groups()
    form = _HAMZA_FORMS.get(letter + mark)
    return found[0] if form is None else form + between


def _shadda_first(changes: Counter[str], marks: re.Match[str]) -> str:
    ordered = SHADDA * marks[0].count(SHADDA) + marks[0].replace(SHADDA, "")
    changes["mark_order"] += ordered != marks[0]
    return ordered


def _joiners_between_letters(run: re.Match[str]) -> str:
    """The joiners themselves where they stand between letters or digits, or parts of an emoji, else nothing."""
    before, after = run.string[run.start() - 1 : run.start()], run.string[run.end() : run.end() + 1]
    joins = before and after and _kind(before) in "LMNS" and _kind(after) in "LNS"
    return run[0] if joins else ""


def _kind(char: str) -> str:
    return unicodedata.category(char)[0]
