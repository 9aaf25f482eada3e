"""Whether a document keeps the rules of `presets.py`: the reason of the first that it breaks.

Each fraction is defined as datatrove 0.10 defines it for its Gopher and FineWeb filters, since the published thresholds
belong to those definitions. Two differences: words are split by `split_words`, and n-grams are the same if their words
are, where datatrove compares their letters alone.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from itertools import accumulate

from cerebras_jais.data.clean.languages import count_letters
from cerebras_jais.data.clean.ngrams import duplicate_ngram_characters, repeated_ngrams, top_ngram_characters
from cerebras_jais.data.clean.presets import Lines, Repetition, Rules, Script, Words
from cerebras_jais.data.clean.words import split_words


class Reason(StrEnum):
    """Why a document is dropped."""

    EMPTY = "empty"
    LONE_SURROGATE = "lone-surrogate"
    OTHER_LANGUAGE = "other-language"  # than its source says
    UNWANTED_LANGUAGE = "unwanted-language"
    REFUSED_PHRASE = "refused-phrase"
    TOO_FEW_SENTENCES = "too-few-sentences"
    TOO_FEW_WORDS = "too-few-words"
    TOO_MANY_WORDS = "too-many-words"
    LONG_WORD = "long-word"
    FEW_LETTERS_OF_SCRIPT = "few-letters-of-script"
    FEW_LINES_OF_SCRIPT = "few-lines-of-script"
    DUPLICATE_PARAGRAPHS = "duplicate-paragraphs"
    DUPLICATE_PARAGRAPH_CHARACTERS = "duplicate-paragraph-characters"
    DUPLICATE_LINES = "duplicate-lines"
    DUPLICATE_LINE_CHARACTERS = "duplicate-line-characters"
    TOP_NGRAM = "top-ngram"
    DUPLICATE_NGRAMS = "duplicate-ngrams"
    FEW_ENDED_LINES = "few-ended-lines"
    SHORT_LINES = "short-lines"
    MANY_LINE_BREAKS = "many-line-breaks"
    SHORT_WORDS = "short-words"
    LONG_WORDS = "long-words"
    HASH_SIGNS = "hash-signs"
    ELLIPSES = "ellipses"
    BULLET_LINES = "bullet-lines"
    ELLIPSIS_LINES = "ellipsis-lines"
    FEW_ALPHABETIC_WORDS = "few-alphabetic-words"
    FEW_STOP_WORDS = "few-stop-words"


# What ends a sentence in Latin, Arabic and East Asian text (Unicode's property Sentence_Terminal).
TERMINAL = frozenset(
    ".!?\u0589\u061d\u061e\u061f\u06d4\u203c\u203d\u2047\u2048\u2049\u2e2e\u2e3c\u2e53\u2e54"
    "\u3002\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61"
)
# A word of nothing else is a symbol. The Arabic comma and semicolon are missing, as in the filters that the thresholds
# belong to: they count as words there.
SYMBOLS = (
    string.punctuation
    + "\u00ab\u00b4\u00bb\u2013\u2014\u2019\u201c\u201d\u201e\u2026\u2236\u2501\u25ba"
    + "\u3001\u3002\u3008\u3009\u300a\u300b\u300c\u300d\u3010\u3011\uff05\uff08\uff09\uff0c\uff11\uff1a\uff1b\uff5e"
    + "".join(sorted(TERMINAL))
)
ELLIPSES = ("...", "\u2026")
_BULLETS = ("\u2022", "-")
_PARAGRAPH_BREAK = re.compile(r"\n{2,}")
_LINE_BREAK = re.compile(r"\n+")

Splitter = Callable[[str, str], Sequence[str]]
"""A function from a text and its language to its words."""


def find_reason(text: str, language: str, rules: Rules, split: Splitter = split_words) -> Reason | None:
    """Return the reason of the first rule that a text in a language breaks, None if it keeps all."""
    return next(_reasons(text, language, rules, split), None)


def _reasons(text: str, language: str, rules: Rules, split: Splitter) -> Iterator[Reason]:
    if not text or text.isspace():
        yield Reason.EMPTY
    if rules.script is not None:
        yield from _script(text, language, rules.script)
    if rules.repetition is not None:
        yield from _repeated_parts(text, rules.repetition)
    words = split(text, language) if rules.repetition or rules.lines or rules.words else ()
    # First, since repeated words take memory by the word.
    longest = rules.words.maximum if rules.words is not None else None
    if _above(len(words), longest) and _above(len(words) - len(_symbols(words)), longest):
        yield Reason.TOO_MANY_WORDS
    if rules.repetition is not None:
        yield from _repeated_words(len(text), words, rules.repetition)
    if rules.lines is not None:
        yield from _lines(text, len(words), rules.lines)
    if rules.words is not None:
        yield from _words(text, words, rules.words)


def _above(value: float, most: float | None) -> bool:
    return most is not None and value > most


def _below(value: float, least: float | None) -> bool:
    return least is not None and value < least


def _script(text: str, language: str, rules: Script) -> Iterator[Reason]:
    lengths = list(map(len, text.split()))
    if _below(len(lengths), rules.minimum_words):
        yield Reason.TOO_FEW_WORDS
    if _above(len(lengths), rules.maximum_words):
        yield Reason.TOO_MANY_WORDS
    if _above(max(lengths, default=0), rules.longest_word):
        yield Reason.LONG_WORD
    if _below(_share_of_script(text, language), rules.minimum_letters):
        yield Reason.FEW_LETTERS_OF_SCRIPT
    if rules.minimum_lines is not None:
        lines = [_share_of_script(line, language) >= 0.5 for line in text.split("\n") if any(map(str.isalpha, line))]
        if sum(lines) < rules.minimum_lines * len(lines):
            yield Reason.FEW_LINES_OF_SCRIPT


def _share_of_script(text: str, language: str) -> float:
    arabic, latin, letters = count_letters(text)
    return (arabic if language == "ar" else latin) / letters if letters else 0.0


def _duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts stood before, and their characters."""
    if len(set(parts)) == len(parts):
        return 0, 0
    seen: set[str] = set()
    again = [part for part in parts if part in seen or seen.add(part)]  # type: ignore[func-returns-value]
    return len(again), sum(map(len, again))


def _repeated_parts(text: str, rules: Repetition) -> Iterator[Reason]:
    paragraphs = _PARAGRAPH_BREAK.split(text.strip())
    again, characters = _duplicates(paragraphs)
    if _above(again / len(paragraphs), rules.paragraphs):
        yield Reason.DUPLICATE_PARAGRAPHS
    if _above(characters / len(text), rules.paragraph_characters):
        yield Reason.DUPLICATE_PARAGRAPH_CHARACTERS
    lines = _LINE_BREAK.split(text)
    again, characters = _duplicates(lines)
    if _above(again / len(lines), rules.lines):
        yield Reason.DUPLICATE_LINES
    if _above(characters / len(text), rules.line_characters):
        yield Reason.DUPLICATE_LINE_CHARACTERS


def _repeated_words(size: int, words: Sequence[str], rules: Repetition) -> Iterator[Reason]:
    top, again = dict(rules.top_ngrams), dict(rules.duplicate_ngrams)
    ends = [0, *accumulate(map(len, words))]
    for n, repeated in repeated_ngrams(words, max([*top, *again], default=1)):
        if n in top and top_ngram_characters(n, repeated, ends) / size > top[n]:
            yield Reason.TOP_NGRAM
        if n in again and duplicate_ngram_characters(n, repeated, ends) / size > again[n]:
            yield Reason.DUPLICATE_NGRAMS


def _lines(text: str, words: int, rules: Lines) -> Iterator[Reason]:
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    if not lines:
        yield Reason.EMPTY
        return
    if _below(sum(line[-1] in TERMINAL for line in lines) / len(lines), rules.minimum_ended):
        yield Reason.FEW_ENDED_LINES
    if _above(sum(len(line) <= rules.short for line in lines) / len(lines), rules.maximum_short):
        yield Reason.SHORT_LINES
    breaks = text.count("\n")
    if _above(_duplicates(lines)[1] / (len(text) - breaks), rules.maximum_duplicate_characters):
        yield Reason.DUPLICATE_LINE_CHARACTERS
    if _above(breaks / words, rules.maximum_breaks):
        yield Reason.MANY_LINE_BREAKS


def _symbols(words: Sequence[str]) -> list[str]:
    return [word for word in words if not word.strip(SYMBOLS)]


def _words(text: str, words: Sequence[str], rules: Words) -> Iterator[Reason]:
    others = [word for word in words if not word.isalpha()]
    symbols = _symbols(others)
    count = len(words) - len(symbols)
    if _below(count, rules.minimum):
        yield Reason.TOO_FEW_WORDS
    mean = (sum(map(len, words)) - sum(map(len, symbols))) / max(1, count)
    if _below(mean, rules.minimum_mean_length):
        yield Reason.SHORT_WORDS
    if _above(mean, rules.maximum_mean_length):
        yield Reason.LONG_WORDS
    if _above(text.count("#") / len(words), rules.maximum_symbols):
        yield Reason.HASH_SIGNS
    if _above(sum(map(text.count, ELLIPSES)) / len(words), rules.maximum_symbols):
        yield Reason.ELLIPSES
    lines = text.splitlines()
    if _above(sum(line.lstrip().startswith(_BULLETS) for line in lines) / len(lines), rules.maximum_bullets):
        yield Reason.BULLET_LINES
    if _above(sum(line.rstrip().endswith(ELLIPSES) for line in lines) / len(lines), rules.maximum_ellipses):
        yield Reason.ELLIPSIS_LINES
    without_letters = sum(not any(map(str.isalpha, word)) for word in others)
    if _below((len(words) - without_letters) / len(words), rules.minimum_alphabetic):
        yield Reason.FEW_ALPHABETIC_WORDS
    if _below(len(rules.stop_words.intersection(words)), rules.minimum_stop_words):
        yield Reason.FEW_STOP_WORDS
