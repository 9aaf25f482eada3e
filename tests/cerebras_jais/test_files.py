"""The files of a user: only regular ones are read, of bounded size, and what is written is whole or not at all.

Contract: pipes, devices, folders and sockets are refused in one line without waiting; JSON beyond the standard is
refused by its line; a write that fails or is killed leaves the old file or folder, and nothing hidden stays after the
next one; locks that a file system lacks are a note.
"""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cerebras_jais import files
from cerebras_jais.cli import cli
from cerebras_jais.errors import REFUSED, UserError
from cerebras_jais.files import MIB, locked, parse_json, read_bytes, read_text, whole_folder, write_text

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
        "score PATH --tokenizer . --text cerebras_jais/data/sample",
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
        begun = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
        assert done.returncode in ((1, 2) if "check" in words else (2,)), done.stderr
        assert "Traceback" not in done.stderr and "unforeseen" not in done.stderr and not (tmp_path / "new").exists()
        assert done.stderr.startswith(("error: ", "Usage: ")), done.stderr
        assert time.monotonic() - begun < 30
        if program == "cerebras_jais.cli" and path.name != "pipe":
            break  # a process takes a second; what a pipe and a device are told is one function's answer


def test_a_file_that_is_too_large_is_refused(tmp_path):
    (tmp_path / "large").write_bytes(b"x" * (MIB + 1))
    with pytest.raises(UserError, match="larger than 1 MiB"):
        read_bytes(tmp_path / "large", MIB)
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    with pytest.raises(UserError, match="larger than 1 MiB"):
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


def test_json_of_the_standard_is_read_as_the_library_reads_it():
    text = '{"a": ["\\ud83d\\ude00", "\\u0645", 1e5, -0.0, null, true], "\\\\ud800": {}}'
    assert parse_json(text, "file.json") == json.loads(text)


# ---- writing --------------------------------------------------------------------------------------------------------


def test_a_text_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("old")
    code = f"""
import resource
from cerebras_jais.files import write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
write_text({str(path)!r}, "x" * 1000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "File too large" in done.stderr and str(path) in done.stderr.splitlines()[-1]
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_a_text_keeps_its_link_and_replaces_no_device(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        write_text(tmp_path / "pipe", "new")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.slow
@pytest.mark.parametrize("output", ["/proc/x", "/proc/x/y.yaml", "FILE/y.yaml", "LONG", "READONLY/y.yaml"])
@pytest.mark.parametrize("verb", ["config", "tokenizer", "pack"])
def test_an_impossible_place_is_refused_in_one_line_with_the_remedy(verb, output, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "readonly").mkdir(mode=0o500)
    if "READONLY" in output and os.access(tmp_path / "readonly", os.W_OK):
        pytest.skip("this user may write everywhere")
    output = output.replace("FILE", str(tmp_path / "file")).replace("READONLY", str(tmp_path / "readonly"))
    output = output.replace("LONG", str(tmp_path / ("n" * 300)))
    words = {
        "config": ["config", "write", "tiny/jais"],
        "tokenizer": ["data", "tokenizer", "--vocab-size", "300"],
        "pack": ["data", "pack", "--tokenizer", str(tokenizer_in(tmp_path)), "--max-sequence-length", "64"],
    }[verb]
    before = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "-m", "cerebras_jais.cli", *words, "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == REFUSED and done.stderr.count("\n") == 1, done.stderr
    assert output in done.stderr.replace("…", "") or len(output) > 250
    assert ";" in done.stderr and sorted(tmp_path.rglob("*")) == before


def tokenizer_in(folder):
    path = folder / "tokenizer"
    cli.main(["data", "tokenizer", "--vocab-size", "300", "--output", str(path)], standalone_mode=False)
    return path


@pytest.mark.parametrize("room", [100, 5000, 60_000])
def test_a_full_disk_leaves_no_packed_data(room, tmp_path):
    tokenizer = tokenizer_in(tmp_path)
    words = ["data", "pack", "--tokenizer", str(tokenizer), "--max-sequence-length", "64"]
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room})); "
    code = f"import sys; {limit}sys.argv[1:] = {[*words, '--output', str(tmp_path / 'data')]}; "
    code += "from cerebras_jais.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == REFUSED and done.stderr.count("\n") == 1, done.stderr
    assert f"{tmp_path / 'data'}: file too large; " in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer"]


# ---- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new"
    with pytest.raises(FileNotFoundError), whole_folder(target) as hidden:
        (hidden / "no folder" / "a").write_text("1")
    assert not list(tmp_path.iterdir())
    with whole_folder(target) as hidden:
        (hidden / "a").write_text("1")
        assert not target.exists()
        with pytest.raises(UserError, match="another process is making it"), whole_folder(target):
            pass
    assert (target / "a").read_text() == "1"
    with pytest.raises(UserError, match="is there already"), whole_folder(target):
        pass
    with whole_folder(target, replaces=True) as hidden:
        (hidden / "b").write_text("2")
    assert [p.name for p in target.iterdir()] == ["b"] and [p.name for p in tmp_path.iterdir()] == ["new"]


KILLED = """
import os, signal, sys
from pathlib import Path
from cerebras_jais import files
from cerebras_jais.data.tokenizer import save_tokenizer
from tokenizers import Tokenizer, models
moment, seen = int(sys.argv[2]), 0

def killing(real):
    def call(*args, **options):
        global seen
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    return call

for name in ("rename", "write_text", "mkdir"):
    setattr(Path, name, killing(getattr(Path, name)))
files.shutil.rmtree = killing(files.shutil.rmtree)
tokenizer = Tokenizer(models.WordLevel({"<|endoftext|>": 0, sys.argv[3]: 1}, unk_token="<|endoftext|>"))
save_tokenizer(tokenizer, sys.argv[1], 128, overwrite=True)
"""


@pytest.mark.slow
def test_a_tokenizer_killed_at_any_moment_is_whole_or_not_there_and_nothing_hidden_stays(tmp_path):
    def save(moment, word):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "t"), str(moment), word]
        return subprocess.run(command, capture_output=True, check=False, cwd=ROOT).returncode

    def whole():
        names = sorted(p.name for p in (tmp_path / "t").iterdir())
        assert names == ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
        return next(word for word in json.loads((tmp_path / "t" / "tokenizer.json").read_text())["model"]["vocab"])

    killed = 0
    for moment in range(1, 100):
        if (tmp_path / "t").exists():
            assert save(0, "old") == 0
        if (status := save(moment, "new")) == 0:
            break
        assert status == -signal.SIGKILL
        killed += 1
        if (tmp_path / "t").exists():
            whole()
        assert save(0, "old") == 0
        whole()
        assert [p.name for p in tmp_path.iterdir()] == ["t"]
    assert killed >= 7


def test_a_file_system_without_locks_is_a_note_and_the_work_goes_on(tmp_path, monkeypatch, capsys):
    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path, "busy"):
        pass
    with whole_folder(tmp_path / "new") as hidden:
        (hidden / "a").touch()
    assert (tmp_path / "new" / "a").exists()
    said = capsys.readouterr().err
    assert said.count("this file system has no locks") == 2 and said.startswith("note: ")


def test_other_refusals_of_a_lock_are_errors(tmp_path, monkeypatch):
    def refused(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.fcntl, "flock", refused)
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path, "busy"):
        pass
