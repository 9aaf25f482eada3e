"""Phrases of messages in every part of the project: a name that was misspelled, counts, and runs of whole numbers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from cerebras_jais.modelzoo_version import RELEASE

_SPELLING = 0.75  # the ratio of `difflib` above which one name counts as a misspelling of another
_FEW = 12  # names that a message lists


def suggestion(key: str, known: Iterable[str], otherwise: str = f"the Model Zoo {RELEASE} has no similar name") -> str:
    """A phrase with the known name that an unknown one misspells, or with all known ones if they are few.

    It never advises to remove a key: that would make another run.
    """
    known = sorted(known)
    # Underscores and case are the usual misspellings: compare without them.
    plain = {k.replace("_", "").lower(): k for k in known}
    near = difflib.get_close_matches(key.replace("_", "").lower(), plain, n=1, cutoff=_SPELLING)
    if near:
        return f"did you mean {plain[near[0]]!r}?"
    if 0 < len(known) <= _FEW:
        return f"known: {', '.join(known)}"
    return otherwise


def counted(number: int, noun: str) -> str:
    """`1 row` or `2 rows`: a number with its noun, of which the singular is given."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def number_runs(numbers: Iterable[int]) -> list[str]:
    """Whole numbers, in order, with those that follow one another folded: 0, 1, 2, 5 is ["0-2", "5"]."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [str(first) if first == last else f"{first}-{last}" for first, last in runs]
