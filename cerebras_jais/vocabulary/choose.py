"""Which of a donor's tokens are wanted, most useful first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from cerebras_jais.data.documents import Document
from cerebras_jais.vocabulary.bpe import BpeTokenizer
from cerebras_jais.vocabulary.scripts import has_foreign_letters, is_written_in
from checkpoint_convert.streaming.run import Progress

MOST_WORDS = 1_000_000
"""Different words of a corpus that are kept; beyond, the rarest are dropped."""


def tokens_of_script(
    donor: BpeTokenizer,
    base: BpeTokenizer,
    script: re.Pattern[str],
    *,
    only_arabic: bool = False,
    progress: Progress = lambda done, total: None,
) -> list[str]:
    """The donor's tokens of a script as texts, by their rank (id), each once.

    Left out are special tokens, those cut inside a character, and those that the base's normaliser or pre-tokeniser
    would not leave as they are.

    Args:
        donor: whose tokens.
        base: the tokenizer that is to take them.
        script: that of `scripts_of`.
        only_arabic: leave out tokens with letters that Arabic itself has not.
        progress: called with tokens of the donor, just looked at and of all.
    """
    special = {token.content for token in donor.tokenizer.get_added_tokens_decoder().values()}
    found: dict[str, None] = {}
    for piece in sorted(donor.vocabulary, key=donor.vocabulary.__getitem__):
        progress(1, len(donor.vocabulary))
        text = None if piece in special else donor.text_of(piece)
        if text is None or not is_written_in(text, script) or (only_arabic and has_foreign_letters(text)):
            continue
        if base.keeps_whole(text) and not base.changes(text):
            found[text] = None
    return list(found)


def count_runs(documents: Iterable[Document], tokens: Iterable[str]) -> Counter[str]:
    """How often each run of the tokens' characters stands in documents, with the space before it if there is one.

    Only such runs can be segmented otherwise than by the base.
    """
    letters = "".join(sorted({char for token in tokens for char in token} - {" "}))
    run = re.compile(f" ?[{re.escape(letters)}]+")
    words: Counter[str] = Counter()
    for document in documents:
        words.update(run.findall(f" {document.text}"))
        least = 1
        while len(words) > MOST_WORDS:
            words = Counter({word: count for word, count in words.items() if count > least})
            least *= 2
    return words


def uses(tokenizer: BpeTokenizer, words: Counter[str]) -> Counter[str]:
    """How often each token, as a text, stands for a part of the words."""
    names = {number: piece for piece, number in tokenizer.vocabulary.items()}
    counts: Counter[int] = Counter()
    for ids, count in zip(tokenizer.segment(list(words)), words.values(), strict=True):
        for token in ids:
            counts[token] += count
    texts = ((tokenizer.text_of(names[token]), count) for token, count in counts.items() if token in names)
    return Counter({text: count for text, count in texts if text is not None})
