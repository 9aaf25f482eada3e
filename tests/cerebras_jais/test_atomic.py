"""Files and folders appear whole or not at all, and never replace others unless asked to.

Contract: a write that fails or is killed leaves the old file or folder, and nothing hidden stays after the next one;
locks that a file system lacks are a note.
"""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cerebras_jais import atomic
from cerebras_jais.atomic import abandoned, locked, replacing, whole_folder, write_text
from cerebras_jais.cli import cli
from cerebras_jais.errors import REFUSED, UserError

ROOT = Path(__file__).parents[2]


def _write(
    target: Path,
    *,
    overwrite: bool = False,
    fail_with: BaseException | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    with replacing(target, overwrite=overwrite) as temporary:
        temporary.write_bytes(b"new")
        meanwhile()
        if fail_with is not None:
            raise fail_with


def test_the_file_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "x.mdl"
    with replacing(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
        assert temporary.parent == tmp_path and temporary.name.startswith(".")
        assert abandoned(tmp_path, r"x\.mdl") == [temporary]
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_and_the_error_is_unchanged(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        _write(tmp_path / "x.mdl", fail_with=error())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_refused_before_the_block(tmp_path: Path) -> None:
    target = tmp_path / "x.mdl"
    target.write_bytes(b"old")
    with pytest.raises(UserError, match="already exists"), replacing(target):
        pytest.fail("the block must not run")
    with replacing(target, overwrite=True) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"


def test_a_failed_overwrite_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x.mdl"
    target.write_bytes(b"old")
    with pytest.raises(ValueError, match="no"):
        _write(target, overwrite=True, fail_with=ValueError("no"))
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "x.mdl"
    with pytest.raises(UserError, match="already exists"):
        _write(target, meanwhile=lambda: target.write_bytes(b"other"))
    assert target.read_bytes() == b"other"
    assert list(tmp_path.iterdir()) == [target]


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    target = tmp_path / "x.mdl"
    target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="already exists"), replacing(target):
        pytest.fail("the block must not run")


def test_a_missing_directory_a_directory_and_a_full_disk_are_named(tmp_path: Path) -> None:
    for path, size, message in [
        (tmp_path / "no" / "x.mdl", 0, "does not exist"),
        (tmp_path, 0, "is a directory"),
        (tmp_path / "x.mdl", 1 << 60, "GiB free"),
    ]:
        with pytest.raises(UserError, match=message), replacing(path, size=size):
            pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("old")
    code = f"""
import resource
from cerebras_jais.atomic import write_text
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


@pytest.mark.slow
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
    with pytest.raises(UserError, match="already exists"), whole_folder(target):
        pass
    with whole_folder(target, replaces=True) as hidden:
        (hidden / "b").write_text("2")
    assert [p.name for p in target.iterdir()] == ["b"] and [p.name for p in tmp_path.iterdir()] == ["new"]


def test_the_folders_above_a_folder_stay_where_it_was_made_or_another_one_is_there(tmp_path):
    target = tmp_path / "a" / "b" / "new"

    def fail(meanwhile=lambda: None):
        with whole_folder(target):
            meanwhile()
            raise UserError("stop")

    with pytest.raises(UserError, match="stop"):
        fail()
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="stop"):
        fail((tmp_path / "a" / "other").mkdir)
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "other"]
    with whole_folder(target):
        pass
    assert target.is_dir()


KILLED = """
import os, signal, sys
from pathlib import Path
from cerebras_jais import atomic
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
atomic.shutil.rmtree = killing(atomic.shutil.rmtree)
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


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EBADF], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_a_note_and_the_work_goes_on(number, tmp_path, monkeypatch, capsys):
    def none(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path, UserError("busy")):
        pass
    with whole_folder(tmp_path / "new") as hidden:
        (hidden / "a").touch()
    assert (tmp_path / "new" / "a").exists()
    said = capsys.readouterr().err
    assert said.count("this file system locks no folders") == 2 and said.startswith("note: ")


def test_other_refusals_of_a_lock_are_errors(tmp_path, monkeypatch):
    def refused(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(atomic.fcntl, "flock", refused)
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path, UserError("busy")):
        pass
