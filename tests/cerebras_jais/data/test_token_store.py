"""Contract: a store gives back the documents that were put into it, in any order; a shard is whole or not there; the
same documents give the same bytes; files that do not belong together are refused."""

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebras_jais.data.documents import DataError
from cerebras_jais.data.token_store import (
    TRAINED,
    Store,
    TokenWriter,
    check_digests,
    finish_store,
    in_order,
    joined,
    map_tokens,
    open_store,
    whole_shard,
    write_shard,
)
from cerebras_jais.encoding import Tokens
from tests.cerebras_jais.data.stores import tokens_of

EOS = 3
EMPTY = {"inputs": "", "settings": {}}
SETTINGS = {"tokenizer": "t", "eos_id": EOS}
IDS = st.integers(0, 511_999) | st.integers(int(TRAINED), int(TRAINED) + 511_999)
BATCHES = st.lists(st.lists(st.lists(IDS, max_size=9), max_size=4), max_size=4)


def write(folder, index, batches, **changed):
    wanted = {"eos_id": EOS, "inputs": f"inputs {index}", "settings": SETTINGS} | changed
    return write_shard(folder, index, map(tokens_of, batches), **wanted)


@settings(max_examples=50, deadline=None)
@given(st.lists(BATCHES, max_size=3), st.sampled_from([None, EOS]))
def test_documents_come_back_by_number_with_the_end_of_text_behind_each(tmp_path_factory, shards, eos_id):
    folder = tmp_path_factory.mktemp("store")
    for index, batches in enumerate(shards):
        write(folder, index, batches, eos_id=eos_id)
    store = finish_store(folder, len(shards))
    end = [] if eos_id is None else [eos_id]
    wanted = [[*ids, *end] for batches in shards for batch in batches for ids in batch if ids]
    assert store.lengths.tolist() == list(map(len, wanted))
    assert store.tokens == sum(map(len, wanted))
    for number in reversed(range(len(wanted))):
        assert store.read(number).tolist() == wanted[number]
    order = np.random.default_rng(0).permutation(len(wanted))
    assert [ids.tolist() for ids in store.slices(order)] == [wanted[number] for number in order]
    check_digests(folder)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(IDS, min_size=1, max_size=9), max_size=8))
def test_documents_added_one_by_one_are_those_added_at_once(tmp_path_factory, documents):
    folder = tmp_path_factory.mktemp("store")
    for name in ("one", "all"):
        with TokenWriter(folder / f"{name}.tokens", folder / f"{name}.ends") as writer:
            if name == "all":
                writer.extend(tokens_of(documents))
            else:
                for document in documents:
                    writer.append(np.array(document, dtype=np.uint32))
    for ending in ("tokens", "ends"):
        assert (folder / f"one.{ending}").read_bytes() == (folder / f"all.{ending}").read_bytes()
    assert Store([map_tokens(folder / "one.tokens", folder / "one.ends")]).lengths.tolist() == list(map(len, documents))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.lists(IDS, min_size=1, max_size=9), max_size=6), min_size=1, max_size=4),
    st.lists(st.integers(0, 99), max_size=30),
    st.integers(1, 60),
)
def test_documents_written_in_an_order_are_the_same_however_many_are_held(tmp_path_factory, shards, order, at_once):
    store = Store([tokens_of(documents) for documents in shards])
    if not len(store):
        return
    order = np.array([number % len(store) for number in order], dtype=np.int64)
    folder = tmp_path_factory.mktemp("ordered")
    ordered = in_order(store, order, folder, at_once)
    assert [ids.tolist() for ids in ordered.slices(np.arange(len(order)))] == [
        ids.tolist() for ids in store.slices(order)
    ]
    assert not list(folder.glob("*.scattered"))


def test_several_stores_are_numbered_through(tmp_path):
    for name, batches in (("a", [[[1, 2]], [[5]]]), ("b", [[[7, 8, 9]]])):
        write(tmp_path / name, 0, batches)
        finish_store(tmp_path / name, 1)
    store = joined([open_store(tmp_path / "a"), open_store(tmp_path / "b")])
    assert [store.read(number).tolist() for number in range(3)] == [[1, 2, EOS], [5, EOS], [7, 8, 9, EOS]]
    assert [shard.documents for shard in store.shards] == [2, 1]


def test_released_pages_no_longer_count_and_are_read_again(tmp_path):
    def resident():
        """Bytes of the shard's tokens that count as memory of this process."""
        mapped = Path("/proc/self/smaps").read_text().split(str(tmp_path / "000000.tokens"))[1:]
        return sum(1024 * int(re.search(r"Rss: +(\d+) kB", entry)[1]) for entry in mapped)

    size = 4 * 2**23
    write_shard(tmp_path, 0, [Tokens(np.ones(2**23, np.uint32), np.array([2**23]))], eos_id=None, **EMPTY)
    store = finish_store(tmp_path, 1)
    assert store.read(0).sum() == 2**23
    assert resident() > size / 2
    store.release()
    assert resident() == 0
    assert store.read(0).sum() == 2**23
    Store([tokens_of([[1]])]).release()


def test_a_shard_is_gone_on_with_only_if_it_is_whole_and_made_of_the_same(tmp_path):
    shard = write(tmp_path, 4, [[[1, 2], []], [[3]]], counts={"bytes": 9})
    assert (shard.documents, shard.tokens, shard.counts) == (2, 5, {"bytes": 9})
    same = {"inputs": "inputs 4", "settings": dict(SETTINGS)}
    assert whole_shard(tmp_path, 4, **same) == shard
    assert whole_shard(tmp_path, 5, **same) is None
    assert whole_shard(tmp_path, 4, **same | {"inputs": "others"}) is None
    assert whole_shard(tmp_path, 4, **same | {"settings": {"tokenizer": "u"}}) is None
    with (tmp_path / "000004.tokens").open("ab") as tokens:
        tokens.write(b"more")
    assert whole_shard(tmp_path, 4, **same) is None
    (tmp_path / "000004.ends").unlink()
    assert whole_shard(tmp_path, 4, **same) is None


def test_the_same_documents_give_the_same_bytes_wherever_they_are_made(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, 0, [[[1, 2]], [[3]]] if name == "a" else [[[1, 2], [3]]])
        finish_store(tmp_path / name, 1)
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("a", "b"))
    assert first == second
    assert set(first) == {"000000.tokens", "000000.ends", "000000.json", "manifest.json"}


def test_a_failure_leaves_no_shard_and_no_file_half_written(tmp_path):
    def documents():
        yield tokens_of([[1]])
        raise DataError("a.jsonl:7: broken")

    write(tmp_path, 0, [[[1]]])
    with pytest.raises(DataError, match="broken"):
        write_shard(tmp_path, 1, documents(), eos_id=0, **EMPTY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.ends", "000000.json", "000000.tokens"]
    (tmp_path / ".000000.tokens.partial").write_bytes(b"what a killed process left")
    write(tmp_path, 0, [[[1, 2]]])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.ends", "000000.json", "000000.tokens"]
    with pytest.raises(DataError, match="shard 1 of 2 is missing"):
        finish_store(tmp_path, 2)


def test_what_the_system_refuses_names_the_shard(tmp_path, monkeypatch):
    def full(self, batch):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(TokenWriter, "extend", full)
    with pytest.raises(OSError, match=r"No space left on device: .*000000\.tokens'"):
        write(tmp_path, 0, [[[1]]])
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()

    def unreadable():
        yield tokens_of([[1]])
        (tmp_path / "none.txt").read_bytes()

    with pytest.raises(OSError, match=r"none\.txt"):
        write_shard(tmp_path, 0, unreadable(), eos_id=0, **EMPTY)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file", 0, [[[1]]])


def test_what_is_no_whole_store_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        open_store(tmp_path)
    write(tmp_path, 0, [[[1, 2], [3]]])
    finish_store(tmp_path, 1)
    good = (tmp_path / "manifest.json").read_text()
    for broken, said in (("[]", "does not list shards"), ('{"shards": [{"documents": 2}]}', "does not describe")):
        (tmp_path / "manifest.json").write_text(broken)
        with pytest.raises(DataError, match=said):
            open_store(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(json.loads(good)))
    tokens = tmp_path / "000000.tokens"
    content = tokens.read_bytes()
    tokens.write_bytes(bytes(len(content)))
    with pytest.raises(DataError, match=r"000000\.tokens: was changed"):
        check_digests(tmp_path)
    tokens.write_bytes(content[:-4])
    with pytest.raises(DataError, match=r"000000\.tokens: has 16 bytes, the manifest says 20"):
        open_store(tmp_path)
    tokens.write_bytes(content)
    (tmp_path / "000000.ends").write_bytes(np.array([5, 4], dtype="<u8").tobytes())
    with pytest.raises(DataError, match=r"000000\.ends: does not fit"):
        open_store(tmp_path)
    (tmp_path / "000000.ends").unlink()
    with pytest.raises(DataError, match=r"000000\.ends: No such file"):
        open_store(tmp_path)
