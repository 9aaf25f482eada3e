"""The front of this folder: a text and the language that its source names, to the cleaned text or a reason to drop it.

The steps, in this order: mojibake is read back, characters are normalised, the language is told where the source does
not say it, documents in other languages than wanted are dropped, and so are those that the rules of quality refuse.
Code, by its source's word alone, is passed on as it is.
"""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cerebras_jais.data.clean.arabic import Normalisation, normalise
from cerebras_jais.data.clean.languages import BY_LETTERS, language_detector
from cerebras_jais.data.clean.lines import without_page_lines, without_symbol_lines
from cerebras_jais.data.clean.mojibake import repair_mojibake
from cerebras_jais.data.clean.presets import preset
from cerebras_jais.data.clean.quality import Reason, find_reason

CODE = "code"


@dataclass(frozen=True)
class CleanerSettings:
    """What is done to a document.

    mojibake: whether UTF-8 that was read in another encoding is read back.
    normalisation: how characters are normalised; None leaves them.
    language_model: who tells the language of a text whose source does not: see `language_detector`.
    minimum_language_score: below it a model's answer is "und"; 0.711 is FineWeb-2's for Arabic, with GlotLID.
    check_language: whether a document is dropped whose detected language is not the one that its source names.
    languages: the languages that are kept; None keeps all.
    quality: the name of a set of rules (see `quality.PRESETS`); None drops nothing for its quality.
    """

    mojibake: bool = True
    normalisation: Normalisation | None = field(default_factory=Normalisation)
    language_model: str = BY_LETTERS
    minimum_language_score: float = 0.0
    check_language: bool = False
    languages: tuple[str, ...] | None = None
    quality: str | None = None


_UNCHANGED: Mapping[str, int] = {}


class Cleaned(NamedTuple):
    """A document that is kept: its text, its language, and how often each kind of change was made to it."""

    text: str
    language: str
    changes: Mapping[str, int]


@dataclass(frozen=True)
class Dropped:
    """A document that is not kept, and why; the language is None where it was dropped before that was told."""

    reason: Reason
    language: str | None


class Cleaner:
    """Cleans one document after another: `cleaner(text, language)`, the language None where the source says none.

    Raises UserError, when it is made, for a language model that cannot be loaded and for an unknown set of rules.
    """

    def __init__(self, settings: CleanerSettings) -> None:
        self.settings = settings
        self._detect = language_detector(settings.language_model, settings.minimum_language_score)
        self._rules = preset(settings.quality) if settings.quality is not None else {}
        self._changes: Counter[str] = Counter()  # of one document; making one takes as long as all else without rules

    def __call__(self, text: str, language: str | None) -> Cleaned | Dropped:
        """Return the cleaned document, or the reason to drop it."""
        settings = self.settings
        changes = self._changes
        changes.clear()
        if not text.strip():
            return Dropped(Reason.EMPTY, language)
        if not _is_unicode(text):
            return Dropped(Reason.LONE_SURROGATE, language)
        if language != CODE:
            if settings.mojibake:
                text = repair_mojibake(text, changes)
            detected = self._detect(text) if language is None or settings.check_language else language
            if language is not None and detected != language:
                return Dropped(Reason.OTHER_LANGUAGE, language)
            language = detected
            if settings.normalisation is not None:
                text = normalise(text, language, settings.normalisation, changes)
                if not text.strip():
                    return Dropped(Reason.EMPTY, language)
        if settings.languages is not None and language not in settings.languages:
            return Dropped(Reason.UNWANTED_LANGUAGE, language)
        if rules := self._rules.get(language):
            if rules.page is not None:
                prose = without_page_lines(text, rules.page, changes)
                if isinstance(prose, Reason):
                    return Dropped(prose, language)
                text = prose
            if reason := find_reason(text, language, rules):
                return Dropped(reason, language)
            if rules.symbols:
                text = without_symbol_lines(text, rules.symbols, changes)
        return Cleaned(text, language, +changes if changes else _UNCHANGED)


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; one with half a pair of surrogates, as JSON can spell it, cannot."""
    try:
        codecs.readbuffer_encode(
            text
        )  # as text.encode, but the text keeps its UTF-8, which the tokenizer asks for again
    except UnicodeEncodeError:
        return False
    return True
