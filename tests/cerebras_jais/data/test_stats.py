"""Contract: what is counted in packed rows and in stores is what went into them."""

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebras_jais.commands.data import data
from cerebras_jais.data.dataset import DataParameters, write_hdf5
from cerebras_jais.data.documents import DataError
from cerebras_jais.data.packing import pack_stream, pack_vsl
from cerebras_jais.data.stats import count, data_folders, lines
from cerebras_jais.data.token_store import TRAINED, finish_store, write_shard
from tests.cerebras_jais.data.stores import store_of, tokens_of
from tests.chat_tokenizers import byte_level, write_tokenizer

EOS = 0
DOCUMENTS = st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=30), min_size=1, max_size=20)


def write(folder, rows):
    write_hdf5(folder, rows, metadata=DataParameters(vocab_size=400, eos_id=EOS, pad_id=EOS))


@settings(max_examples=25, deadline=None)
@given(DOCUMENTS, st.sampled_from([3, 16, 64]), st.integers(1, 3), st.sampled_from([1, 40]))
def test_documents_of_a_stream_are_counted_whole(
    tmp_path_factory, monkeypatch_module, documents, length, parts, at_once
):
    """Also where the rows are of several streams, one behind the other, and read a few at a time."""
    monkeypatch_module.setattr("cerebras_jais.data.stats._READ_AT_ONCE", at_once * 3 * length)
    folder = tmp_path_factory.mktemp("stream") / "data"
    cut = [part for part in (documents[n::parts] for n in range(parts)) if part]
    write(folder, (row for part in cut for row in pack_stream(store_of(part, EOS), length, EOS)))
    found = count(folder)
    assert sorted(found.lengths) == sorted(len(document) + 1 for document in documents)
    assert found.duplicates == len(documents) - len(set(map(tuple, documents)))
    assert found.filled == found.trained == sum(found.lengths) - len(cut)
    assert found.positions == found.rows * length


@settings(max_examples=25, deadline=None)
@given(DOCUMENTS, st.sampled_from([3, 16, 64]))
def test_documents_packed_whole_are_counted_as_rows_hold_them(tmp_path_factory, documents, length):
    folder = tmp_path_factory.mktemp("vsl") / "data"
    packed = pack_vsl(store_of(documents, EOS), length, EOS)
    write(folder, packed)
    found = count(folder)
    parts = [
        tuple([*document, EOS][start : start + length + 1])
        for document in documents
        for start in range(0, len(document), length)
    ]
    assert sorted(found.lengths) == sorted(map(len, parts))
    assert found.duplicates == len(parts) - len(set(parts))
    assert (found.rows, found.filled) == (packed.report.rows, packed.report.filled_positions)


def test_a_store_is_counted_with_what_is_trained(tmp_path):
    marked = int(TRAINED)
    batch = tokens_of([[5, 6 | marked], [5, 6 | marked], [7]])
    write_shard(tmp_path / "store", 0, [batch], eos_id=None, inputs="", settings={})
    finish_store(tmp_path / "store", 1)
    found = count(tmp_path / "store")
    assert (found.lengths.tolist(), found.trained, found.duplicates, found.rows) == ([2, 2, 1], 2, 1, 0)


def test_the_verb_prints_each_folder_with_lengths_and_languages(tmp_path):
    tokenizer = write_tokenizer("jais", tmp_path / "tokenizer")
    texts = ["مرحبا بالعالم " * 4, "hello world " * 9, "مرحبا بالعالم " * 4]
    documents = [byte_level().encode(text).ids for text in texts]
    write(tmp_path / "d/train", pack_stream(store_of(documents, EOS), 64, EOS))
    write(tmp_path / "d/held_out/ar", pack_vsl(store_of(documents[:1], EOS), 64, EOS))
    words = ["stats", str(tmp_path / "d"), "--tokenizer", str(tokenizer)]
    done = CliRunner().invoke(data, words, catch_exceptions=False)
    printed = done.output.splitlines()
    assert [line for line in printed if line.endswith(":")] == [f"{tmp_path}/d/held_out/ar:", f"{tmp_path}/d/train:"]
    total = sum(len(document) + 1 for document in documents)
    assert f"  3 documents, {total} tokens; 1 of them equal to an earlier one" in printed
    assert "  languages by letters, of 3 documents: ar 66.7%, en 33.3%" in printed
    assert any(line.lstrip().startswith("32-63 ") and line.endswith("#" * 40) for line in printed)
    assert not any("languages" in line for line in lines(count(tmp_path / "d/train")))


def test_what_holds_no_data_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match="none: no such folder"):
        data_folders(tmp_path / "none")
    with pytest.raises(DataError, match="holds no packed files and no token store"):
        data_folders(tmp_path)
    write(tmp_path / "d", np.ones((2, 3, 4), dtype=np.int32))
    (tmp_path / "d/data_params.json").unlink()
    with pytest.raises(DataError, match=r"data_params\.json: names no eos_id"):
        count(tmp_path / "d")


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch
