"""MinHash signatures in datatrove's file format, so that its later stages find the near duplicates.

The parameters, the hash and the files are those of datatrove 0.10.1 (pipeline/dedup/minhash.py): 64-bit xxhash of each
run of words, a universal hash modulo 2^61 - 1 for each of buckets x hashes numbers, and for each bucket a file of
records (hashes uint64, document uint32), sorted. Where the words are equal the bytes are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cerebras_jais.data.recipe.words import word_bounds
from cerebras_jais.errors import UserError

_PRIME = np.uint64((1 << 61) - 1)
_BITS = np.uint64(61)
_AT_ONCE = 32_768  # runs of words, whose numbers stay in the cache of a core
_SEED = 1  # datatrove's default
_LANGUAGES = {"ar": "arb_Arab", "en": "eng_Latn", "fa": "pes_Arab", "ur": "urd_Arab"}


@dataclass(frozen=True)
class MinHash:
    """Which runs of words are hashed, and by how many functions: a document's near twins share all of one bucket."""

    words: int = 5
    buckets: int = 14
    hashes: int = 8

    @property
    def record(self) -> np.dtype[np.void]:
        """A document in the file of a bucket."""
        return np.dtype([("hashes", "<u8", (self.hashes,)), ("document", "<u4")])


def signatures(texts: Sequence[str], config: MinHash, salt: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Signatures uint64 [n, buckets * hashes] of those simplified texts that have enough words, and which these are.

    Args:
        texts: as `words.simplified` makes them.
        config: the numbers of words, buckets and hashes.
        salt: mixed into each run of words, so that texts under different salts share nothing.
    """
    from xxhash import xxh64_intdigest

    runs: list[np.ndarray] = []
    which: list[int] = []
    for number, text in enumerate(texts):
        content = text.encode("utf-8")
        starts, ends = word_bounds(content)
        count = len(starts) - config.words + 1
        if count > 0:
            bounds = map(slice, starts[:count].tolist(), ends[config.words - 1 :].tolist())
            pieces = map(content.__getitem__, bounds)
            runs.append(np.fromiter(map(xxh64_intdigest, pieces), np.uint64, count))
            which.append(number)
    found = np.empty((len(runs), config.buckets * config.hashes), np.uint64)
    first = 0
    while first < len(runs):
        last, total = first, 0
        while last < len(runs) and (total == 0 or total + len(runs[last]) <= _AT_ONCE):
            total += len(runs[last])
            last += 1
        _smallest(runs[first:last], config, np.uint64(salt), found[first:last])
        first = last
    return found, np.asarray(which, np.int64)


def datatrove_signatures(
    texts: Sequence[str], languages: Sequence[str | None], config: MinHash
) -> tuple[np.ndarray, np.ndarray]:
    """The same of whole texts by datatrove's own first stage, whose words are spaCy's; UserError without spaCy."""
    values: list[np.ndarray] = []
    which: list[int] = []
    for number, (text, language) in enumerate(zip(texts, languages, strict=True)):
        stage = _first_stage(_LANGUAGES.get(language or "", "eng_Latn"), config)
        shingles = stage.get_shingles(text)
        if len(shingles):
            values.append(np.concatenate([np.asarray(bucket, np.uint64) for bucket in stage.get_signature(shingles)]))
            which.append(number)
    found = np.stack(values) if values else np.empty((0, config.buckets * config.hashes), np.uint64)
    return found, np.asarray(which, np.int64)


def load_datatrove() -> Any:
    """datatrove's module of MinHash, whose import takes a while, set to say errors alone."""
    from datatrove.pipeline.dedup import minhash
    from datatrove.utils.logging import logger

    minhash.tqdm = lambda items, **_: items  # a bar of its own over the lines of this run
    logger.remove()
    logger.add(sys.stderr, level="ERROR")
    return minhash


@cache
def _first_stage(language: str, config: MinHash) -> Any:
    from xxhash import xxh64_intdigest

    theirs = load_datatrove()
    settings = theirs.MinhashConfig(
        n_grams=config.words, num_buckets=config.buckets, hashes_per_bucket=config.hashes, seed=_SEED
    )
    try:
        stage = theirs.MinhashDedupSignature(os.devnull, config=settings, language=language)
    except ImportError as error:
        raise UserError(
            f"deduplicate: engine datatrove splits words with a package that is not installed ({error}); pip install "
            "spacy, or take the engine fast"
        ) from error
    stage._hash_func = lambda run: xxh64_intdigest(run.encode("utf-8"))  # xxhash 4 takes no str
    return stage


def _smallest(runs: Sequence[np.ndarray], config: MinHash, salt: np.uint64, out: np.ndarray) -> None:
    """The smallest value of each hash function over the runs of each document, into `out` [documents, functions]."""
    hashed = np.concatenate(runs) ^ salt
    starts = np.cumsum([0, *(len(run) for run in runs[:-1])])
    value, high = np.empty_like(hashed), np.empty_like(hashed)
    for number, (factor, addend) in enumerate(zip(*_parameters(config), strict=True)):
        np.multiply(hashed, factor, out=value)
        np.add(value, addend, out=value)
        # value mod 2^61 - 1: the upper bits count as lower ones, and one subtraction is left, which wraps where it is
        # not due.
        np.right_shift(value, _BITS, out=high)
        np.bitwise_and(value, _PRIME, out=value)
        np.add(value, high, out=value)
        np.subtract(value, _PRIME, out=high)
        np.minimum(value, high, out=value)
        out[:, number] = np.minimum.reduceat(value, starts)


def _parameters(config: MinHash) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(_SEED)
    shape = config.buckets * config.hashes
    return (
        random.randint(1, int(_PRIME), dtype=np.uint64, size=shape),
        random.randint(0, int(_PRIME), dtype=np.uint64, size=shape),
    )


class Signatures:
    """The signatures of a shard's documents, by the number of each among those that the shard keeps."""

    def __init__(self, config: MinHash) -> None:
        self.config = config
        self._values: list[np.ndarray] = []
        self._documents: list[np.ndarray] = []

    def add(self, values: np.ndarray, documents: np.ndarray) -> None:
        """Signatures uint64 [n, buckets * hashes] of documents [n]."""
        self._values.append(values)
        self._documents.append(documents)

    def write(self, folder: Path, shard: int) -> None:
        """Write `bucket_000/00000.minhash.sig` and so on below a folder."""
        config = self.config
        values = np.concatenate(self._values) if self._values else np.empty((0, config.buckets * config.hashes), "u8")
        documents = np.concatenate(self._documents) if self._documents else np.empty(0, "i8")
        for bucket in range(config.buckets):
            records = np.empty(len(values), config.record)
            records["hashes"] = values[:, bucket * config.hashes : (bucket + 1) * config.hashes]
            records["document"] = documents
            order = np.lexsort([records["document"], *records["hashes"].T[::-1]])
            write_records(signature_file(folder, bucket, shard), records[order])


def signature_file(folder: Path, bucket: int, shard: int) -> Path:
    """Where datatrove looks for the signatures of a bucket and a shard."""
    return folder / f"bucket_{bucket:03d}" / f"{shard:05d}.minhash.sig"


def write_records(file: Path, records: np.ndarray) -> None:
    """Write records to a file, which appears when it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.parent.parent / f".partial-{file.parent.name}-{file.name}"
    partial.write_bytes(np.ascontiguousarray(records).view(np.uint8).data)
    os.replace(partial, file)


def without(records: np.ndarray, removed: Iterable[int]) -> np.ndarray:
    """Records but those of some documents."""
    gone = np.fromiter(removed, np.int64)
    return records[~np.isin(records["document"], gone)] if len(gone) else records


def removed_documents(folder: Path, shard: int) -> np.ndarray:
    """The documents of a shard that datatrove's third stage removes, int64, in order."""
    file = folder / f"{shard:06d}.remove"
    return np.sort(np.fromfile(file, "<u4").astype(np.int64)) if file.exists() else np.empty(0, np.int64)
