"""Processes that carry out tasks.

Contract: every task is done once; what a user can mend comes out as it was raised, anything else with its traceback; a
worker that is killed is one line; after the context none of them is left.
"""

import os
import signal
import sys
import time

import pytest

from cerebras_jais.data.recipe.workers import WorkerError, Workers, _import
from cerebras_jais.errors import UserError
from tests.process import PATIENCE, has_ended, wait_until


class Task:
    """Writes a file named by the task and its process; fails in the way that it is told."""

    def __init__(self, folder, failure=""):
        self.folder, self.failure = folder, failure

    def __call__(self, number):
        (self.folder / f"{number}-{os.getpid()}").touch()
        if number == 2 and self.failure == "user":
            raise UserError("mend it")
        if number == 2 and self.failure == "unforeseen":
            raise KeyError("x")
        if number == 2 and self.failure == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 2 and self.failure == "all killed":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(PATIENCE)


def check_gone(folder):
    """No process that carried a task out is left, but this one."""
    for pid in {int(path.name.partition("-")[2]) for path in folder.iterdir()} - {os.getpid()}:
        wait_until(lambda: has_ended(pid), f"the end of process {pid}")  # noqa: B023


@pytest.mark.parametrize("number", [1, 3])
def test_every_task_is_done_once(tmp_path, number):
    with Workers() as workers:
        assert sorted(workers.map(Task(tmp_path), range(7), number)) == list(range(7))
        assert sorted(workers.map(Task(tmp_path), [7], number)) == [7]
    assert sorted(int(path.name.partition("-")[0]) for path in tmp_path.iterdir()) == list(range(8))
    check_gone(tmp_path)


@pytest.mark.parametrize(
    ("failure", "error", "said"),
    [
        ("user", UserError, "mend it"),
        ("unforeseen", RuntimeError, "KeyError: 'x'"),
        ("killed", WorkerError, "a worker was ended from outside"),
        ("all killed", WorkerError, "a worker was ended from outside"),
    ],
)
def test_a_failure_comes_out_and_ends_all_workers(tmp_path, failure, error, said):
    with Workers() as workers, pytest.raises(error, match=said):
        list(workers.map(Task(tmp_path, failure), range(5), 2))
    check_gone(tmp_path)


def test_a_package_that_is_missing_or_broken_does_not_end_the_process_that_workers_are_forked_from(
    tmp_path, monkeypatch
):
    (tmp_path / "broken_package.py").write_text("raise ValueError('numpy.dtype size changed')")
    (tmp_path / "whole_package.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    _import(["missing_package", "broken_package", "whole_package"])
    assert "whole_package" in sys.modules and "broken_package" not in sys.modules
