"""Contract: what is shown of packed rows is every token of every example once, each with whether it counts in the loss;
a line of a terminal is of one kind and holds no control character; the page is one file that needs nothing else."""

import re
from html.parser import HTMLParser

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from cerebras_jais.commands.data import data
from cerebras_jais.data.chat.pipeline import pack_conversations
from cerebras_jais.data.chat.prompts import render
from cerebras_jais.data.chat.reading import read_conversations, sample_conversations_path
from cerebras_jais.data.dataset import DataParameters, write_hdf5
from cerebras_jais.data.documents import DataError, Document
from cerebras_jais.data.pipeline import pack_documents
from cerebras_jais.data.show import COUNTED_BAR, END_SIGN, OTHER_BAR, open_rows, read_rows, row_numbers
from cerebras_jais.data.tokenizer import load_tokenizer
from tests.cerebras_jais.data.chat.examples import byte_level, conversation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return byte_level(tmp_path_factory.mktemp("tokenizer"), 2048)


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("packed") / "data"
    pack_conversations(read_conversations(sample_conversations_path()), folder, 512, output, held_out=0)
    return output


def show(*words):
    return CliRunner().invoke(data, ["show", *map(str, words)])


def all_rows(path, folder):
    source = open_rows(path)
    return list(read_rows(source, range(len(source)), load_tokenizer(folder), 0))


def test_every_example_is_shown_with_its_responses_in_the_loss(folder, packed):
    pieces = [piece for row in all_rows(packed, folder) for piece in row.pieces]
    chats = list(read_conversations(sample_conversations_path()))
    shown = sorted("".join(run.text for run in piece.runs) for piece in pieces)
    assert shown == sorted(render(chat.messages, chat.language).text + END_SIGN for chat in chats)
    counted = sorted("".join(run.text.strip() for run in piece.runs if run.trained) for piece in pieces)
    answers = ["".join(m.content for m in chat.messages if m.role == "assistant") + END_SIGN for chat in chats]
    assert counted == sorted(answers)


def test_positions_and_counts_are_those_of_the_row(folder, packed):
    for row in all_rows(packed, folder):
        assert [piece.start for piece in row.pieces] == [0, *(piece.end for piece in row.pieces[:-1])]
        assert row.pieces[-1].end == row.filled <= row.length == 512
        assert sum(piece.trained for piece in row.pieces) == row.trained
        assert row.sees_only_itself


def test_documents_of_a_stream_are_shown_one_by_one(folder, tmp_path):
    texts = ["The first document.", "وثيقة ثانية.", "A third."]
    documents = [Document(text, "en", "x") for text in texts]
    pack_documents(documents, folder, 64, tmp_path / "data", held_out=0)
    (row,) = all_rows(tmp_path / "data", folder)
    assert not row.sees_only_itself
    shown = ["".join(run.text for run in piece.runs) for piece in row.pieces]
    assert sorted(shown) == sorted(f"{text}{END_SIGN}" for text in texts)
    assert [run.trained for run in row.pieces[0].runs] == [False, True], "nothing predicts the first token"
    assert all(run.trained for piece in row.pieces[1:] for run in piece.runs)


def test_a_terminal_line_is_of_one_kind_and_holds_no_control_character(folder, tmp_path):
    chat = conversation("مرحبا \u202e\x1b[31m\x07 a\u200cb", "أهلًا\nline\ttwo")
    pack_conversations([chat], folder, 1024, tmp_path / "data", held_out=0)
    result = show(tmp_path / "data", "--tokenizer", folder)
    assert result.exception is None, result.exception
    lines = [line[2:] for line in result.output.splitlines() if line.startswith((f"  {COUNTED_BAR}", f"  {OTHER_BAR}"))]
    assert f"{OTHER_BAR} ### Input: [|Human|] مرحبا \\u202e\\x1b[31m\\x07 a\u200cb" in lines
    assert [line for line in lines if line.startswith(COUNTED_BAR)] == [
        f"{COUNTED_BAR}  أهلًا",
        f"{COUNTED_BAR} line\\ttwo{END_SIGN}",
    ]
    assert all(character.isprintable() or character == "\u200c" for line in lines for character in line)


def test_a_literal_end_of_text_is_not_shown_as_the_end(folder, tmp_path):
    pack_conversations([conversation("a", f"b <|endoftext|> {END_SIGN}")], folder, 512, tmp_path / "data", held_out=0)
    result = show(tmp_path / "data", "--tokenizer", folder)
    assert f"{COUNTED_BAR}  b <|endoftext|> {END_SIGN}{END_SIGN}" in result.output


class Page(HTMLParser):
    """What a page holds: its elements in order, the text that is marked, and the attributes that name other files."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.marked, self.outside = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.outside += [value for name, value in attrs if name in ("src", "href", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "mark" in self.open:
            self.marked.append(text)


def test_the_page_is_one_file_with_the_loss_marked_and_markup_as_text(folder, tmp_path):
    chats = [conversation("<script>alert('x')</script>", "one & two\n<b>"), conversation("سؤال", "جواب", language="ar")]
    pack_conversations(chats, folder, 1024, tmp_path / "data", held_out=0)
    result = show(tmp_path / "data", "--tokenizer", folder, "--html", tmp_path / "page.html")
    assert result.exception is None, result.exception
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert not page.open and not page.outside
    assert "script" not in page.tags and "link" not in page.tags and "url(" not in text and "@import" not in text
    assert sorted(part.strip() for part in page.marked) == sorted(["one & two", f"<b>{END_SIGN}", f"جواب{END_SIGN}"])
    assert page.tags.count("article") == 2
    assert sorted(re.findall(r'<article dir="(\w+)">', text)) == ["ltr", "rtl"]
    assert re.search(r'<p dir="rtl"><span dir="rtl">### Instruction:اسمك', text)
    assert re.search(r"<html lang=\"en\">.*<meta charset=\"utf-8\">", text, re.DOTALL)


def test_a_file_that_is_there_is_replaced_by_a_page_where_that_is_asked_for(folder, packed, tmp_path):
    page = tmp_path / "notes.html"
    page.write_text("mine")
    words = packed, "--tokenizer", folder, "--rows", "0", "--html", page
    error = show(*words).exception
    assert isinstance(error, DataError)
    assert str(error) == f"{page}: exists; choose another --html or give --overwrite"
    assert page.read_text() == "mine"
    assert show(*words, "--overwrite").exception is None
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_file_and_the_folder_around_it_show_the_same(folder, packed):
    shown = [show(path, "--tokenizer", folder, "--rows", "0-1,3").output for path in (packed, packed / "train")]
    shown.append(show(next((packed / "train").glob("*.h5")), "--tokenizer", folder, "--rows", "0-1,3").output)
    assert len(set(shown)) == 1
    assert [line.split(":")[0] for line in shown[0].splitlines() if line.startswith("row")] == [
        "row 0",
        "row 1",
        "row 3",
    ]


@pytest.mark.parametrize(
    ("text", "numbers"), [("0", [0]), ("0-2,7", [0, 1, 2, 7]), (" 3 , 4-4", [3, 4]), ("5,1", [5, 1])]
)
def test_rows_are_numbers_and_ranges(text, numbers):
    assert row_numbers(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "2-1", "-1", "1-", "1,,2", "0-99999", "9" * 5000, "٣"])
def test_other_rows_are_refused(text):
    with pytest.raises(DataError, match="give numbers and ranges such as 0-2,7"):
        row_numbers(text)


def test_wrong_input_is_one_line(folder, packed, tmp_path):
    (tmp_path / "empty").mkdir()
    other = byte_level(tmp_path / "other", 300)
    for words, said in (
        ((packed, "--tokenizer", folder, "--rows", "999"), "row 999: the data has"),
        ((packed, "--tokenizer", other), "which the tokenizer has not"),
        ((tmp_path / "none", "--tokenizer", folder), "no such file or folder"),
        ((tmp_path / "empty", "--tokenizer", folder), "no *.h5 files in it"),
        ((packed / "train/data_params.json", "--tokenizer", folder), "not a readable HDF5 file"),
    ):
        error = show(*words).exception
        assert isinstance(error, DataError) and said in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("wrong", [-3, 3000])
def test_a_token_id_that_the_tokenizer_has_not_is_named_with_its_sign(folder, tmp_path, wrong):
    rows = np.random.default_rng(0).integers(1, 2048, (1, 3, 16), dtype=np.int32)
    write_hdf5(tmp_path / "data", iter(rows), metadata=DataParameters(2048, 0, 0))
    with h5py.File(next((tmp_path / "data").glob("*.h5")), "r+") as file:
        (name,) = file
        file[name][0, 0, 5] = wrong
    with pytest.raises(DataError, match=f"has the token id {wrong}, which the tokenizer has not"):
        all_rows(tmp_path / "data", folder)


def test_rows_of_spans_that_cannot_be_are_shown_all_the_same(folder, tmp_path):
    rows = np.random.default_rng(0).integers(1, 500, (3, 5, 16), dtype=np.int32)
    rows[:, 3] -= 250
    write_hdf5(tmp_path / "data", iter(rows), metadata=DataParameters(2048, 0, 0))
    assert [row.pieces[-1].end for row in all_rows(tmp_path / "data", folder)] == [16, 16, 16]
