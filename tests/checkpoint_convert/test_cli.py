"""The command line: four verbs, help that teaches, one-line errors.

Contract: each verb does what the function of its name does and says what it did; an error is one line on standard error
with exit status 1; help imports nothing heavy.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from checkpoint_convert.cli import Size, cli
from checkpoint_convert.convert import convert_to_hf
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.verify import compare
from checkpoint_convert.verify.logits import compare_logits
from tests import tolerances
from tests.checkpoint_convert.examples import jais_section, random_model, state_of, write_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    section = jais_section()
    return write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section)))


def program(*words):
    command = [sys.executable, "-m", "checkpoint_convert.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_release_is_made_taken_back_and_compared(checkpoint, tmp_path):
    made = program("to-hf", checkpoint, "--output", tmp_path / "release", "--max-shard-size", "30kB")
    assert (made.returncode, made.stderr) == (0, "")
    assert "JAISLMHeadModel, 61,436 parameters in float32, 40 tensors under 33 names" in made.stdout
    assert "left out: optimizer, global_step" in made.stdout
    back = program("to-cerebras", tmp_path / "release", "--output", tmp_path / "back.mdl")
    assert (back.returncode, back.stderr) == (0, "")
    assert "back.yaml" in back.stdout
    compared = program("diff", checkpoint, tmp_path / "back.mdl")
    assert compared.returncode == 0
    assert compared.stdout.startswith("40 of 40 tensors identical\n")
    assert "back.manifest.json: 40 digests match" in compared.stdout
    as_json = program("verify", checkpoint, tmp_path / "back.mdl", "--json")
    found = json.loads(as_json.stdout)
    assert (found["same"], found["identical"], found["tensors"], found["differences"]) == (True, 40, 40, {})


@pytest.mark.slow
def test_verify_compares_logits_and_fails_on_other_weights(checkpoint, tmp_path):
    section = jais_section()
    other = write_checkpoint(tmp_path / "other.mdl", section, state_of(random_model(section, seed=1)))
    program("to-hf", checkpoint, "--output", tmp_path / "release")
    same = program("verify", checkpoint, tmp_path / "release", "--logits", "--json")
    assert same.returncode == 0, same.stderr
    report = json.loads(same.stdout)["logits"]
    assert report["layers"][-1]["largest_difference"] < tolerances.RELEASE_LOGITS
    assert report["first_departure"] is None
    assert report["same_choice"] == report["positions"] > 100
    different = program("verify", other, tmp_path / "release", "--logits")
    assert different.returncode == 1
    assert "largest difference" in different.stdout
    assert "first layer that differs: embedding" in different.stdout


def test_verify_wants_a_pair_for_logits_before_it_reads(checkpoint, monkeypatch):
    monkeypatch.setattr(compare, "check_manifest", lambda *_, **__: pytest.fail("the model was read"))
    result = CliRunner().invoke(cli, ["verify", str(checkpoint), "--logits"])
    assert result.exit_code == 2
    assert "--logits compares a .mdl file with a release directory" in result.output


@pytest.mark.parametrize("damaged", ["checkpoint", "release"])
def test_verify_refuses_logits_that_are_not_numbers(checkpoint, tmp_path, damaged):
    section = jais_section()
    state = state_of(random_model(section))
    state["model.transformer_decoder.layers.0.norm1.bias"][3] = np.nan
    other = write_checkpoint(tmp_path / "nan.mdl", section, state)
    convert_to_hf(other if damaged == "release" else checkpoint, tmp_path / "release")
    at_fault = tmp_path / ("release" if damaged == "release" else "nan.mdl")
    with pytest.raises(ConversionError, match=f"{at_fault}: layer 0: its values are not all finite"):
        compare_logits(checkpoint if damaged == "release" else other, tmp_path / "release")


@pytest.mark.slow
def test_compare_names_what_differs_by_pattern(checkpoint, tmp_path):
    section = jais_section()
    state = state_of(random_model(section))
    for layer in (0, 1):
        state[f"model.transformer_decoder.layers.{layer}.norm1.bias"] += 1
    other = write_checkpoint(tmp_path / "other.mdl", section, state)
    compared = program("verify", checkpoint, other)
    assert compared.returncode == 1
    assert compared.stdout == "38 of 40 tensors identical\n  layers 0-1: norm1.bias: other values\n"


def test_an_error_is_one_line_and_exit_status_2(checkpoint, tmp_path):
    (tmp_path / "wrong.yaml").write_text("trainer: {init: {model: {hidden_sise: 3}}}")
    failed = program("to-hf", checkpoint, "--config", tmp_path / "wrong.yaml", "--output", tmp_path / "release")
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1
    assert not (tmp_path / "release").exists()


def test_help_teaches_and_imports_nothing_heavy():
    script = (
        "import sys\nfrom checkpoint_convert.cli import cli\n"
        "cli(['--help'], standalone_mode=False)\ncli(['to-hf', '--help'], standalone_mode=False)\n"
        "heavy = {'numpy', 'h5py', 'torch', 'transformers', 'yaml', 'tqdm'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for word in ("to-hf", "to-cerebras", "diff", "inspect", "verify", "completion", "--tokenizer", "--max-shard-size"):
        assert word in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell):
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0
    assert "_CHECKPOINT_CONVERT_COMPLETE" in done.output


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("2GiB", 2**31), ("7", 7)])
def test_sizes(text, size):
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "GB", "5XB", "-1", "0", "0.5", "9" * 400, "9999999999999GiB", "1e5GB"])
def test_a_size_that_is_none_is_a_usage_error(text, checkpoint, tmp_path):
    words = ["to-hf", str(checkpoint), "--output", str(tmp_path / "r"), f"--max-shard-size={text}"]
    assert CliRunner().invoke(cli, words).exit_code == 2
