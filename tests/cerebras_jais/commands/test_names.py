"""`fit`, `config check` and every option that takes a trainer YAML take the names that `config show` takes.

Contract: a name is the text of its config, and messages say the name; a file of that name counts first; what is neither
is refused with the nearest name, or with where names are listed; nothing is written.
"""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.catalog.yaml_files import find_preset, preset_yaml, presets
from cerebras_jais.cli import cli
from cerebras_jais.errors import DIFFERENT, GOOD, UserError


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    result = CliRunner().invoke(cli, list(words))
    assert isinstance(result.exception, (SystemExit, UserError, type(None))), result.exception
    return result


@pytest.mark.parametrize("name", [preset.name for preset in presets() if preset.is_miniature] + ["jais-family-590m"])
def test_a_dry_run_of_a_name_is_that_of_its_file(empty, name):
    (empty / "file.yaml").write_text(preset_yaml(find_preset(name)), encoding="utf-8")
    of_file = run("fit", "file.yaml", "--dry-run")
    if name == "tiny/chat":  # it begins from a checkpoint that is not there
        assert str(run("fit", name, "--dry-run").exception) == str(of_file.exception)
        return
    assert of_file.exit_code == 0
    assert run("fit", name, "--dry-run").output == of_file.output
    assert [path.name for path in empty.iterdir()] == ["file.yaml"]


def test_messages_say_the_name(empty):
    line = str(run("fit", "jais-family-590m").exception)
    assert line.startswith("jais-family-590m: its backend is CSX")
    assert run("config", "check", "jais-family-590m").output.startswith("jais-family-590m: ok")
    assert "jais-family-590m/pretrain" in read_trainer_yaml("jais-family-590m")[0].source


def test_a_file_counts_before_a_name(empty):
    (empty / "jais-family-590m").write_text("trainer: 3")
    assert "jais-family-590m, line 1: trainer" in str(run("fit", "jais-family-590m", "--dry-run").exception)


def test_what_is_neither_is_refused_with_what_helps(empty):
    assert "did you mean 'jais-family-590m/pretrain'?" in str(run("fit", "jais-famly-590m").exception)
    assert "give one of jais-family-30b-8k/2k" in str(run("fit", "jais-family-30b-8k").exception)
    for words in (("fit", "my.yaml"), ("config", "show", "my.yaml"), ("config", "check", "my.yaml"), ("models", "xyz")):
        result = run(*words)
        line = str(result.exception) + result.output
        assert words[-1] in line
        assert "`cerebras-jais config list`" in line or "`cerebras-jais models`" in line
        assert "remove" not in line


@pytest.mark.slow
def test_a_launch_takes_a_name_too(empty):
    command = [sys.executable, "-m", "cerebras_jais.cli", "fit", "jais-family-590m", "--backend", "csx", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (GOOD, DIFFERENT), done.stderr  # DIFFERENT where there is no cluster
    assert "tokens      480,363,806,720" in done.stdout
    assert "ok    jais-family-590m/pretrain, 1 phase" in done.stdout
