"""The program that stops `fit` at random moments, in short; a long run is started by hand (README.md)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_training_stopped_at_random_moments_is_gone_on_from(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("fit_kills.py")), "--seed", "3"]
    command += ["--state", str(tmp_path / "state.jsonl"), "--count"]
    done = subprocess.run([*command, "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run([*command, "4"], capture_output=True, text=True, check=False)  # goes on after the third
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "state.jsonl").open()]
    assert [line["number"] for line in lines] == [0, 1, 2, 3]
