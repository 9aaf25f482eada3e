"""The files of a user: only regular ones are read, of bounded size.

Contract: pipes, devices, folders and sockets are refused in one line without waiting; JSON beyond the standard is
refused by its line.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cerebras_jais.errors import UserError
from cerebras_jais.files import MIB, open_regular, parse_json, read_bytes, read_text
from tests.process import PATIENCE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_files(tmp_path):
    """Paths of all that is no regular file, by what it is."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        yield [tmp_path / "pipe", tmp_path / "folder", tmp_path / "socket", Path("/dev/zero"), Path("/dev/null")]


def test_only_regular_files_are_read_and_nothing_is_waited_for(no_files, tmp_path):
    for path in no_files:
        for read in (read_bytes, read_text):
            with pytest.raises(UserError, match=r"regular file|is a folder") as caught:
                read(path, MIB)
            assert str(path) in str(caught.value)
    for path in (tmp_path / "absent", tmp_path / "a\0b", tmp_path / "\ud800", tmp_path / ("n" * 300)):
        with pytest.raises(UserError, match="cannot be read"):
            read_bytes(path, MIB)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        "config check PATH",
        "config show PATH",
        "config diff PATH tiny/jais",
        "config check configs/tiny/jais.yaml --tokenizer PATH",
        "config write PATH --output NEW",
        "fit PATH --dry-run",
        "fit configs/tiny/jais.yaml --backend cpu --model-dir NEW --checkpoint PATH",
        "data tokenizer --vocab-size 300 --text PATH --output NEW",
        "data pack --text PATH --tokenizer . --max-sequence-length 8 --output NEW",
        "data pack --tokenizer PATH --max-sequence-length 8 --output NEW",
        "generate PATH --tokenizer . --prompt x",
        "generate x.mdl --tokenizer . --prompt x --config PATH",
        "score PATH --tokenizer . --text cerebras_jais/data/sample/arabic.jsonl",
        "score x.mdl --tokenizer . --text PATH",
        "score x.mdl --tokenizer . --data PATH",
        "CONVERT inspect PATH",
        "CONVERT inspect x.mdl --config PATH",
        "CONVERT to-hf PATH --output NEW",
        "CONVERT verify PATH",
        "CONVERT diff PATH PATH",
    ],
)
def test_every_option_that_names_a_file_refuses_what_is_none(arguments, no_files, tmp_path):
    (tmp_path / "x.mdl").write_bytes(b"")
    for path in no_files:
        if path.is_dir():
            continue
        words = arguments.replace("PATH", str(path)).replace("NEW", str(tmp_path / "new"))
        words = words.replace("x.mdl", str(tmp_path / "x.mdl")).split()
        program = "checkpoint_convert.cli" if words[0] == "CONVERT" else "cerebras_jais.cli"
        command = [sys.executable, "-m", program, *(word for word in words if word != "CONVERT")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, cwd=ROOT)
        assert done.returncode in ((1, 2) if "check" in words else (2,)), done.stderr
        assert "Traceback" not in done.stderr and "unforeseen" not in done.stderr and not (tmp_path / "new").exists()
        assert done.stderr.startswith(("error: ", "Usage: ")), done.stderr
        if program == "cerebras_jais.cli" and path.name != "pipe":
            break  # a process takes a second; what a pipe and a device are told is one function's answer


def test_a_file_that_is_too_large_is_refused(tmp_path):
    (tmp_path / "large").write_bytes(b"x" * (MIB + 1))
    with pytest.raises(UserError, match="larger than the limit of 1 MiB"):
        read_bytes(tmp_path / "large", MIB)
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    with pytest.raises(UserError, match="larger than the limit of 1 MiB"):
        read_text(tmp_path / "sparse", MIB)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": "\\ud800"}', "half of a character"),
        ('["\\udc00\\ud800"]', "half of a character"),
        ('{"\\ud83d": 1}', "half of a character"),
        ("9" * 5000, "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ('{"b": {"a": 1, "c": 2, "\\u0061": 1}}', "the key 'a' twice"),
        ("", "not valid JSON"),
        ('{"a": 1} x', "not valid JSON"),
    ],
)
def test_json_beyond_the_standard_is_refused_in_one_line(text, words):
    with pytest.raises(UserError, match=words) as caught:
        parse_json(text, "file.json")
    assert str(caught.value).startswith("file.json:") and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"file\.json:7: "):
        parse_json(text, "file.json", line=7)


def test_a_standard_input_that_is_closed_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="-: standard input is closed"), open_regular("-"):
        pass


def test_json_of_the_standard_is_read_as_the_library_reads_it():
    text = '{"a": ["\\ud83d\\ude00", "\\u0645", 1e5, -0.0, null, true], "\\\\ud800": {}}'
    assert parse_json(text, "file.json") == json.loads(text)
