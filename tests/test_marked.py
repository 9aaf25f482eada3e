"""The program that runs marked tests and records the run.

Contract: a test of the mark that skips or fails, or a mark without tests, is exit status 1; a run without skips becomes
the mark's one row of the table, and no other row changes; a run with skips leaves the table as it is.
"""

import subprocess
from pathlib import Path

import pytest

from tests import marked

TESTS = """
import os, pytest

@pytest.mark.complete
@pytest.mark.parametrize("n", range(3))
def test_good(n): pass

@pytest.mark.partial
def test_ran(): pass

@pytest.mark.partial
@pytest.mark.skipif(True, reason="not installed")
def test_skipped(): pass

@pytest.mark.broken
def test_failed(): assert False

@pytest.mark.broken
def test_without_its_fixture(absent): pass

@pytest.mark.split
def test_here(): os.environ["OF_ANOTHER_FILE"] = "set"
"""
ALONE = """
import os, pytest

@pytest.mark.split
def test_there(): assert "OF_ANOTHER_FILE" not in os.environ
"""
INI = """
[pytest]
python_files = test_*.py z_*.py
markers =
    complete
    partial
    broken
    split
"""
TEXT = "# A page\n\nSome text.\n\n"
OTHER = "| zzz | 2026-01-01 | abc | 1 | 0 | 0.1 | Python 3 |\n"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with tests of its own, one of whose files wants a process of its own."""
    for name, text in {
        "tests/test_here.py": TESTS,
        "tests/z_test_there.py": ALONE,
        "pytest.ini": INI,
        ".gitignore": "__pycache__\n.pytest_cache\n",
        "docs/marked-tests.md": TEXT + marked.HEADER + OTHER,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take longer to load than these tests to run
    return tmp_path


def table(root):
    return (root / marked.RECORD).read_text().removeprefix(TEXT + marked.HEADER).splitlines()


def test_a_whole_run_is_recorded_once_and_the_next_takes_its_place(root):
    assert marked.main(["complete"], root) == 0
    (row, other) = table(root)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert (cells[0], cells[3], cells[4]) == ("complete", "3", "0")
    assert "Python 3." in cells[6]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout
    assert head.startswith(cells[2])  # the record itself is no change
    assert f"{other}\n" == OTHER
    (root / "pytest.ini").write_text((root / "pytest.ini").read_text() + "\n")
    assert marked.main(["complete"], root) == 0
    assert [line.split("|")[1].strip() for line in table(root)] == ["complete", "zzz"]
    assert "with changes" in table(root)[0]


def test_a_skip_fails_and_is_not_recorded(root, capsys):
    assert marked.main(["partial"], root) == 1
    assert table(root) == [OTHER.strip()]
    assert "partial: 1 passed, 0 failed, 1 skipped; not recorded" in capsys.readouterr().out


@pytest.mark.slow
def test_a_failure_fails_and_is_recorded_as_one(root):
    assert marked.main(["broken"], root) == 1
    assert table(root)[0].split("|")[4:6] == [" 0 ", " 2 "]


@pytest.mark.slow
def test_a_mark_without_tests_fails(root):
    assert marked.main(["complet"], root) == 1
    assert table(root) == [OTHER.strip()]


@pytest.mark.slow
def test_a_file_that_wants_a_process_of_its_own_has_one(root, monkeypatch):
    assert marked.main(["split"], root) == 1
    monkeypatch.setattr(marked, "IN_A_PROCESS_OF_THEIR_OWN", (Path("tests", "z_test_there.py"),))
    assert marked.main(["split"], root) == 0
    assert table(root)[0].split("|")[4] == " 2 "


def test_the_files_that_want_a_process_of_their_own_are_there():
    assert all((marked.ROOT / path).exists() for path in marked.IN_A_PROCESS_OF_THEIR_OWN)
