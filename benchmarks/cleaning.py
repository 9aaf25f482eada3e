"""How fast one document is cleaned and judged, step by step, beside datatrove's blocks, and where decisions differ.

    python benchmarks/cleaning.py [--text FILE] [--megabytes 8]

The documents are sentences of the bundled texts, or of a file that `data pack` reads, joined at random, so that a share
of them repeats itself. Rates are megabytes of UTF-8 for each second of processor time, of one process; each step has
the best of three runs. datatrove's blocks, and the table of decisions, need datatrove 0.10 and spaCy:

    pip install "datatrove[processing]==0.10.1" spacy
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from cerebras_jais.data.clean.arabic import Normalisation, normalise
from cerebras_jais.data.clean.cleaner import Cleaner, CleanerSettings
from cerebras_jais.data.clean.languages import detect_language
from cerebras_jais.data.clean.mojibake import repair_mojibake
from cerebras_jais.data.clean.presets import FINEWEB2_ARABIC, FINEWEB_ENGLISH, Rules
from cerebras_jais.data.clean.quality import Reason, find_reason
from cerebras_jais.data.clean.words import split_words
from cerebras_jais.data.documents import read_documents, sample_corpus_path

RULES = {"ar": FINEWEB2_ARABIC, "en": FINEWEB_ENGLISH}
# datatrove's reasons as ours.
FIRST_BROKEN = {
    "dup_para_frac": Reason.DUPLICATE_PARAGRAPHS,
    "dup_para_char_frac": Reason.DUPLICATE_PARAGRAPH_CHARACTERS,
    "dup_line_frac": Reason.DUPLICATE_LINES,
    "dup_line_char_frac": Reason.DUPLICATE_LINE_CHARACTERS,
    "line_punct_ratio": Reason.FEW_ENDED_LINES,
    "short_line_ratio": Reason.SHORT_LINES,
    "char_dup_ratio": Reason.DUPLICATE_LINE_CHARACTERS,
    "list_ratio": Reason.MANY_LINE_BREAKS,
    "gopher_short_doc": Reason.TOO_FEW_WORDS,
    "gopher_long_doc": Reason.TOO_MANY_WORDS,
    "gopher_below_avg_threshold": Reason.SHORT_WORDS,
    "gopher_above_avg_threshold": Reason.LONG_WORDS,
    "gopher_too_many_hashes": Reason.HASH_SIGNS,
    "gopher_too_many_ellipsis": Reason.ELLIPSES,
    "gopher_too_many_bullets": Reason.BULLET_LINES,
    "gopher_too_many_end_ellipsis": Reason.ELLIPSIS_LINES,
    "gopher_below_alpha_threshold": Reason.FEW_ALPHABETIC_WORDS,
    "gopher_enough_stop_words": Reason.FEW_STOP_WORDS,
    **{f"top_{n}_gram": Reason.TOP_NGRAM for n in range(2, 5)},
    **{f"duplicated_{n}_n_grams": Reason.DUPLICATE_NGRAMS for n in range(5, 11)},
}


class Datatrove:
    """datatrove's three filters with the thresholds of our rules, and its splitter, for one language."""

    def __init__(self, language: str, rules: Rules) -> None:
        from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter

        self.language = {"ar": "arb_Arab", "en": "eng_Latn"}[language]
        repetition, lines, words = rules.repetition, rules.lines, rules.words
        assert repetition is not None and lines is not None and words is not None
        self.filters: list[Any] = [
            GopherRepetitionFilter(
                dup_line_frac=repetition.lines,
                dup_para_frac=repetition.paragraphs,
                dup_line_char_frac=repetition.line_characters,
                dup_para_char_frac=repetition.paragraph_characters,
                top_n_grams=repetition.top_ngrams,
                dup_n_grams=repetition.duplicate_ngrams,
                language=self.language,
            ),
            FineWebQualityFilter(
                line_punct_thr=lines.minimum_ended,
                short_line_thr=999 if lines.maximum_short is None else lines.maximum_short,
                char_duplicates_ratio=lines.maximum_duplicate_characters,
                new_line_ratio=lines.maximum_breaks,
                language=self.language,
            ),
            GopherQualityFilter(
                min_avg_word_length=words.minimum_mean_length,
                max_avg_word_length=words.maximum_mean_length,
                max_non_alpha_words_ratio=words.minimum_alphabetic,
                stop_words=list(words.stop_words),
                language=self.language,
            ),
        ]

    def words(self, text: str) -> list[str]:
        """spaCy's words."""
        from datatrove.utils.text import split_into_words

        words: list[str] = split_into_words(text, self.language)
        return words

    def reason(self, text: str) -> str | None:
        """The name of the first rule that a text breaks, as datatrove has it."""
        for block in self.filters:
            if (found := judged(block, text)) is not True:
                return str(found[1])
        return None


def judged(block: Any, text: str) -> Any:
    """What one of datatrove's filters says of a text."""
    from datatrove.data import Document

    return block.filter(Document(text=text, id="0"))


def shuffled_documents(texts: Sequence[str], count: int, seed: int, damaged: bool = False) -> Iterator[str]:
    """Documents of 1 to 25 sentences of some texts; a damaged one has bullets, cut sentences, symbols, many lines."""
    drawn = random.Random(seed)
    sentences = [f"{sentence}." for text in texts for sentence in text.split(". ")]
    for _ in range(count):
        pool = drawn.choices(sentences, k=drawn.choice((3, 8, 200)) if damaged else 200)
        parts = drawn.choices(pool, k=drawn.randint(1, 25))
        if damaged:
            parts = [
                drawn.choice(("• ", "- ", "#", "... ", "…")) + part if drawn.random() < 0.1 else part for part in parts
            ]
            parts = [part[: drawn.randint(1, len(part))] if drawn.random() < 0.2 else part for part in parts]
        yield (drawn.choice((" ", "\n", "\n\n", " ")) if damaged else " ").join(parts)


def rate(texts: Sequence[str], step: Callable[[str], object], runs: int = 3) -> float:
    """Megabytes a second of processor time."""
    taken = []
    for _ in range(runs):
        start = time.process_time()
        for text in texts:
            step(text)
        taken.append(time.process_time() - start)
    return sum(len(text.encode()) for text in texts) / min(taken) / 1e6


def print_rates(language: str, texts: Sequence[str]) -> None:
    """One line for each step: ours, and datatrove's blocks on a part of the texts where it is installed."""
    rules = RULES[language]
    cleaner = Cleaner(CleanerSettings(quality="fineweb"))
    words = {text: split_words(text, language) for text in texts}
    steps: dict[str, Callable[[str], object]] = {
        "mojibake": lambda text: repair_mojibake(text, Counter()),
        "language by letters": detect_language,
        "normalisation": lambda text: normalise(text, language, Normalisation(), Counter()),
        "words": lambda text: split_words(text, language),
        "rules, words given": lambda text: find_reason(text, language, rules, lambda text, _: words[text]),
        "words and rules": lambda text: find_reason(text, language, rules),
        "all of Cleaner": lambda text: cleaner(text, None),
    }
    print(f"{language}: {len(texts)} documents, {sum(len(text.encode()) for text in texts) / 1e6:.1f} MB")
    for name, step in steps.items():
        print(f"  {name:<28}{rate(texts, step):>8.1f} MB/s")
    try:
        filters = Datatrove(language, rules)
        filters.words("")
    except ImportError:
        print("  datatrove or spaCy is not installed: its blocks are left out")
        return
    few = texts[:: max(1, len(texts) // 200)]
    print(f"  {'datatrove: words (spaCy)':<28}{rate(few, filters.words, 1):>8.2f} MB/s")
    for block in filters.filters:
        name = f"datatrove: {type(block).__name__}"
        print(f"  {name:<38}{rate(few, lambda text, block=block: judged(block, text), 1):>8.2f} MB/s")
    print(f"  {'datatrove: all three':<28}{rate(few, filters.reason, 1):>8.2f} MB/s")


def shape(words: Sequence[str]) -> str:
    """Words with their letters, marks and digits made one of each kind, to count what is split alike."""
    for kind, sign in (
        ("[0-9٠-٩]+", "9"),
        ("[\u064b-\u0652]+", "\u064e"),
        ("[\u0621-\u064a]+", "ع"),
        ("[A-Za-z]+", "a"),
    ):
        words = [re.sub(kind, sign, word) for word in words]
    return " | ".join(words)


def print_differences(language: str, texts: Sequence[str]) -> None:
    """Where our splitter and spaCy's differ, the commonest first, and what that changes of decisions."""
    filters, rules = Datatrove(language, RULES[language]), RULES[language]
    places: Counter[str] = Counter()
    total = 0
    for text in texts:
        theirs, ours = filters.words(text), split_words(text, language)
        total += len(theirs)
        for kind, first, last, begin, end in SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
            if kind != "equal":
                places[f"{shape(theirs[first:last])}  →  {shape(ours[begin:end])}"] += 1
    print(f"{language}: {places.total()} places differ among {total} words of {len(texts)} texts")
    for place, count in places.most_common(12):
        print(f"  {count:>4}  {place}")
    decisions: Counter[tuple[str, str]] = Counter()
    documents = [*texts, *shuffled_documents(texts, 600, seed=1, damaged=True)]
    for text in documents:
        words = filters.words(text)
        theirs_too = find_reason(text, language, rules, lambda *_, words=words: words)
        ours_too = find_reason(text, language, rules)
        if (theirs_too is None) != (ours_too is None):
            decisions[(str(theirs_too or "kept"), str(ours_too or "kept"))] += 1
    print(f"  {decisions.total()} of {len(documents)} documents are decided otherwise (spaCy's words, ours):")
    for (before, after), count in decisions.most_common():
        print(f"  {count:>4}  {before}, {after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, action="append", help="a file or folder; may be given several times")
    parser.add_argument("--megabytes", type=float, default=8, help="of documents for each language")
    parser.add_argument("--decisions", action="store_true", help="show where words and decisions differ from spaCy's")
    given = parser.parse_args()
    read = [document for path in given.text or [sample_corpus_path()] for document in read_documents(path)]
    for language in RULES:
        texts = [document.text for document in read if document.language == language]
        documents, size = [], 0
        for text in shuffled_documents(texts, 10**9, seed=0):
            documents.append(text)
            size += len(text.encode())
            if size >= given.megabytes * 1e6:
                break
        print_rates(language, documents)
        if given.decisions:
            print_differences(language, texts)


if __name__ == "__main__":
    main()
