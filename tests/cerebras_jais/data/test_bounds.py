"""Text, tokenizers and packed data of any content: refused in one line and in bounded memory, or read.

Contract: a document too long for a tokenizer is refused by its line before it is tokenised; half a character, a broken
tokenizer and a token id beyond any are refused by their file; what is not read or not held out is said with its count
and the remedy; data on a file system without locks is read.
"""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from cerebras_jais.cli import cli
from cerebras_jais.data import documents as text_module
from cerebras_jais.data.dataset import DataParameters, HDF5Samples, write_hdf5
from cerebras_jais.data.documents import DataError, Document, passed_over, read_documents, sample_corpus_path
from cerebras_jais.data.pipeline import batches
from cerebras_jais.data.shards import recorded_vocabulary
from cerebras_jais.data.tokenizer import end_of_text_id, load_tokenizer, save_tokenizer, train_tokenizer
from tests.marks import slow_except
from tests.process import PATIENCE

ROOT = Path(__file__).parents[3]
MEMORY = """
import resource, sys
from pathlib import Path
import tokenizers, numpy, h5py
pages = int(Path("/proc/self/statm").read_text().split()[0])
room = pages * resource.getpagesize() + (2 << 30)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
from cerebras_jais.cli import main
main()
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "t"
    return save_tokenizer(train_tokenizer(read_documents(sample_corpus_path()), 300), path, 128)


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


# ---- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_except(["a.txt"], ["a.txt", "a.jsonl", "a.json"]))
def test_a_document_of_50_megabytes_is_refused_in_two_gigabytes_of_memory(name, tmp_path, tokenizer):
    text = "كلمة word " * (50_000_000 // 14)
    content = {"a.txt": text, "a.jsonl": json.dumps({"text": text}, ensure_ascii=False) + "\n"}
    content["a.json"] = json.dumps({"data": [{"paragraphs": [{"context": text}]}]}, ensure_ascii=False)
    (tmp_path / name).write_text(content[name])
    words = ["data", "pack", "--text", tmp_path / name, "--tokenizer", tokenizer]
    words += ["--max-sequence-length", "64", "--output", tmp_path / "new"]
    command = [sys.executable, "-c", MEMORY, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=PATIENCE)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    where = f"{tmp_path / name}{':1' if name == 'a.jsonl' else ''}: a document of more than 4 MiB"
    assert where in done.stderr and "cut it into documents" in done.stderr and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_longest_document_is_packed_in_two_gigabytes_of_memory(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text(" a" * (text_module.LONGEST_DOCUMENT // 2))
    words = ["data", "pack", "--text", tmp_path / "a.txt", "--tokenizer", tokenizer, "--held-out", "0"]
    words += ["--max-sequence-length", "64", "--output", tmp_path / "new"]
    command = [sys.executable, "-c", MEMORY, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


def test_documents_are_tokenised_in_batches_of_bounded_size():
    documents = [Document("x" * size, "en", str(size)) for size in (600_000, 600_000, 2_000_000, *range(1, 600))]
    found = list(batches(documents, lambda document: len(document.text)))
    assert [document for batch in found for document in batch] == documents
    assert [len(batch) for batch in found] == [1, 1, 1, 256, 256, 87]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (rb'{"text": "\ud800"}', "half of a character"),
        (rb'{"text": "x", "language": "\ud800"}', "half of a character"),
        (b'{"text": ' + b"[" * 100_000 + b"}", "nested too deeply"),
        (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"text": "x", "n": NaN}', "NaN is no number"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "a\x00b"}', "not valid JSON"),
    ],
)
def test_a_line_that_is_no_document_is_refused_by_its_number(line, words, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(DataError, match=words) as caught:
        list(read_documents(tmp_path))
    assert f"{tmp_path / 'a.jsonl'}:2: " in str(caught.value) and "\n" not in str(caught.value)


def test_zero_bytes_and_all_line_ends_are_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("a\0b\r\nج\rd\u2028e".encode())
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a\\u0000b"}\r\n\r\n{"text": "c"}')
    assert [d.text for d in read_documents(tmp_path)] == ["a\0b\nج\rd\u2028e", "a\0b", "c"]


def test_names_that_are_not_utf8_are_read_and_recorded(tmp_path, tokenizer):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    os.mkdir(folder)
    Path(folder, os.fsdecode(b"\xfd.txt")).write_text("some words here, again and again " * 20)
    words = ["data", "pack", "--text", folder, "--tokenizer", tokenizer, "--held-out", "0"]
    words += ["--max-sequence-length", "16", "--output", Path(folder, "new")]
    command = [sys.executable, "-m", "cerebras_jais.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0 and r"\udcff" in done.stdout, done.stderr
    assert recorded_vocabulary(Path(folder, "new", "train")) == 300


# ---- said and not silently left out ---------------------------------------------------------------------------------


def test_files_that_are_not_read_are_said_with_their_count_and_the_remedy(tmp_path, tokenizer):
    for name in ("a.gz", "b.gz", "c.csv", "d.parquet", "e.md", "README", ".hidden", "deep/f.csv"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text("x")
    with pytest.raises(DataError, match=r"in this folder \(but 2 \.csv, 2 \.gz, 1 \.md, 1 \.parquet, 1 without"):
        list(read_documents(tmp_path / "texts"))
    for number in range(20):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"document {number} " * 20)
    assert passed_over(sample_corpus_path() / "arabic.jsonl") is None
    for words in (
        ("tokenizer", "--vocab-size", 300, "--output", tmp_path / "t"),
        ("pack", "--tokenizer", tokenizer, "--max-sequence-length", 16, "--output", tmp_path / "d"),
    ):
        done = run("data", *words, "--text", tmp_path / "texts")
        assert done.exit_code == 0
        (note,) = [line for line in done.output.splitlines() if line.startswith("note: ")]
        assert "7 files are not read: 2 .csv, 2 .gz, 1 .md, 1 .parquet, 1 without an ending; " in note
        assert "unpack or convert" in note
    (tmp_path / "texts" / "plain").mkdir()
    assert passed_over(tmp_path / "texts" / "plain") is None


def test_one_document_of_which_nothing_is_held_out_is_said_with_the_remedy(tmp_path, tokenizer):
    (tmp_path / "one.txt").write_text("a line of words\n" * 50)
    words = ("--text", tmp_path / "one.txt", "--tokenizer", tokenizer, "--max-sequence-length", 16)
    done = run("data", "pack", *words, "--output", tmp_path / "d")
    assert done.exit_code == 0 and not (tmp_path / "d" / "held_out").exists()
    (note,) = [line for line in done.output.splitlines() if line.startswith("note: ")]
    assert "nothing is held out of en (1 document)" in note and ".jsonl" in note and "--held-out" in note
    silent = run("data", "pack", *words, "--output", tmp_path / "e", "--held-out", 0)
    assert silent.exit_code == 0 and "note" not in silent.output


# ---- tokenizers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("tokenizer.json", content) for content in ("", "[]", "null", "{}", "[" * 100_000, "9" * 5000, '"\\ud800"')),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}'),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 99999999999}, "merges": [["a", "b"]]}}'),
        *(("tokenizer_config.json", content) for content in ("", "[]", "null", "[" * 100_000, '{"eos_token": [1]}')),
        *(("tokenizer_config.json", content) for content in ('{"eos_token": 5}', '{"eos_token": {"content": 5}}')),
    ],
)
def test_a_malformed_tokenizer_is_refused_by_its_file_or_read_without_it(name, content, tokenizer, tmp_path):
    for file in tokenizer.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_text(content)
    if name == "tokenizer_config.json" and content in ("null",):
        assert end_of_text_id(load_tokenizer(tmp_path), tmp_path) == 0
        return
    with pytest.raises(DataError, match="tokenizer") as caught:
        end_of_text_id(load_tokenizer(tmp_path), tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_whose_ids_go_beyond_its_vocabulary_is_refused(tokenizer, tmp_path):
    for name, id in (("a", 2**32 - 1), ("a", 2**31), ("a", 512_000), ("<|endoftext|>", 2**32 - 1)):
        content = json.loads((tokenizer / "tokenizer.json").read_text())
        content["model"]["vocab"][name] = id
        content["added_tokens"] = []
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        done = run("data", "pack", "--tokenizer", tmp_path, "--max-sequence-length", 16, "--output", tmp_path / "new")
        assert isinstance(done.exception, DataError) and f"the token id {id}" in str(done.exception)
        assert not (tmp_path / "new").exists()


def test_a_panic_of_the_library_is_one_line(tokenizer, tmp_path, capfd):
    """Merges whose second part is shorter than the prefix that continues a word make its reader panic."""
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    content["model"]["continuing_subword_prefix"] = "x" * 100
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="not a readable tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert type(caught.value.__cause__).__name__ == "PanicException" and capfd.readouterr().err == ""


def test_a_vocabulary_beyond_any_is_refused_before_anything_is_read():
    done = run("data", "tokenizer", "--vocab-size", 1_000_000_000, "--output", "new", "--text", "/dev/zero")
    assert done.exit_code == 2 and "must be a whole number from 1 to 512000" in done.output


# ---- packed data ----------------------------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path):
    rows = np.ones((8, 3, 4), np.int32)
    write_hdf5(tmp_path / "d", rows, metadata=DataParameters(vocab_size=5, eos_id=0, pad_id=0))
    return tmp_path / "d"


def test_data_is_read_where_its_file_cannot_be_locked(packed):
    """As on a file system without locks, HDF5's lock on the file is refused."""
    file = packed / "output_chunk_000000.h5"
    with open(file, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="lock"):
            h5py.File(file, "r", locking=True)
        assert len(HDF5Samples(packed).read(np.arange(8))["input_ids"]) == 8


def test_data_that_may_not_be_read_is_not_called_damaged(packed, monkeypatch):
    def refused(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(packed / "output_chunk_000000.h5"))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PermissionError):
        HDF5Samples(packed)


def test_data_that_is_a_pipe_or_damaged_is_refused(packed):
    (packed / "output_chunk_000000.h5").unlink()
    os.mkfifo(packed / "output_chunk_000000.h5")
    with pytest.raises(DataError, match="not a regular file"):
        HDF5Samples(packed)
    (packed / "output_chunk_000000.h5").unlink()
    (packed / "output_chunk_000000.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(DataError, match="pack the data again"):
        HDF5Samples(packed)


@pytest.mark.parametrize("content", ["[" * 100_000, "9" * 5000, '{"processing": {"vocab_size": 1e999}}', "NaN", "[]"])
def test_a_damaged_record_of_the_vocabulary_records_none(content, packed):
    assert recorded_vocabulary(packed) == 5
    (packed / "data_params.json").write_text(content)
    assert recorded_vocabulary(packed) is None
    (packed / "data_params.json").unlink()
    os.mkfifo(packed / "data_params.json")
    assert recorded_vocabulary(packed) is None
