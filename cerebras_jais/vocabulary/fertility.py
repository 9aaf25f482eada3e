"""Fertility, tokens per word, of several tokenizers on the same text: counted per language, as a table and a plot."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from cerebras_jais.data.documents import Document, count_words, language_of
from cerebras_jais.encoding import encode_texts
from cerebras_jais.vocabulary.bpe import BpeTokenizer
from cerebras_jais.vocabulary.scripts import is_written_in

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH = 256  # documents


@dataclass(frozen=True)
class Fertility:
    """Tokens and words of one kind of text; `tokens` by the name of the tokenizer."""

    text: str
    words: int
    tokens: Mapping[str, int]

    def per_word(self, name: str) -> float:
        """Tokens per white-space separated word."""
        return self.tokens[name] / self.words


def fertility(tokenizers: Mapping[str, Tokenizer], documents: Iterable[Document]) -> list[Fertility]:
    """Fertility by language, in alphabetic order; each document is encoded whole by each tokenizer."""
    words: Counter[str] = Counter()
    tokens = {name: Counter[str]() for name in tokenizers}
    remaining = iter(documents)
    while batch := list(islice(remaining, _BATCH)):
        languages = [language_of(document) for document in batch]
        for language, document in zip(languages, batch, strict=True):
            words[language] += count_words(document.text)
        for name, tokenizer in tokenizers.items():
            found = encode_texts(tokenizer, [document.text for document in batch])
            for language, ids in zip(languages, found, strict=True):
                tokens[name][language] += len(ids)
    return [
        Fertility(language, words[language], {name: counts[language] for name, counts in tokens.items()})
        for language in sorted(words)
        if words[language]
    ]


def fertility_of_words(
    tokenizers: Mapping[str, BpeTokenizer], words: Mapping[str, int], script: re.Pattern[str], text: str
) -> Fertility | None:
    """Fertility on words of the script alone, each behind a space; None without any.

    Args:
        tokenizers: by name.
        words: with their counts, as `count_runs` gives them.
        script: that of `scripts_of`.
        text: what the row is called.

    Digits and punctuation, which a base may split as it likes, are no part of these words.
    """
    alone: Counter[str] = Counter()
    for word, count in words.items():
        if word.strip().isalpha() and is_written_in(word, script):
            alone[f" {word.strip()}"] += count
    if not alone:
        return None
    tokens = {
        name: sum(len(ids) * n for ids, n in zip(tokenizer.segment(list(alone)), alone.values(), strict=True))
        for name, tokenizer in tokenizers.items()
    }
    return Fertility(text, sum(alone.values()), tokens)


def table(rows: Sequence[Fertility]) -> list[str]:
    """The lines of a table in Markdown: tokens per word of each tokenizer."""
    names = list(rows[0].tokens) if rows else []
    lines = [f"| text | words | {' | '.join(names)} |", f"| --- | ---: |{' ---: |' * len(names)}"]
    for row in rows:
        cells = [f"{row.per_word(name):.3f}" for name in names]
        lines.append(f"| {row.text} | {row.words} | {' | '.join(cells)} |")
    return lines


def plot(rows: Sequence[Fertility]) -> bytes:
    """The same as a chart of bars, one group for each kind of text; a PNG, the same bytes for the same rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(rows[0].tokens) if rows else []
    figure = Figure(figsize=(7, 1 + 0.35 * len(rows) * max(1, len(names))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    height = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        places = [place + (number - (len(names) - 1) / 2) * height for place in range(len(rows))]
        bars = axes.barh(places, [row.per_word(name) for row in rows], height, label=name)
        axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_yticks(range(len(rows)), [row.text for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("tokens per word (fewer is better)")
    if names:
        axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130, metadata={"Software": None})
    return content.getvalue()
