"""Contract: whatever is wrong with conversations, a tokenizer or a length, `data chat` ends with one line that names it
and the remedy, and leaves nothing; with --skip-malformed it goes on and counts."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cerebras_jais.commands import data as commands
from cerebras_jais.commands.data import data
from cerebras_jais.data.chat.examples import TooLong
from cerebras_jais.errors import UserError
from tests.cerebras_jais.data.chat.examples import byte_level
from tests.cerebras_jais.data.chat.test_reading import GOOD, MALFORMED, written


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return byte_level(tmp_path_factory.mktemp("tokenizer"))


def chat(*words):
    return CliRunner().invoke(data, ["chat", *map(str, words)])


def refused(folder, *words):
    """The one line of a run that must fail, and leaves its folder as it was."""
    before = sorted(folder.rglob("*"))
    result = chat(*words)
    assert isinstance(result.exception, UserError), result.exception
    assert sorted(folder.rglob("*")) == before
    assert "\n" not in str(result.exception)
    return str(result.exception)


def options(tmp_path, tokenizer, *, length=1024):
    return ["--tokenizer", tokenizer, "--max-sequence-length", length, "--output", tmp_path / "data"]


@pytest.mark.parametrize(
    "name", ["no response", "roles out of order", "unknown field", "broken JSON", "lone surrogate"]
)
def test_a_malformed_line_stops_the_run_or_is_counted(tmp_path, tokenizer, name):
    line, words = MALFORMED[name]
    path = written(tmp_path / "a.jsonl", GOOD, line, {"prompt": "c", "response": "d"})
    said = refused(tmp_path, "--text", path, *options(tmp_path, tokenizer))
    assert said.startswith(f"{path}:2: ") and words in said
    result = chat("--text", path, "--skip-malformed", "--held-out", 0, *options(tmp_path, tokenizer))
    assert result.exception is None, result.exception
    assert "train: 2 examples" in result.output
    assert "left out: 1 of 3, malformed" in result.output
    assert f"note: left out: {path}:2: " in result.output


def test_only_the_first_malformed_lines_are_named(tmp_path, tokenizer):
    path = written(tmp_path / "a.jsonl", *["{"] * 50, GOOD)
    result = chat("--text", path, "--skip-malformed", "--held-out", 0, *options(tmp_path, tokenizer))
    assert result.output.count("note: left out") == commands.Malformed.SHOWN
    assert "left out: 50 of 51, malformed" in result.output


def test_standard_input_twice(tmp_path, tokenizer):
    said = refused(tmp_path, "--text", "-", "--text", "-", *options(tmp_path, tokenizer))
    assert said == "--text -: standard input is given twice, and can be read once; give it once"


def test_nothing_but_malformed_lines(tmp_path, tokenizer):
    path = written(tmp_path / "a.jsonl", "{")
    said = refused(tmp_path, "--text", path, "--skip-malformed", *options(tmp_path, tokenizer))
    assert "no conversation to train on" in said


def test_what_was_left_out_and_files_without_a_conversation_are_named_before_the_error(tmp_path, tokenizer):
    path, blank = written(tmp_path / "a.jsonl", "{", "["), written(tmp_path / "b.jsonl", " ")
    result = chat("--text", path, "--text", blank, "--skip-malformed", *options(tmp_path, tokenizer))
    assert isinstance(result.exception, UserError)
    said = result.output.splitlines()
    assert said[0] == "note: lines left out as malformed: 2"
    assert [line.partition(": not valid")[0] for line in said[1:3]] == [
        f"note: left out: {path}:{number}" for number in (1, 2)
    ]
    assert said[3:] == [f"note: {file}: has no conversation" for file in (path, blank)]


def test_a_file_without_a_conversation_is_named_beside_one_that_has_some(tmp_path, tokenizer):
    path, empty = written(tmp_path / "a.jsonl", GOOD), written(tmp_path / "b.jsonl")
    result = chat("--text", path, "--text", empty, "--held-out", 0, *options(tmp_path, tokenizer))
    assert result.exception is None
    assert f"note: {empty}: has no conversation" in result.output


def test_a_context_shorter_than_the_prompt_says_the_shortest_that_is_enough(tmp_path, tokenizer):
    path = written(tmp_path / "a.jsonl", GOOD)
    said = refused(tmp_path, "--text", path, *options(tmp_path, tokenizer, length=30))
    assert said.startswith("no example fits 30 positions")
    enough = int(said.split("--max-sequence-length ")[1].split()[0])
    assert refused(tmp_path, "--text", path, *options(tmp_path, tokenizer, length=enough - 1))
    assert chat("--text", path, *options(tmp_path, tokenizer, length=enough)).exception is None


def test_a_tokenizer_without_an_end_of_text(tmp_path, tokenizer):
    stored = json.loads(Path(tokenizer, "tokenizer.json").read_text(encoding="utf-8"))
    stored["added_tokens"] = []
    stored["model"]["vocab"] = {name: number for name, number in stored["model"]["vocab"].items() if number}
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    said = refused(tmp_path, "--text", written(tmp_path / "a.jsonl", GOOD), *options(tmp_path, other))
    assert said == f"{other}: no end-of-text token (<|endoftext|> or </s>) in the vocabulary"


def test_a_tokenizer_that_is_not_there(tmp_path):
    said = refused(tmp_path, "--text", written(tmp_path / "a.jsonl", GOOD), *options(tmp_path, tmp_path / "none"))
    assert "no such file; make one with" in said


def test_a_folder_that_holds_something(tmp_path, tokenizer):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").touch()
    said = refused(tmp_path, "--text", written(tmp_path / "a.jsonl", GOOD), *options(tmp_path, tokenizer))
    assert "exists and is not an empty folder" in said


def test_all_held_out(tmp_path, tokenizer):
    path = written(tmp_path / "a.jsonl", GOOD)
    said = refused(tmp_path, "--text", path, "--held-out", 1, *options(tmp_path, tokenizer))
    assert "must be 2 or more" in said


def test_a_language_of_too_few_examples_is_noted(tmp_path, tokenizer):
    lines = [{"prompt": f"question {number}", "response": "answer"} for number in range(10)]
    path = written(tmp_path / "a.jsonl", *lines, {"prompt": "سؤال", "response": "جواب"})
    result = chat("--text", path, *options(tmp_path, tokenizer))
    assert "note: nothing is held out of ar (1 example)" in result.output
    assert "nothing is held out of en" not in result.output


def test_a_language_whose_held_out_examples_are_all_too_long_is_noted_and_no_empty_file_is_left(tmp_path, tokenizer):
    lines = [
        {"prompt": f"question {number}", "response": "answer " * (1 + 900 * (number == 9))} for number in range(10)
    ]
    path = written(tmp_path / "a.jsonl", *lines)
    result = chat("--text", path, *options(tmp_path, tokenizer, length=512))
    assert "note: nothing is held out of en (10 examples): those that would be are too long" in result.output
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["train"]


def test_nothing_is_noted_where_nothing_is_to_be_held_out(tmp_path, tokenizer):
    path = written(tmp_path / "a.jsonl", GOOD)
    result = chat("--text", path, "--held-out", 0, *options(tmp_path, tokenizer))
    assert result.exception is None
    assert "note:" not in result.output


def test_the_rules_for_examples_that_are_too_long_are_those_of_the_option():
    assert list(commands.TOO_LONG) == [rule.value for rule in TooLong]


@pytest.mark.parametrize("content", [b"{", b'{"prompt": 1}', b"\xff", b"[]"])
def test_escape_sequences_of_a_file_name_are_spelled_out(tmp_path, tokenizer, content):
    path = tmp_path / "\x1b[31m.jsonl"
    path.write_bytes(content)
    said = refused(tmp_path, "--text", path, *options(tmp_path, tokenizer))
    assert said.isprintable() and r"\x1b[31m.jsonl" in said
