"""Contract: each rule refuses a document beyond its threshold, not at it, and with a reason of its own; the presets
keep real text and carry the published numbers."""

from dataclasses import fields, replace

import pytest

from cerebras_jais.data.clean.presets import (
    FINEWEB2_ARABIC,
    FINEWEB_ENGLISH,
    JAIS_ARABIC,
    PRESETS,
    Lines,
    Repetition,
    Rules,
    Script,
    Words,
    preset,
)
from cerebras_jais.data.clean.quality import SYMBOLS, TERMINAL, Reason, find_reason
from cerebras_jais.errors import UserError

TEN = "كان في البيت القديم رجل يقرأ كتابا كل ليلة"  # 9 words; 42 characters, of which 34 letters
FOUR_LINES = "سطر أول.\nسطر ثان.\nسطر أول.\nسطر ثالث"

# A rule just kept, the same just broken, and why: (text, language, rules that keep it, rules that do not, reason).
CASES = {
    "few words by spaces": (TEN, "ar", Script(minimum_words=9), Script(minimum_words=10), Reason.TOO_FEW_WORDS),
    "many words by spaces": (TEN, "ar", Script(maximum_words=9), Script(maximum_words=8), Reason.TOO_MANY_WORDS),
    "a long word": (TEN, "ar", Script(longest_word=6), Script(longest_word=5), Reason.LONG_WORD),
    "letters of the script": (
        "نعم yes!", "ar", Script(minimum_letters=0.5), Script(minimum_letters=0.51), Reason.FEW_LETTERS_OF_SCRIPT
    ),
    "letters of Latin script": (
        "نعم yes!", "en", Script(minimum_letters=0.5), Script(minimum_letters=0.51), Reason.FEW_LETTERS_OF_SCRIPT
    ),
    "lines of the script": (
        "نعم\n12\nyes", "ar", Script(minimum_lines=0.5), Script(minimum_lines=0.51), Reason.FEW_LINES_OF_SCRIPT
    ),
    "duplicate paragraphs": (
        "أ\n\nب\n\nأ\n\nأ", "ar", Repetition(paragraphs=0.5), Repetition(paragraphs=0.49), Reason.DUPLICATE_PARAGRAPHS
    ),
    "their characters": (
        "ab\n\nc\n\nab", "en", Repetition(paragraph_characters=2 / 9), Repetition(paragraph_characters=0.22),
        Reason.DUPLICATE_PARAGRAPH_CHARACTERS,
    ),
    "duplicate lines": (
        FOUR_LINES, "ar", Repetition(lines=0.25), Repetition(lines=0.24), Reason.DUPLICATE_LINES
    ),
    "their characters too": (
        "ab\nc\n\nab", "en", Repetition(line_characters=0.25), Repetition(line_characters=0.24),
        Reason.DUPLICATE_LINE_CHARACTERS,
    ),
    "top 2-gram": (
        "a b c a b", "en", Repetition(top_ngrams=((2, 6 / 9),)), Repetition(top_ngrams=((2, 0.66),)), Reason.TOP_NGRAM
    ),
    "duplicate 5-gram": (
        "a b c d e a b c d e", "en", Repetition(duplicate_ngrams=((5, 5 / 19),)),
        Repetition(duplicate_ngrams=((5, 0.26),)), Reason.DUPLICATE_NGRAMS,
    ),
    "lines that end a sentence": (
        FOUR_LINES, "ar", Lines(minimum_ended=0.75), Lines(minimum_ended=0.76), Reason.FEW_ENDED_LINES
    ),
    "the Arabic question mark ends one": (
        "لماذا؟\nنعم۔\nلا", "ar", Lines(minimum_ended=2 / 3), Lines(minimum_ended=0.67), Reason.FEW_ENDED_LINES
    ),
    "short lines": (
        "ab\nabc\n\nabcd", "en", Lines(maximum_short=1 / 3, short=2), Lines(maximum_short=0.66, short=3),
        Reason.SHORT_LINES,
    ),
    "characters of duplicate lines": (
        "ab\nc\nab", "en", Lines(maximum_duplicate_characters=0.4), Lines(maximum_duplicate_characters=0.39),
        Reason.DUPLICATE_LINE_CHARACTERS,
    ),
    "line breaks": ("a b\nc d", "en", Lines(maximum_breaks=0.25), Lines(maximum_breaks=0.24), Reason.MANY_LINE_BREAKS),
    "few words": ("a b - c", "en", Words(minimum=3), Words(minimum=4), Reason.TOO_FEW_WORDS),
    "many words": ("a b - c", "en", Words(maximum=3), Words(maximum=2), Reason.TOO_MANY_WORDS),
    "short words": (
        "ab abcd -", "en", Words(minimum_mean_length=3), Words(minimum_mean_length=3.1), Reason.SHORT_WORDS
    ),
    "long words": ("ab abcd -", "en", Words(maximum_mean_length=3), Words(maximum_mean_length=2.9), Reason.LONG_WORDS),
    "hash signs": ("# a b c", "en", Words(maximum_symbols=0.25), Words(maximum_symbols=0.24), Reason.HASH_SIGNS),
    "ellipses": ("a... b…", "en", Words(maximum_symbols=0.5), Words(maximum_symbols=0.49), Reason.ELLIPSES),
    "bullets": ("• a\n- b\nc\nd", "en", Words(maximum_bullets=0.5), Words(maximum_bullets=0.49), Reason.BULLET_LINES),
    "lines that end in an ellipsis": (
        "أ…\nب...\nج\nد", "ar", Words(maximum_ellipses=0.5), Words(maximum_ellipses=0.49), Reason.ELLIPSIS_LINES
    ),
    "words with letters": (
        "أ ب 1 2", "ar", Words(minimum_alphabetic=0.5), Words(minimum_alphabetic=0.51), Reason.FEW_ALPHABETIC_WORDS
    ),
    "stop words": (
        "من في من", "ar", Words(minimum_stop_words=2, stop_words=frozenset({"من", "في", "عن"})),
        Words(minimum_stop_words=3, stop_words=frozenset({"من", "في", "عن"})), Reason.FEW_STOP_WORDS,
    ),
}  # fmt: skip
SECTIONS = {Script: "script", Repetition: "repetition", Lines: "lines", Words: "words"}


@pytest.mark.parametrize("case", CASES)
def test_a_rule_refuses_beyond_its_threshold(case):
    text, language, kept, broken, reason = CASES[case]
    section = SECTIONS[type(kept)]
    assert find_reason(text, language, replace(Rules(), **{section: kept})) is None
    assert find_reason(text, language, replace(Rules(), **{section: broken})) == reason


def test_every_threshold_has_a_case():
    tested = {(type(rules), name) for *_, rules, _ in CASES.values() for name in vars(rules) if getattr(rules, name)}
    assert tested == {(section, field.name) for section in SECTIONS for field in fields(section)}


def test_a_text_without_words_is_empty_under_any_rules():
    assert find_reason(" \n ", "en", Rules()) == Reason.EMPTY


def test_the_first_broken_rule_is_the_reason():
    text = "نعم\n" * 10
    assert find_reason(text, "ar", JAIS_ARABIC) == Reason.TOO_FEW_WORDS
    assert find_reason(text, "ar", FINEWEB2_ARABIC) == Reason.DUPLICATE_LINES


def test_an_unknown_preset_is_refused_with_the_names():
    with pytest.raises(UserError, match="quality best: no such rules; give one of c4, fineweb, jais"):
        preset("best")
    assert all(set(by_language) <= {"ar", "en"} for by_language in PRESETS.values())


def test_what_ends_a_sentence_has_the_arabic_marks_and_symbols_lack_the_arabic_comma():
    assert {"؟", "۔", ".", "!"} <= TERMINAL
    assert "،" not in SYMBOLS
    assert "؛" not in SYMBOLS
    assert all(char in SYMBOLS for char in "«»؟…—")


def test_rules_of_english_are_gophers():
    # Rae et al. 2021, table A1: the shares fall as n rises.
    shares = [share for _, share in FINEWEB_ENGLISH.repetition.duplicate_ngrams]
    assert shares == [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
    assert [n for n, _ in FINEWEB_ENGLISH.repetition.duplicate_ngrams] == [5, 6, 7, 8, 9, 10]
