"""The suite runs in an empty directory, so that files of a user's own runs in the clone change no result.

It leaves no folder of its own, also where a signal ends it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_working_directory_is_empty_and_none_of_ours():
    assert list(Path().iterdir()) == []
    assert not Path.cwd().is_relative_to(ROOT)


@pytest.mark.slow
def test_what_lies_where_the_suite_is_started_changes_no_result(tmp_path):
    for folder in ("train", "held_out/ar", "held_out/en"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "broken.h5").write_bytes(b"no data of this test")
    tests = ROOT / "tests" / "cerebras_jais" / "launch" / "test_checks.py"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "config_of_ours_is_good and tiny",
            tests,
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_a_suite_that_a_signal_ends_leaves_no_folder(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "test_it.py").write_text(
        "import os, signal\ndef test_it():\n    os.kill(os.getpid(), signal.SIGTERM)\n    assert False\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", tmp_path],
        env={**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 143, done.stdout
    assert "ended by SIGTERM" in done.stdout
    assert not list(scratch.glob("cerebras_jais_*"))
