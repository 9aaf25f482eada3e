"""The border of both programs: whatever goes wrong is one line on standard error and a status of one table.

Contract: the statuses are those of README and of both helps; errors of the system, of memory, of a missing package and
of depth say what to do and are status 2; anything else is one line, status 3 and a file with the traceback; SIGINT,
SIGTERM and SIGHUP unwind the work and are 130, 143 and 129.
"""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cerebras_jais.commandline import status_of
from cerebras_jais.errors import (
    DIFFERENT,
    GOOD,
    HUNG_UP,
    INTERRUPTED,
    REFUSED,
    STATUSES,
    TERMINATED,
    UNFORESEEN,
    UserError,
)
from cerebras_jais.modelzoo.connection import NoConnection
from tests.process import PATIENCE

ROOT = Path(__file__).parents[2]
PROGRAMS = ("cerebras_jais.cli", "checkpoint_convert.cli")
SIGNALS = [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED), (signal.SIGHUP, HUNG_UP)]
WAITING = """
import sys, time, click
from cerebras_jais.commandline import run
@click.command()
def wait():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("unwound", flush=True)
run(wait, "waiter")
"""
REPLACED = WAITING.replace(
    "    finally:", "    except BaseException:\n        raise ValueError('replaced') from None\n    finally:"
)


def run(*arguments, **options):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, cwd=ROOT, **options)


def raising(error):
    def work():
        raise error

    return work


def test_the_statuses_are_one_table_in_readme_and_in_both_helps():
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert {int(status): meaning for status, meaning in rows.items()} == STATUSES
    assert set(STATUSES) == {0, 1, 2, 3, 129, 130, 143}
    for program in PROGRAMS:
        said = " ".join(run("-m", program, "--help").stdout.split())
        assert all(f"{status} {meaning}" in said for status, meaning in STATUSES.items()), said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("cerebras_jais.cli", "config", "list"), GOOD),
        (("cerebras_jais.cli", "config", "diff", "tiny/jais", "tiny/jais"), GOOD),
        (("cerebras_jais.cli", "config", "diff", "tiny/jais", "tiny/adapted"), DIFFERENT),
        (("cerebras_jais.cli", "config", "check", "LICENSE"), DIFFERENT),
        (("cerebras_jais.cli", "config", "show", "no-such-config"), REFUSED),
        (("cerebras_jais.cli", "config", "show"), REFUSED),
        (("cerebras_jais.cli", "no-such-verb"), REFUSED),
        (("checkpoint_convert.cli", "inspect", "LICENSE"), REFUSED),
        (("checkpoint_convert.cli", "inspect", "no-such-file"), REFUSED),
        (("checkpoint_convert.cli", "completion", "bash"), GOOD),
    ],
)
def test_each_outcome_has_its_status(arguments, status):
    done = run("-m", *arguments)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("program", [WAITING, REPLACED], ids=["whole", "replaced by a library"])
@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_unwinds_the_work_and_is_said(number, status, program):
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == status and out == "unwound\n"
    assert err.split("\n") in ([STATUSES[status], ""], ["", STATUSES[status], ""]), "click ends the line of ^C"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(errno.ENOENT, "x", "data/a.txt"), "data/a.txt: no such file or directory; check the name"),
        (PermissionError(errno.EACCES, "x", "closed/a"), "closed/a: permission denied; allow it"),
        (OSError(errno.EROFS, "x", "/proc/a"), "/proc/a: read-only file system; choose another place"),
        (OSError(errno.ENOSPC, "x"), "no space left on device; make room"),
        (OSError(errno.ENAMETOOLONG, "x", "n" * 5000), "file name too long; choose a shorter name"),
        (OSError("damaged\nheader"), "OSError: damaged"),
        (IsADirectoryError(errno.EISDIR, "x", "two\nlines"), r"'two\nlines': is a directory; give the name of a file"),
        (MemoryError(), "not enough memory; "),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            "not enough memory",
        ),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (ModuleNotFoundError("x", name="tokenizers"), "install it with: pip install 'cerebras_jais[data]'"),
        (ModuleNotFoundError("x", name="transformers.models"), "pip install 'cerebras_jais[eval]'"),
        (ModuleNotFoundError("x", name="lz4.block"), "pip install 'lz4'"),
        (UserError("run.yaml: wrong\nand more"), "run.yaml: wrong and more"),
    ],
)
def test_what_a_user_can_mend_is_one_line_with_the_remedy(error, words, capsys):
    assert status_of("program", raising(error)) == REFUSED
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: ") and words in said and len(said) < 500


class PanicException(BaseException):
    """As pyo3's, which is no Exception."""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("odd\nvalue"),
        PanicException("index out of bounds"),
        ModuleNotFoundError("x", name="cerebras_jais.no"),
    ],
)
def test_an_unforeseen_error_is_one_line_and_a_file_with_its_traceback(error, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert status_of("program", raising(error)) == UNFORESEEN
    said = capsys.readouterr().err
    (kept,) = tmp_path.iterdir()
    assert said.count("\n") == 1 and said.rstrip().endswith(str(kept)) and type(error).__name__ in said
    assert "in work" in kept.read_text() and type(error).__name__ in kept.read_text()


def test_without_room_for_the_file_the_traceback_is_printed(capsys, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    assert status_of("program", raising(ValueError("odd"))) == UNFORESEEN
    assert "Traceback" in capsys.readouterr().err


def test_an_error_may_carry_its_own_status(capsys):
    assert status_of("program", raising(NoConnection("no connection to the cluster"))) == DIFFERENT
    stopped = UserError("stopped at step 7")
    stopped.status = TERMINATED
    assert status_of("program", raising(stopped)) == TERMINATED


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_verb_that_misses_a_package_says_which_to_install(program, tmp_path):
    verb = {
        "cerebras_jais.cli": ["data", "tokenizer", "--vocab-size", "300", "--output", str(tmp_path / "new")],
        "checkpoint_convert.cli": ["inspect", "LICENSE"],
    }[program]
    missing = {"cerebras_jais.cli": "tokenizers", "checkpoint_convert.cli": "h5py"}[program]
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv[1:] = {verb}; import {program} as c; c.main()"
    done = run("-c", code)
    if program == "cerebras_jais.cli":
        assert done.returncode == REFUSED and done.stderr.count("\n") == 1, done.stderr
        assert "cerebras_jais[data]" in done.stderr and not (tmp_path / "new").exists()
    else:
        assert done.returncode == REFUSED and "Traceback" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_an_output_that_cannot_be_written_is_said_once():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "cerebras_jais.cli", "config", "list"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    assert done.returncode == REFUSED and done.stderr.count("\n") == 1 and "no space left on device" in done.stderr


def test_a_name_that_is_not_utf8_can_be_said():
    done = subprocess.run(
        [sys.executable, "-m", "cerebras_jais.cli", "config", "show", b"no-such-\xff.yaml"],
        capture_output=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == REFUSED and done.stderr.count(b"\n") == 1, done.stderr
