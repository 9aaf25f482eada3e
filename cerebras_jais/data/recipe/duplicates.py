"""Duplicates, exact and near, found among the files that the first stage has left.

Exact: documents whose texts have one hash; the first in the order of sources and shards stays. Near: the second and
third stage of datatrove's MinHash, over the signatures of those that stayed; of each cluster datatrove keeps one.
"""

from __future__ import annotations

import shutil
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from cerebras_jais.data.recipe.folder import RunFolder, write_array
from cerebras_jais.data.recipe.minhash import (
    MinHash,
    load_datatrove,
    removed_documents,
    signature_file,
    without,
    write_records,
)
from cerebras_jais.data.recipe.settings import DataRun
from cerebras_jais.data.recipe.workers import Stage

_SHARDS_OF_A_BUCKET = 128  # of 80,000 documents each, and 32 bytes a document
_LINES = 4096  # records of a signature file that datatrove reads at once


def duplicate_stages(run: DataRun, folder: RunFolder, shards: int) -> list[Stage]:
    """The stages that find duplicates of the kinds that a run asks for."""
    settings = run.steps.deduplicate
    stages: list[Stage] = []
    if settings.exact != "off":
        stages.append(Stage("exact", exact_buckets(shards), (FindEqual(folder, shards),), folder.stages / "exact"))
    if settings.near != "off":
        theirs = load_datatrove()
        config = theirs.MinhashConfig(
            n_grams=settings.words, num_buckets=settings.buckets, hashes_per_bucket=settings.hashes
        )
        left, pairs = str(folder.work / "near" / "signatures"), str(folder.work / "near" / "pairs")
        keep = KeepUnequal(folder, shards, MinHash(settings.words, settings.buckets, settings.hashes))
        find = theirs.MinhashDedupBuckets(left, pairs, config=config, lines_to_buffer=_LINES)
        stages.append(Stage("near", settings.buckets, (keep, find), folder.stages / "near"))
        cluster = theirs.MinhashDedupCluster(pairs, str(_clusters(folder)), config=config, lines_to_buffer=_LINES)
        stages.append(Stage("cluster", 1, (Empty(folder), cluster), folder.stages / "cluster"))
    return stages


def _clusters(folder: RunFolder) -> Any:
    return folder.work / "near" / "clusters"


def exact_buckets(shards: int) -> int:
    """Into how many parts the hashes of so many shards are divided."""
    return 1 + shards // _SHARDS_OF_A_BUCKET


def sorted_hashes(hashes: np.ndarray) -> np.ndarray:
    """Hashes uint64 [documents, 2] in order, each with the number of its document, uint64 [documents, 3]."""
    numbered = np.column_stack([hashes, np.arange(len(hashes), dtype=np.uint64)])
    return numbered[np.lexsort(numbered.T[::-1])]


def equal_documents(folder: RunFolder, shards: int) -> list[np.ndarray]:
    """The documents of each shard whose text stood before, int64, in order; none where none were sought."""
    files = [folder.exact(bucket) for bucket in range(exact_buckets(shards))]
    found = [np.load(file) for file in files if file.exists()] or [np.empty((0, 2), np.int64)]
    pairs = np.concatenate(found)
    pairs = pairs[np.lexsort(pairs.T[::-1])]
    bounds = np.searchsorted(pairs[:, 0], np.arange(shards + 1))
    return [pairs[start:end, 1] for start, end in pairwise(bounds)]


def near_documents(folder: RunFolder, shard: int) -> np.ndarray:
    """The documents of a shard that have a near twin which stays, int64, in order."""
    return removed_documents(_clusters(folder), shard)


@dataclass(frozen=True)
class FindEqual:
    """Each task looks through a range of hashes."""

    folder: RunFolder
    shards: int

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Write the documents whose hash is in range `rank` and stood before."""
        parts = [np.empty((0, 4), np.uint64)]
        first, last = (2**64 * number // world_size for number in (rank, rank + 1))
        for shard in range(self.shards):
            hashes = np.load(self.folder.hashes(shard), mmap_mode="r")
            bounds = [bisect_left(hashes, bound, key=lambda row: int(row[0])) for bound in (first, last)]
            chosen = hashes[slice(*bounds)]
            parts.append(np.insert(chosen, 2, np.uint64(shard), axis=1))
        found = np.concatenate(parts)
        found = found[np.lexsort((found[:, 3], found[:, 2], found[:, 1], found[:, 0]))]
        stood_before = np.zeros(len(found), bool)
        stood_before[1:] = (found[1:, :2] == found[:-1, :2]).all(axis=1)
        write_array(self.folder.exact(rank), found[stood_before, 2:].astype(np.int64))


@dataclass(frozen=True)
class KeepUnequal:
    """Copies the signatures of bucket n without exact duplicates, which would else keep one another's twin away."""

    folder: RunFolder
    shards: int
    config: MinHash

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Write what datatrove's second stage reads of bucket `rank`."""
        load_datatrove()
        left = self.folder.work / "near" / "signatures"
        for shard, equal in enumerate(equal_documents(self.folder, self.shards)):
            records = np.fromfile(signature_file(self.folder.signatures, rank, shard), self.config.record)
            write_records(signature_file(left, rank, shard), without(records, equal))


@dataclass(frozen=True)
class Empty:
    """Removes the clusters that a task ended by a kill has left half written."""

    folder: RunFolder

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Remove them."""
        load_datatrove()
        shutil.rmtree(_clusters(self.folder), ignore_errors=True)
