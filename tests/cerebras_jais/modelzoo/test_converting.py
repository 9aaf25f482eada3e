"""`cszoo checkpoint convert` said in the words of `checkpoint-convert`.

Contract: both directions between Cerebras and Hugging Face are translated, option by option; other models are left to
the Model Zoo; other pairs of formats are refused.
"""

import subprocess

import pytest

from cerebras_jais.errors import UserError
from cerebras_jais.modelzoo import converting


@pytest.fixture
def ran(monkeypatch):
    words = []
    done = subprocess.CompletedProcess([], 3)
    monkeypatch.setattr(converting.subprocess, "run", lambda command, check: words.extend(command[1:]) or done)
    return words


def test_to_hugging_face(ran, tmp_path):
    asked = f"m/c.mdl --model jais_family --src-fmt cs-auto --tgt-fmt hf --config r.yaml --output-dir {tmp_path}/out"
    assert converting.convert([*asked.split(), "--export-safetensors", "--hf-shard-size", "5GB"]) == 3
    said = f"to-hf m/c.mdl --output {tmp_path}/out/hf --config r.yaml --max-shard-size 5GB"
    assert ran == ["-m", "checkpoint_convert.cli", *said.split()]
    assert (tmp_path / "out").is_dir()


def test_to_cerebras(ran):
    asked = "hf/model.safetensors.index.json --model llama --src-fmt hf --tgt-fmt cs-current --config hf/config.json"
    assert converting.convert(asked.split()) == 3
    assert ran[2:] == ["to-cerebras", "hf", "--output", "hf/hf.mdl"]


def test_a_model_said_with_an_equals_sign(ran):
    assert converting.convert(["hf/config.json", "--model=jais", "--src-fmt=hf", "--tgt-fmt=cs-auto"]) == 3
    assert ran[2:] == ["to-cerebras", "hf", "--output", "hf/hf.mdl"]


def test_a_config_that_is_not_the_releases_own_is_refused(ran):
    words = "hf/x.index.json --model jais --src-fmt hf --tgt-fmt cs-2.10 --config other.json"
    with pytest.raises(UserError, match=r"other\.json: .* put yours at hf"):
        converting.convert(words.split())
    assert not ran


def test_a_checkpoint_called_like_a_model_is_no_model(ran):
    assert converting.convert(["jais", "--model", "gptj", "--src-fmt", "cs-auto", "--tgt-fmt", "hf"]) is None
    assert not ran


def test_other_models_and_help_are_the_model_zoos(ran):
    assert converting.convert(["c.mdl", "--model", "gptj", "--src-fmt", "cs-auto", "--tgt-fmt", "hf"]) is None
    assert converting.convert(["--help"]) is None
    assert not ran


def test_one_cerebras_release_to_another_is_refused():
    with pytest.raises(UserError, match=r"from cs-2\.9 to cs-2\.10: .*the file needs no conversion"):
        converting.convert(["c.mdl", "--model", "jais", "--src-fmt", "cs-2.9", "--tgt-fmt", "cs-2.10"])
