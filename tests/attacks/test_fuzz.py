"""The fuzz programs, in short: no damaged file crashes a reader, holds it up, or is read as something that it is not.

Contract: a hundred damaged files of each kind, and five hundred changes to trainer YAML, of which none is refused by
`fit` after `config check` called it good; five hundred command lines with hostile values, texts, tokenizers and YAML
files; long runs are started by hand (README.md).
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.marks import slow_except

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize(
    "program", slow_except(["safetensors"], ["bin", "safetensors", "mdl", "gguf_files", "data_files", "conversion"])
)
def test_damaged_files_are_refused_or_read_as_libraries_read_them(program):
    command = [sys.executable, str(HERE / f"{program}.py"), "--count", "100", "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = {verdict: int(count) for verdict, count in re.findall(r"(\w+) (\d+)", done.stdout)}
    assert sum(verdicts.values()) == 100 and verdicts["refused"] > 50, done.stdout


@pytest.mark.slow
def test_what_config_check_calls_good_trains():
    command = [sys.executable, str(HERE / "config.py"), "--count", "500", "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = {verdict: int(count) for verdict, count in re.findall(r"(\w+) (\d+)", done.stdout)}
    assert sum(verdicts.values()) == 500 and verdicts["refused"] > 300 and verdicts["trained"] > 20, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "count", "refused"),
    [("command_lines", 150, 75), ("text_files", 100, 30), ("tokenizer_folders", 100, 30), ("yaml_files", 150, 50)],
)
def test_whatever_a_user_gives_is_taken_or_refused_in_one_line_soon_and_in_little_memory(program, count, refused):
    command = [sys.executable, str(HERE / f"{program}.py"), "--count", str(count), "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = {verdict: int(count) for verdict, count in re.findall(r"(\w+) (\d+)", done.stdout)}
    assert sum(verdicts.values()) == count and verdicts["refused"] > refused and verdicts["good"] > 5, done.stdout


@pytest.mark.slow
def test_random_kills_are_gone_on_from():
    command = [sys.executable, str(HERE / "kills.py"), "--count", "6", "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("count", slow_except([600], [600, 10_000]))
def test_the_server_answers_rightly_whatever_is_sent_and_keeps_nothing(count):
    command = [sys.executable, str(HERE / "server_requests.py"), "--count", str(count), "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = {verdict: int(count.replace(",", "")) for verdict, count in re.findall(r"(\w+) ([\d,]*\d)", done.stdout)}
    assert sum(verdicts.values()) == count and verdicts["right"] > count / 2, done.stdout
    assert verdicts["refused"] > count / 5 and verdicts["left"] > count / 50, done.stdout
