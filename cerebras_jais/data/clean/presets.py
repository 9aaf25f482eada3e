"""Rules of quality as data: what may be measured of a document, and the thresholds that others publish.

Each number is published (its source stands beside it), derived, or assumed. None switches a rule off. Shares are from
0 to 1; a document is refused only beyond a threshold, not at it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from cerebras_jais.errors import UserError

Shares = tuple[tuple[int, float], ...]
"""(n, share) of n-grams of words."""


@dataclass(frozen=True)
class PageRules:
    """Which lines of a web page are prose (C4); the others are removed before the page is judged.

    A line stays if it ends a sentence or a quotation, has `minimum_words` parted by white space, of at most
    `longest_word` characters, and none of the phrases `removed`. A page with one of the phrases `refused`, or with
    fewer sentences left than `minimum_sentences`, is dropped. Phrases are in lower case.
    """

    minimum_words: int
    longest_word: int
    minimum_sentences: int
    removed: tuple[str, ...]
    refused: tuple[str, ...]


@dataclass(frozen=True)
class Script:
    """A document's size, and how much of it is in the script that its language is written in.

    minimum_words, maximum_words: parted by white space. longest_word: in characters.
    minimum_letters: the share of letters that are Arabic, for Arabic, else Latin.
    minimum_lines: the share of lines with letters of which at least half are of that script.
    """

    minimum_words: int | None = None
    maximum_words: int | None = None
    longest_word: int | None = None
    minimum_letters: float | None = None
    minimum_lines: float | None = None


@dataclass(frozen=True)
class Repetition:
    """How much of a document may be said again (Gopher, table A1), as shares.

    Paragraphs are parted by empty lines. A paragraph or line is a duplicate if it stood before; the shares in
    characters are of the whole text. top_ngrams: of the most frequent n-gram, all occurrences, with the spaces between
    its words. duplicate_ngrams: of n-grams that stood before, without overlaps and spaces.
    """

    paragraphs: float | None = None
    paragraph_characters: float | None = None
    lines: float | None = None
    line_characters: float | None = None
    top_ngrams: Shares = ()
    duplicate_ngrams: Shares = ()


@dataclass(frozen=True)
class Lines:
    """What the lines that are not blank must look like (FineWeb).

    minimum_ended: the share that ends with a full stop, a question or an exclamation mark of some script.
    maximum_short: the share of at most `short` characters.
    maximum_duplicate_characters: the share of characters of lines that stood before.
    maximum_breaks: line breaks for each word.
    """

    minimum_ended: float | None = None
    maximum_short: float | None = None
    short: int = 30
    maximum_duplicate_characters: float | None = None
    maximum_breaks: float | None = None


@dataclass(frozen=True)
class Words:
    """What the words of a document must look like (Gopher, section A.1.1).

    minimum, maximum: the number of words that are not only symbols; their mean length in characters is the next two.
    maximum_symbols: hash signs for each word, and ellipses for each word.
    maximum_bullets, maximum_ellipses: shares of lines that begin with a bullet or a hyphen, or end with an ellipsis.
    minimum_alphabetic: the share of words with at least one letter. minimum_stop_words: different ones of `stop_words`.
    """

    minimum: int | None = None
    maximum: int | None = None
    minimum_mean_length: float | None = None
    maximum_mean_length: float | None = None
    maximum_symbols: float | None = None
    maximum_bullets: float | None = None
    maximum_ellipses: float | None = None
    minimum_alphabetic: float | None = None
    minimum_stop_words: int | None = None
    stop_words: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Rules:
    """The rules for the documents of one language, applied in this order.

    symbols: lines of nothing but these characters and spaces are removed from a document that has kept the rules.
    """

    page: PageRules | None = None
    script: Script | None = None
    repetition: Repetition | None = None
    lines: Lines | None = None
    words: Words | None = None
    symbols: str = ""


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


# Published: Rae et al. 2021, arXiv 2112.11446, table A1.
GOPHER_REPETITION = Repetition(
    paragraphs=0.3,
    paragraph_characters=0.2,
    lines=0.3,
    line_characters=0.2,
    top_ngrams=((2, 0.2), (3, 0.18), (4, 0.16)),
    duplicate_ngrams=((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)),
)
# Published: the same paper, section A.1.1.
GOPHER_WORDS = Words(
    minimum=50,
    maximum=100_000,
    minimum_mean_length=3,
    maximum_mean_length=10,
    maximum_symbols=0.1,
    maximum_bullets=0.9,
    maximum_ellipses=0.3,
    minimum_alphabetic=0.8,
    minimum_stop_words=2,
    stop_words=_words("the be to of and that have with"),
)
# Published: Penedo et al. 2024, arXiv 2406.17557, the heuristics of section 3.6, as datatrove has them.
FINEWEB_LINES = Lines(minimum_ended=0.12, maximum_short=0.67, maximum_duplicate_characters=0.01, maximum_breaks=0.3)

# Published: configs/arb_Arab.yml of huggingface/fineweb-2. What that file switches off is None here.
FINEWEB2_ARABIC = Rules(
    repetition=Repetition(
        lines=0.304,
        top_ngrams=((2, 0.197), (3, 0.172), (4, 0.146)),
        duplicate_ngrams=((5, 0.165), (6, 0.153), (7, 0.142), (8, 0.131), (9, 0.12), (10, 0.109)),
    ),
    lines=Lines(minimum_ended=0.143, maximum_duplicate_characters=0.1, maximum_breaks=0.189),
    words=replace(
        GOPHER_WORDS,
        minimum_mean_length=2,
        maximum_mean_length=9,
        minimum_alphabetic=0.787,
        stop_words=_words("، في من على إلى عام أن مع أو هو عن التي كان بين ما كانت هي المتحدة بعد"),
    ),
    symbols="|",
)
FINEWEB_ENGLISH = Rules(repetition=GOPHER_REPETITION, lines=FINEWEB_LINES, words=GOPHER_WORDS)

# The Jais paper (arXiv 2308.16149) names these kinds of rules for Arabic. Its values were not found: all are assumed.
JAIS_ARABIC = Rules(
    script=Script(minimum_words=20, maximum_words=100_000, longest_word=100, minimum_letters=0.6, minimum_lines=0.5)
)

# Published: Raffel et al. 2020, arXiv 1910.10683, section 2.2; the longest word and the phrases of policies come from
# its code in TensorFlow Datasets. The Arabic phrases are assumed. Citations in brackets are not removed.
C4 = Rules(
    page=PageRules(
        minimum_words=3,
        longest_word=1000,
        minimum_sentences=5,
        removed=(
            "javascript",
            "terms of use",
            "privacy policy",
            "cookie policy",
            "uses cookies",
            "use of cookies",
            "use cookies",
            "جافا سكريبت",
            "شروط الاستخدام",
            "سياسة الخصوصية",
            "ملفات تعريف الارتباط",
        ),
        refused=("lorem ipsum", "{"),
    )
)

PRESETS: Mapping[str, Mapping[str, Rules]] = MappingProxyType(
    {
        "jais": {"ar": JAIS_ARABIC},
        "c4": {"ar": C4, "en": C4},
        "fineweb": {"ar": FINEWEB2_ARABIC, "en": FINEWEB_ENGLISH},
    }
)
"""The rules by name and language; documents of other languages are not judged."""


def preset(name: str) -> Mapping[str, Rules]:
    """Return the rules of a name by language; UserError if there is no such set."""
    if name not in PRESETS:
        raise UserError(f"quality {name}: no such rules; give one of {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
