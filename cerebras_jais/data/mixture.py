"""Documents of several sources in one order: shuffled, drawn so that each source has its share of the tokens.

All of it is arithmetic on the lengths of documents, before a token is read: what a run would repeat or leave over is
known, and can be said, before it begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from cerebras_jais.data.documents import DataError
from cerebras_jais.data.token_store import Store, joined
from cerebras_jais.wording import counted

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the constants of SplitMix64 (Steele, Lea, Flood: Fast splittable PRNGs, 2014)
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


@dataclass(frozen=True)
class Source:
    """Documents of one kind, and their weight: shares of the tokens are proportional to the weights.

    `documents` are the numbers of those that may be drawn, int64 [n]; None: all of the store.
    """

    name: str
    store: Store
    weight: float
    documents: np.ndarray | None = None


@dataclass(frozen=True)
class Band:
    """Documents of `least` tokens or more (end of text included), up to the next band: their share of each source."""

    least: int
    share: float


@dataclass(frozen=True)
class Part:
    """What is drawn of a source, or of one band of it.

    Attributes:
        least: the fewest tokens of a document of the band; 0 where there are no bands.
        share: of all tokens, that was asked for.
        there: documents that there are.
        tokens_there: their tokens.
        documents: those drawn, repeated ones counted each time.
        tokens: theirs.
    """

    source: str
    least: int
    share: float
    there: int
    tokens_there: int
    documents: int
    tokens: int

    @property
    def times(self) -> float:
        """How many times its tokens are seen; under 1 some are left over."""
        return self.tokens / self.tokens_there

    @property
    def repeats_from(self) -> float:
        """The tokens of the whole mixture after which this part has been seen once and begins again."""
        return self.tokens_there / self.share


@dataclass(frozen=True)
class Mixture:
    """An order of documents, and what it is made of.

    Attributes:
        store: the documents of all sources.
        order: their numbers in it as they follow one another, int64 [n]; one that is repeated comes again.
        parts: of each source, or of each band of it.
    """

    store: Store
    order: np.ndarray
    parts: tuple[Part, ...]

    @property
    def tokens(self) -> int:
        """Those of all documents drawn, end-of-text tokens included."""
        return sum(part.tokens for part in self.parts)

    def lines(self) -> Iterator[str]:
        """Yield what is drawn, left over and repeated, as text for a user."""
        for part in self.parts:
            name = f"{part.source}, from {part.least} tokens" if part.least else part.source
            yield (
                f"{name}: {part.tokens / self.tokens:.2%} of the tokens, {part.share:.2%} asked; "
                f"{part.documents} of {counted(part.there, 'document')} drawn, "
                f"{part.tokens} of {counted(part.tokens_there, 'token')}"
            )
            if part.times > 1:
                yield f"  repeated: seen {part.times:.2f} times, again from {part.repeats_from:.0f} tokens of all on"
            elif part.documents < part.there:
                yield f"  left over: {counted(part.there - part.documents, 'document')}"

    def record(self) -> list[dict[str, Any]]:
        """What is drawn, as data_params.json holds it."""
        return [
            {
                "source": part.source,
                **({"least_tokens": part.least} if part.least else {}),
                "asked": round(part.share, 6),
                "achieved": round(part.tokens / self.tokens, 6),
                "documents": part.documents,
                "tokens": part.tokens,
                "documents_there": part.there,
                "tokens_there": part.tokens_there,
            }
            for part in self.parts
        ]


def mix(sources: Sequence[Source], *, tokens: int | None = None, bands: Sequence[Band] = (), seed: int = 0) -> Mixture:
    """Draw documents from sources by the tokens that each still lacks, so that every stretch has the shares asked for.

    The next document is always of the part that would have the fewest tokens for its share with half of it, the first
    of equals. So at any place there is a total of which every part has its share within half of a document. Each part
    is taken in a shuffled order, in another one each time that it begins again.

    Args:
        tokens: how many to draw, end-of-text tokens included; parts that are shorter than their share begin again.
            None: as many as there are until the first part is seen once.
        bands: cut each source by the length of its documents; where a source has no document in a band, its other
            bands share what that one had. None: whole sources.
        seed: of the shuffled orders: a document's place is a hash of it, the source's name, the shard and the number in
            the shard, so neither other sources nor the machine change an order.

    Raises DataError for a source without documents, weights or shares that are not positive, names given twice, and
    bands that have no document at all.
    """
    _check(sources, bands)
    store = joined([source.store for source in sources])
    firsts = np.cumsum([0, *(len(source.store) for source in sources)])
    total_weight = sum(source.weight for source in sources)
    cut = [
        (source, band.least, share * source.weight / total_weight, chosen, first)
        for source, first in zip(sources, firsts.tolist(), strict=False)
        for band, share, chosen in _bands_of(source, bands)
    ]
    there = [int(source.store.lengths[chosen].sum()) for source, _, _, chosen, _ in cut]
    wanted = min(have / share for have, (_, _, share, _, _) in zip(there, cut, strict=True))
    wanted = wanted if tokens is None else tokens
    if wanted < 1:
        raise DataError(f"mixture: {wanted} tokens: give a positive number")
    orders, keys, parts = [], [], []
    for (source, least, share, chosen, first), have in zip(cut, there, strict=True):
        needed = wanted * share * (1 - 2**-50)  # the quotient times the divisor may be above what was divided
        times = max(1, int(-(-needed // have)))
        order = np.concatenate([_shuffled(source, chosen, seed, again) for again in range(times)])
        lengths = source.store.lengths[order]
        middle = np.cumsum(lengths) - lengths / 2
        drawn = int(np.searchsorted(middle, needed))
        orders.append(order[:drawn] + first)
        keys.append(middle[:drawn] / share)
        parts.append(Part(source.name, least, share, len(chosen), have, drawn, int(lengths[:drawn].sum())))
    if not any(len(order) for order in orders):
        raise DataError(f"mixture: {tokens} tokens are less than half of any first document; give more")
    # Each part's keys rise, so taking the part with the lowest key again and again is sorting all of them.
    order = np.concatenate(orders)[np.argsort(np.concatenate(keys), kind="stable")]
    return Mixture(store, order, tuple(parts))


def folder_weights(rows: Mapping[str, tuple[int, int]], weights: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the Model Zoo's `mixture` of data folders, in which each has its share of the tokens.

    The Model Zoo's weights count rows, so each is divided by the tokens of a row.

    Args:
        rows: of each folder, as `data_dir` names it, the rows and the positions that are filled.
        weights: the weight of each folder by tokens.
    """
    by_rows = {folder: weights[folder] * count / filled for folder, (count, filled) in rows.items()}
    total = sum(by_rows.values())
    return [{"data_dir": folder, "weight": round(weight / total, 6)} for folder, weight in by_rows.items()]


def _check(sources: Sequence[Source], bands: Sequence[Band]) -> None:
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        raise DataError(f"mixture: sources need names of their own, got {names}")
    for source in sources:
        if not len(source.store if source.documents is None else source.documents):
            raise DataError(f"mixture: source {source.name} has no document; give it text, or leave it out")
        if not source.weight > 0:
            raise DataError(f"mixture: source {source.name} has weight {source.weight}; give a positive number")
    least = [band.least for band in bands]
    if sorted(set(least)) != least or any(band.least < 0 or not band.share > 0 for band in bands):
        raise DataError(f"mixture: bands must rise and have positive shares, got {list(bands)}")


def _bands_of(source: Source, bands: Sequence[Band]) -> Iterator[tuple[Band, float, np.ndarray]]:
    """Yield the bands that have documents in a store, with the share of each and the documents."""
    there = np.arange(len(source.store)) if source.documents is None else source.documents
    lengths = source.store.lengths[there]
    ends = [*(band.least for band in bands[1:]), None]
    found = []
    for band, end in zip(bands or [Band(0, 1.0)], ends, strict=True):
        chosen = there[(lengths >= band.least) & (True if end is None else lengths < end)]
        if len(chosen):
            found.append((band, chosen))
    if not found:
        raise DataError(
            f"mixture: a source has no document of {bands[0].least} tokens or more, the longest has {lengths.max()}; "
            "give a band that begins lower, or leave the source out"
        )
    total = sum(band.share for band, _ in found)
    for band, chosen in found:
        yield band, band.share / total, chosen


def _shuffled(source: Source, documents: np.ndarray, seed: int, again: int) -> np.ndarray:
    """Some documents of a source in the order of their hashes."""
    keys = np.empty(len(source.store), dtype=np.uint64)
    start = 0
    for shard, part in enumerate(source.store.parts):
        digest = blake2b(f"{seed}/{source.name}/{shard}/{again}".encode(), digest_size=8).digest()
        end = start + len(part.ends)
        keys[start:end] = _hashed(np.uint64(int.from_bytes(digest, "little")), end - start)
        start = end
    return documents[np.argsort(keys[documents], kind="stable")]


def _hashed(key: np.uint64, count: int) -> np.ndarray:
    """The first numbers that SplitMix64 makes of a key, uint64 [count]."""
    state = key + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    for shift, factor in _MIX:
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return state
