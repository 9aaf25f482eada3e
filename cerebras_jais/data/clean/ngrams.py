"""How much of a text is the same words in the same order again, counted in few passes.

An n-gram can only occur twice where the n-gram one word shorter does. So all pairs of words are counted once, and each
longer length looks only at the positions that are left, in ordinary text a few out of a hundred.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

Repeated = Mapping[int, int]
"""Of the n-grams of one length that occur more than once: the first word of each, in order, to that of the first equal
one."""


def repeated_ngrams(words: Sequence[str], longest: int) -> Iterator[tuple[int, Repeated]]:
    """Yield (n, the n-grams that occur more than once) for n from 2 to `longest`."""
    repeated = _repeated(range(len(words)), pairwise(words))
    yield 2, repeated
    for n in range(3, longest + 1):
        # Two n-grams are equal where both their first and their last n - 1 words are.
        starts = [at for at in repeated if at + 1 in repeated]
        repeated = _repeated(starts, [(repeated[at], repeated[at + 1]) for at in starts])
        yield n, repeated


def _repeated(starts: Sequence[int], grams: Iterable[Hashable]) -> Repeated:
    first: dict[Hashable, int] = {}
    numbers = map(first.setdefault, grams, starts)
    later = [(at, number) for at, number in zip(starts, numbers, strict=False) if at != number]
    return dict(sorted({number: number for _, number in later}.items() | dict(later).items()))


def top_ngram_characters(n: int, repeated: Repeated, ends: Sequence[int]) -> int:
    """Return the characters of the most frequent n-gram, spaces between its words included, times its occurrences.

    The first of equally frequent ones counts, and the first n-gram of all if none is repeated; 0 for fewer than n
    words. `ends` has the characters up to each word, from 0 on: one more than there are words.
    """
    if len(ends) <= n:
        return 0
    if not repeated:
        return ends[n] - ends[0] + n - 1
    first, count = Counter(repeated.values()).most_common(1)[0]
    return (ends[first + n] - ends[first] + n - 1) * count


def duplicate_ngram_characters(n: int, repeated: Repeated, ends: Sequence[int]) -> int:
    """Return the characters, without spaces, of the n-grams that occurred before; one ends before the next begins."""
    seen: set[int] = set()
    characters = past = 0
    for at, number in repeated.items():
        if at < past:
            continue
        if number in seen:
            characters += ends[at + n] - ends[at]
            past = at + n
        else:
            seen.add(number)
    return characters
