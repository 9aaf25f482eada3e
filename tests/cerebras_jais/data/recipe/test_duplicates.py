"""Exact duplicates among the hashes of many shards.

Contract: of documents with one hash all but the first, in the order of shards and numbers, are found, however many
tasks look for them.
"""

import numpy as np
import pytest

from cerebras_jais.data.recipe import duplicates
from cerebras_jais.data.recipe.folder import RunFolder, write_array


@pytest.mark.parametrize("shards_of_a_bucket", [1, 2, 100])
def test_all_but_the_first_of_equal_documents_are_found(tmp_path, monkeypatch, shards_of_a_bucket):
    monkeypatch.setattr(duplicates, "_SHARDS_OF_A_BUCKET", shards_of_a_bucket)
    folder, draw = RunFolder(tmp_path, "", {}), np.random.default_rng(1)
    values = draw.integers(0, 2**64, (40, 2), dtype=np.uint64)
    values[0], values[1] = (0, 5), (2**64 - 1, 5)
    shards = [values[draw.integers(0, 40, count)] for count in (30, 0, 25, 1, 60)]
    for number, hashes in enumerate(shards):
        write_array(folder.hashes(number), duplicates.sorted_hashes(hashes))
    tasks = duplicates.exact_buckets(len(shards))
    for task in range(tasks):
        duplicates.FindEqual(folder, len(shards))(None, task, tasks)
    seen, expected = set(), []
    for hashes in shards:
        expected.append([])
        for number, pair in enumerate(map(tuple, hashes.tolist())):
            if pair in seen:
                expected[-1].append(number)
            seen.add(pair)
    assert [found.tolist() for found in duplicates.equal_documents(folder, len(shards))] == expected
