"""Reading sources.

Contract: the same texts come out of every format, compression and way of naming files; a file divided by bytes gives
each document once, whatever the cuts; what cannot be read is one `Unreadable` with its line, and what follows is read;
a folder says which files it does not read; the shards depend on the files alone.
"""

import csv
import gzip
import json
import random
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cerebras_jais.data.documents import LONGEST_DOCUMENT, DataError
from cerebras_jais.data.recipe import sources
from cerebras_jais.data.recipe.inputs import Part, Shard, find_inputs
from cerebras_jais.data.recipe.settings import Source
from cerebras_jais.data.recipe.sources import place, read_shard
from tests.cerebras_jais.data.recipe.runs import write_lines

TEXTS = ["السلام عليكم،\nكيف الحال؟", "One line.", 'Quotes " and, commas\nand 😀', "x" * 5000]


def write(folder, kind, texts=TEXTS):
    """A file of a kind, named by its ending, with these texts."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"texts.{kind}"
    plain = kind.removesuffix(".gz").removesuffix(".zst")
    if plain == "jsonl":
        content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    elif plain == "txt":
        content = "\n\n \n".join(texts).encode()
    elif plain == "csv":
        with file.open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([["n", "text"], *enumerate(texts)])
        return file
    elif plain == "parquet":
        pq.write_table(pa.table({"n": list(range(len(texts))), "text": texts}), file, row_group_size=2)
        return file
    elif plain == "arrow":
        table = pa.table({"text": texts})
        with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table)
        return file
    else:
        paragraphs = [{"context": text, "qas": []} for text in texts]
        content = json.dumps({"data": [{"paragraphs": paragraphs}]}).encode()
    packed = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(file.suffix, bytes)
    file.write_bytes(packed(content))
    return file


def read(source, shard_bytes=2**30):
    """The texts of a source, and the messages of what cannot be read."""
    texts, refused = [], []
    for shard in find_inputs({"it": source}, shard_bytes).shards:
        for batch in read_shard(shard, source, lambda where, what: refused.append(f"{where}: {what.message}")):
            texts += batch.texts
    return texts, refused


@pytest.mark.parametrize(
    "kind", ["jsonl", "jsonl.gz", "jsonl.zst", "txt", "txt.gz", "txt.zst", "csv", "parquet", "arrow", "json"]
)
def test_every_format_gives_the_same_texts(tmp_path, kind):
    file = write(tmp_path, kind)
    for path in (str(file), str(tmp_path), str(tmp_path / "*.*"), f"file://{file}"):
        if kind == "json" and path.startswith("file:"):
            continue  # read from a disk alone
        assert read(Source(path=path, documents="blank-lines")) == (TEXTS, [])


def test_a_compressed_file_of_several_members_is_read_to_its_end(tmp_path):
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in TEXTS]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, lines)))
    (tmp_path / "b.jsonl.zst").write_bytes(b"".join(map(zstandard.ZstdCompressor().compress, lines)))
    assert read(Source(path=str(tmp_path)))[0] == [*TEXTS, *TEXTS]


def test_texts_in_other_encodings_are_read(tmp_path):
    for encoding in ("cp1256", "utf-16"):
        (tmp_path / "it.txt").write_bytes("نص قصير\nسطر\n\nآخر".encode(encoding))
        source = Source(path=str(tmp_path / "it.txt"), encoding=encoding, documents="blank-lines")
        assert read(source) == (["نص قصير\nسطر", "آخر"], [])


@given(
    lines=st.lists(st.sampled_from(["", " ", "a", "ب ت", "long " * 9, "\t"]), max_size=40),
    cuts=st.sets(st.integers(1, 300), max_size=5),
    kind=st.sampled_from(["txt", "jsonl"]),
)
def test_a_file_cut_anywhere_gives_each_document_once(tmp_path_factory, lines, cuts, kind):
    file = tmp_path_factory.mktemp("cut") / f"it.{kind}"
    content = lines if kind == "txt" else [json.dumps({"text": line}) for line in lines]
    file.write_text("\n".join(content), encoding="utf-8")
    source = Source(path=str(file), documents="blank-lines")
    size = file.stat().st_size
    bounds = [0, *sorted(cut for cut in cuts if cut < size), size]

    def documents(*parts):
        found = []
        for part in parts:
            for batch in read_shard(Shard("it", (part,), size), source, pytest.fail):
                found += zip(batch.texts, [place(part, line) for _, line in batch.places], strict=True)
        return found

    whole = documents(Part(str(file), kind))
    assert documents(*(Part(str(file), kind, *ends) for ends in pairwise(bounds))) == whole


def test_the_lines_before_a_part_are_counted_once_however_many_of_its_lines_are_named(tmp_path, monkeypatch):
    file = write_lines(tmp_path / "it.jsonl", [{"text": str(number)} for number in range(100)])
    opened = []
    monkeypatch.setattr(sources, "_opened", lambda name, real=sources._opened: opened.append(name) or real(name))
    part = Part(str(file), "jsonl", file.stat().st_size // 2, file.stat().st_size)
    assert [place(part, line) for line in range(1, 41)] == [f"{file}:{number}" for number in range(52, 92)]
    assert len(opened) == 1


def test_a_large_file_is_divided_and_small_ones_are_joined(tmp_path):
    big = write_lines(tmp_path / "big.jsonl", [{"text": f"{number} " * 50} for number in range(400)])
    for number in range(20):
        write_lines(tmp_path / "small" / f"{number:02d}.jsonl", [{"text": str(number)}])
    pq.write_table(pa.table({"text": ["word " * 100] * 1000}), tmp_path / "it.parquet", row_group_size=100)
    inputs = find_inputs({"it": Source(path=[str(big), str(tmp_path / "small")])}, 20_000)
    parts = [shard.parts for shard in inputs.shards]
    assert [len(part) for part in parts] == [1] * 4 + [5] * 4
    by_rows = find_inputs({"it": Source(path=str(tmp_path / "it.parquet"))}, 1).shards
    assert [(part.start, part.end) for shard in by_rows for part in shard.parts] == [(n, n + 1) for n in range(10)]
    source = Source(path=[str(tmp_path)])
    assert read(source, 1000)[0] == read(source)[0]


def test_a_folder_says_what_it_does_not_read(tmp_path):
    write(tmp_path, "jsonl")
    for name in ("a.pdf", "b.pdf", "README.md", ".hidden"):
        (tmp_path / name).write_text("x")
    (note,) = find_inputs({"it": Source(path=str(tmp_path))}, 2**30).notes
    assert "2 files are not read (2 .pdf)" in note
    (tmp_path / "texts.jsonl").unlink()
    with pytest.raises(DataError, match=r"no file in this folder can be read \(2 \.pdf\)"):
        find_inputs({"it": Source(path=str(tmp_path))}, 2**30)
    for path in (tmp_path / "none.txt", tmp_path / "*.txt", "memory://none/x.jsonl"):
        with pytest.raises(DataError):
            find_inputs({"it": Source(path=str(path))}, 2**30)


HALF = '{"text": "\\ud800"}'
BROKEN = {
    "not UTF-8": (b'{"text": "a\xff"}', "not utf-8"),
    "half a character": (HALF.encode(), "not valid JSON"),
    "a number of 5,000 digits": (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "deep nesting": (b'{"text": "a", "n": ' + b"[" * 5000 + b"]" * 5000 + b"}", "not valid JSON"),
    "a list": (b"[1]", "expected an object, got list"),
    "no field": (b'{"other": "a"}', "the field 'text' is missing"),
    "a field of another kind": (b'{"text": 5}', "the field 'text' is int, not text"),
    "cut": (b'{"text": "a', "not valid JSON"),
    "enormous": (b'{"text": "' + b"a" * (LONGEST_DOCUMENT + 1) + b'"}', "more than 4 MiB"),
    "an enormous line": (b'{"text": "' + b"a" * (4 * LONGEST_DOCUMENT) + b'"}', "more than 4 MiB"),
    "an unknown language": (b'{"text": "a", "tag": "no tag!"}', "the field 'tag' is no tag"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_named_and_the_next_one_read(tmp_path, name):
    line, said = BROKEN[name]
    (tmp_path / "it.jsonl").write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    texts, (refused,) = read(Source(path=str(tmp_path / "it.jsonl"), language_field="tag"))
    assert texts == ["before", "after"]
    assert refused.startswith(f"{tmp_path}/it.jsonl:2: ")
    assert said in refused


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "parquet", "arrow"])
def test_a_truncated_file_is_named(tmp_path, kind):
    draw = random.Random(1)
    texts = ["".join(draw.choices("abcdefgh ", k=2000)) for _ in range(100)]
    file = write(tmp_path, kind, texts)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    found, (refused,) = read(Source(path=str(file)))
    assert found == texts[: len(found)]
    assert refused.startswith(f"{file}: ")


def test_broken_text_and_tables_are_named_by_line(tmp_path):
    (tmp_path / "it.txt").write_bytes(b"one\n\ntwo\nbroken \xff\n\nthree")
    source = Source(path=str(tmp_path / "it.txt"), documents="blank-lines")
    assert read(source) == (
        ["one", "three"],
        [f"{tmp_path}/it.txt:4: not utf-8 (invalid start byte); give its `encoding`"],
    )
    (tmp_path / "it.csv").write_bytes(b'text,n\none,1\n"broken"x,2\n\xff,3\nfour,4\n')
    texts, refused = read(Source(path=str(tmp_path / "it.csv")))
    assert texts == ["one", "four"]
    assert [line.partition(": ")[0] for line in refused] == [f"{tmp_path}/it.csv:3", f"{tmp_path}/it.csv:4"]
    (tmp_path / "it.csv").write_bytes(b"other\n1\n")
    assert "no column 'text'" in read(Source(path=str(tmp_path / "it.csv")))[1][0]
    pq.write_table(pa.table({"other": ["a"]}), tmp_path / "it.parquet")
    assert "no column 'text'" in read(Source(path=str(tmp_path / "it.parquet")))[1][0]
    column = pa.array([b"good", b"\xff"]).cast(pa.binary())
    broken = pa.StringArray.from_buffers(2, column.buffers()[1], column.buffers()[2])
    pq.write_table(pa.table({"text": broken}), tmp_path / "it.parquet")
    texts, refused = read(Source(path=str(tmp_path / "it.parquet")))
    assert texts == ["good"]
    assert refused == [f"{tmp_path}/it.parquet:2: not UTF-8 (invalid start byte)"]


def test_shards_depend_on_the_files_alone(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"text": f"{number} " * 50} for number in range(400)])
    once, again = (find_inputs({"it": Source(path=str(tmp_path))}, 10_000) for _ in range(2))
    assert once.to_json() == again.to_json()
    Path(tmp_path / "a.jsonl").touch()
    assert find_inputs({"it": Source(path=str(tmp_path))}, 10_000).to_json() != once.to_json()
