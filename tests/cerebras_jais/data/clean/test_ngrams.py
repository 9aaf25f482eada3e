"""Contract: counted in few passes, repeated n-grams are those that counting every n-gram finds."""

from collections import Counter
from itertools import accumulate

from hypothesis import given, settings
from hypothesis import strategies as st

from cerebras_jais.data.clean.ngrams import duplicate_ngram_characters, repeated_ngrams, top_ngram_characters

WORDS = st.lists(st.sampled_from(["a", "bb", "ccc", "في"]), max_size=60)


def ends_of(words):
    return [0, *accumulate(map(len, words))]


def ngrams(words, n):
    return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]


@settings(deadline=None)
@given(WORDS)
def test_the_top_ngram_is_the_first_of_the_most_frequent(words):
    for n, repeated in repeated_ngrams(words, 10):
        counts = Counter(ngrams(words, n))
        most = max(counts.values(), default=0)
        expected = next((len(" ".join(gram)) * most for gram in ngrams(words, n) if counts[gram] == most), 0)
        assert top_ngram_characters(n, repeated, ends_of(words)) == expected


@settings(deadline=None)
@given(WORDS)
def test_duplicate_ngrams_do_not_overlap(words):
    lengths = []
    for n, repeated in repeated_ngrams(words, 10):
        lengths.append(n)
        seen, characters, at = set(), 0, 0
        while at + n <= len(words):
            gram = tuple(words[at : at + n])
            if gram in seen:
                characters += len("".join(gram))
                at += n
            else:
                seen.add(gram)
                at += 1
        assert duplicate_ngram_characters(n, repeated, ends_of(words)) == characters
    assert lengths == list(range(2, 11))
