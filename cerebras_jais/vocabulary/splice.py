"""New pieces and the merges that reach them, added to byte-pair encoding so that every one can be reached.

A piece is segmented with the vocabulary as extended so far, and the merge that it lacks is added behind all others.
Where more than two pieces remain, intermediate pieces come first. Nothing added later changes how a piece is reached:
later merges have a lower priority than every merge on its way. Neighbouring pieces of a segmentation segment to
themselves, so intermediate pieces can be reached, too. (Copying a donor's own merges leaves a third of its tokens out
of reach: an earlier merge of the base takes their letters.)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise

from cerebras_jais.vocabulary.bpe import Pair, merged


class Reason(StrEnum):
    """Why a piece was added."""

    LETTER = "letter"
    """A single symbol that the base lacks."""
    TOKEN = "token"
    """A token of the donor."""
    INTERMEDIATE = "intermediate"
    """On the way to a token, and none of the donor that is wanted."""


class Splice:
    """A vocabulary that grows.

    Args:
        pieces: those of the base.
        merges: the base's, with their ranks: the lowest is merged first.
        every_split: whether each pair that spells a piece is a merge to it, as SentencePiece has it. Else one is.

    Attributes:
        added: the new pieces in order, each with the reason.
    """

    def __init__(self, pieces: Collection[str], merges: Mapping[Pair, int], *, every_split: bool) -> None:
        self.added: dict[str, Reason] = {}
        self._base = pieces
        self._ranks = dict(merges)
        self._next = max(merges.values(), default=-1) + 1
        self._every_split = every_split
        self._pairs: list[Pair] = []

    def __contains__(self, piece: str) -> bool:
        return piece in self._base or piece in self.added

    def segment(self, piece: str) -> list[str]:
        """The pieces that a string of symbols is segmented into."""
        return merged(piece, self._ranks)

    def add(self, piece: str, wanted: Mapping[str, int], room: int) -> None:
        """Add a piece with the letters and intermediate pieces that it needs, unless that takes more than `room`.

        Args:
            piece: it; one that is there already is left alone.
            wanted: the pieces that are wanted, with their ranks. Two neighbours that spell one are joined before
                others, the most wanted first; else the shortest are.
        """
        if piece in self:
            return
        letters = [letter for letter in dict.fromkeys(piece) if letter not in self]
        parts = self.segment(piece)
        if len(letters) + len(parts) - 1 > room:
            return
        for letter in letters:
            self.added[letter] = Reason.LETTER
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            left, right = min(pairs, key=lambda pair: (wanted.get("".join(pair), math.inf), len("".join(pair))))
            self._add_merge(left, right, Reason.TOKEN if left + right in wanted else Reason.INTERMEDIATE)
            parts = self.segment(piece)

    def _add_merge(self, left: str, right: str, reason: Reason) -> None:
        piece = left + right
        self._ranks[left, right] = self._next
        if self._every_split:
            for cut in range(1, len(piece)):
                if piece[:cut] in self and piece[cut:] in self:
                    self._ranks.setdefault((piece[:cut], piece[cut:]), self._next)
        self._next += 1
        self._pairs.append((left, right))
        if piece not in self:
            self.added[piece] = reason

    def merges(self, ids: Mapping[str, int]) -> list[Pair]:
        """The new merges, first ones first, given the id of every piece.

        With `every_split` those of a piece stand together, in the order of the ids of their parts, as transformers
        writes them for a tokenizer.model.
        """
        if not self._every_split:
            return list(self._pairs)
        return [pair for left, right in self._pairs for pair in _splits(left + right, ids)]


def _splits(piece: str, ids: Mapping[str, int]) -> list[Pair]:
    pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
    known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
    return sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))


def splice(
    pieces: Collection[str], merges: Mapping[Pair, int], wanted: Sequence[str], room: int, *, every_split: bool
) -> Splice:
    """Add wanted pieces in order until exactly `room` are added, or none is left that fits."""
    grown = Splice(pieces, merges, every_split=every_split)
    ranks = {piece: rank for rank, piece in enumerate(wanted)}
    for piece in wanted:
        if len(grown.added) >= room:
            break
        grown.add(piece, ranks, room - len(grown.added))
    return grown
