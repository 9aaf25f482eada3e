"""Contract: documents come out of files in a stable order, unaltered, each with a language; what cannot be read is
an error that names file and line; the held-out split depends on the order of the documents alone."""

import json

import pytest

from cerebras_jais.data.clean.languages import detect_language
from cerebras_jais.data.documents import (
    DataError,
    Document,
    count_words,
    documents_from_squad,
    read_documents,
    sample_corpus_path,
    split_held_out,
)
from cerebras_jais.errors import UserError


def test_folder_is_read_in_sorted_order_with_language_and_source(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_text("قال: السلام عليكم", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(
        '{"text": "hello"}\n\n{"text": "x = 1", "language": "code"}\n{"text": "  "}\n', encoding="utf-8"
    )
    (tmp_path / "notes.md").write_text("passed over")
    (tmp_path / ".hidden.txt").write_text("passed over")
    documents = list(read_documents(tmp_path))
    assert documents == [
        Document("hello", "en", f"{tmp_path}/a.jsonl:1"),
        Document("x = 1", "code", f"{tmp_path}/a.jsonl:3"),
        Document("قال: السلام عليكم", "ar", f"{tmp_path}/b/one.txt"),
    ]


def test_text_is_left_as_it_is(tmp_path):
    # Decomposed and composed forms, tashkeel, a presentation form, a line separator inside a JSON string.
    text = "أَ أَ  ﻻ \u2028 e\u0301 é ـ"
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [document.text for document in read_documents(tmp_path)] == [text, text]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', 'a.jsonl:2: the key "text"'),
        ("a.jsonl", b'{"text": "x"}\n{"text": "x", "text": "y"}\n', "a.jsonl:2: has the key 'text' twice"),
        ("a.jsonl", b'["x"]\n', "a.jsonl:1: expected an object"),
        ("a.jsonl", b'{"text": "x", "language": "../up"}\n', 'a.jsonl:1: the key "language"'),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "a.jsonl:2: not UTF-8"),
        ("a.txt", b"one\ntwo \xc3\x28\n", "a.txt:2: not UTF-8"),
        ("a.txt", b" \n", "every document is empty"),
        ("a.json", b'{"data": [{"x": 1}]}', "a.json: not in SQuAD format"),
        ("a.json", b'{"data": ', "a.json:1: not valid JSON"),
        ("a.csv", b"x", "a.csv: expected a .txt"),
    ],
)
def test_unreadable_text_names_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_documents(tmp_path / name))
    assert message in str(caught.value)
    assert isinstance(caught.value, UserError)


def test_missing_and_empty_folders_are_errors(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        list(read_documents(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"no \.txt, \.jsonl or \.json file"):
        list(read_documents(tmp_path))


def test_squad_contexts_come_once_in_order(tmp_path):
    paragraphs = [{"context": c, "qas": [{"question": "?"}]} for c in ("واحد", "اثنان", "واحد")]
    file = tmp_path / "set.ar.json"
    file.write_text(json.dumps({"version": "1", "data": [{"title": "t", "paragraphs": paragraphs}]}), encoding="utf-8")
    assert [(d.text, d.language) for d in read_documents(file)] == [("واحد", "ar"), ("اثنان", "ar")]
    assert {d.language for d in documents_from_squad(file, language="xx")} == {"xx"}


def test_every_nth_document_of_each_language_is_held_out():
    documents = [Document(str(i), "ar" if i % 3 == 0 else "en", "") for i in range(30)]
    training, held_out = split_held_out(documents, every=5)
    assert [d.text for d in held_out] == ["7", "12", "14", "22", "27", "29"]
    assert sorted(training + held_out, key=lambda d: int(d.text)) == documents
    with pytest.raises(DataError):
        split_held_out(documents, every=1)


def test_words_are_those_with_letters_or_digits():
    assert count_words("كَتَبَ — 3 كتب ، .") == 3


def test_sample_corpus_is_what_the_package_promises():
    documents = list(read_documents(sample_corpus_path()))
    size = {tag: sum(len(d.text.encode()) for d in documents if d.language == tag) for tag in ("ar", "en", "code")}
    assert len(documents) >= 48
    assert 36_000 <= sum(size.values()) <= 46_000
    assert 0.4 <= size["ar"] / sum(size.values()) <= 0.6
    assert all(300 <= len(d.text) <= 1200 for d in documents)
    assert len({d.text for d in documents}) == len(documents)
    assert all(detect_language(d.text) == d.language for d in documents if d.language != "code")
    everything = "".join(d.text for d in documents)
    for needed in ("\u064e", "\u0651", "٣", "7", "؟", "😅", "def ", "شكرًا"):
        assert needed in everything
    lines = [json.loads(x) for f in sample_corpus_path().glob("*.jsonl") for x in f.read_text("utf-8").splitlines()]
    assert len({line["register"] for line in lines}) >= 15
