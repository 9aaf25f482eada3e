"""Threads wait without a processor and are no more than the process may use, unless the user says otherwise.

Contract: set before PyTorch is loaded, said in one line, nothing of the user's replaced.
"""

import os
import subprocess
import sys

import pytest

from cerebras_jais.train import threads
from tests.cerebras_jais.train.examples import trainer_section, write_yaml


@pytest.fixture
def before_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def test_waiting_is_passive_and_said(before_torch, monkeypatch):
    monkeypatch.setattr(threads, "processors_allowed", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    environment = {}
    line = threads.settle_threads(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    assert "OMP_WAIT_POLICY=PASSIVE, OMP_NUM_THREADS=1" in line


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_set_stays(before_torch, name):
    environment = {name: "7", "OMP_NUM_THREADS": "3"}
    assert threads.settle_threads(environment) is None
    assert environment == {name: "7", "OMP_NUM_THREADS": "3"}


def test_nothing_is_set_once_pytorch_is_loaded():
    import torch  # noqa: F401

    environment = {}
    assert threads.settle_threads(environment) is None
    assert environment == {}


@pytest.mark.parametrize(
    ("files", "allowed"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu.max": "damaged"}, 8),
        ({}, 8),
    ],
)
def test_the_quota_of_a_container_counts(tmp_path, monkeypatch, files, allowed):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert threads.processors_allowed(tmp_path) == allowed


@pytest.mark.slow
def test_fit_sets_them_before_pytorch_is_loaded(tmp_path):
    """The command says the line although its data are not there: it is said before they are looked for."""
    environment = {name: value for name, value in os.environ.items() if name not in threads._WAITING}
    path = write_yaml(tmp_path / "a.yaml", trainer_section(tmp_path))
    command = [sys.executable, "-m", "cerebras_jais.cli", "fit", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    said, error = done.stderr.splitlines()
    assert said.startswith("threads: OMP_WAIT_POLICY=PASSIVE") and error.startswith("error: ")
