"""`cerebras-jais zoo` on the real Model Zoo.

Contract: its verbs know the plugin's models: info, config validate, fit, validate, and checkpoint convert of what fit
wrote; a config that would break the family is refused by key; without the Model Zoo it is one line.
"""

import importlib.util
import json

import pytest
import yaml
from click.testing import CliRunner

from cerebras_jais.commands.zoo import zoo as zoo_command
from cerebras_jais.errors import UserError
from cerebras_jais.modelzoo import installed
from tests.cerebras_jais.modelzoo.runs import last_checkpoint, prepare, require_modelzoo, zoo


def test_without_the_model_zoo_it_is_one_line():
    if importlib.util.find_spec("cerebras") is not None:
        pytest.skip("Cerebras packages are here")
    result = CliRunner().invoke(zoo_command, ["model", "list"])
    assert isinstance(result.exception, UserError)
    assert "cerebras.pytorch is not installed" in str(result.exception)


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_without_the_model_zoo_its_help_says_what_it_is(arguments, monkeypatch):
    monkeypatch.setattr(installed, "modelzoo_is_installed", lambda: False)
    result = CliRunner().invoke(zoo_command, arguments)
    assert result.exit_code == 0
    assert "Run cszoo, the command line of the Model Zoo" in result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder where `zoo fit` has trained the tiny adapted model for two steps."""
    require_modelzoo()
    folder = tmp_path_factory.mktemp("trained")
    path = prepare(folder, "adapted.yaml", steps=2, batch_size=4)
    document = yaml.safe_load(path.read_text())
    loader = dict(document["trainer"]["fit"]["train_dataloader"], shuffle=False)
    document["trainer"]["validate"] = {"val_dataloader": loader}
    document["trainer"]["init"]["loop"]["eval_steps"] = 2
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    zoo(folder, "fit", path.name)
    return path


@pytest.mark.modelzoo
@pytest.mark.slow
def test_model_info_and_config_validate_know_the_models(trained):
    assert "GptHDF5MapDataProcessor" in zoo(trained.parent, "model", "info", "jais_adapted")
    zoo(trained.parent, "config", "validate", trained.name)
    document = yaml.safe_load(trained.read_text())
    document["trainer"]["init"]["model"]["rotary_dim"] = 4
    broken = trained.with_name("broken.yaml")
    broken.write_text(yaml.safe_dump(document))
    output = zoo(trained.parent, "config", "validate", broken.name, status=2)
    assert "model.rotary_dim: Llama rotates whole heads; set it to 16" in output
    output = zoo(trained.parent, "fit", broken.name, status=2)
    assert output.strip().splitlines()[-1].startswith(f"error: {broken.name}, line ")


@pytest.mark.modelzoo
@pytest.mark.slow
def test_validate_evaluates_what_fit_wrote(trained):
    checkpoint = last_checkpoint(trained.parent / "adapted")
    output = zoo(trained.parent, "validate", trained.name, "--checkpoint_path", checkpoint)
    assert "Avg Eval Loss" in output


@pytest.mark.modelzoo
@pytest.mark.slow
def test_checkpoint_convert_makes_a_release_of_what_fit_wrote(trained):
    checkpoint = last_checkpoint(trained.parent / "adapted")
    asked = f"--model jais_adapted --src-fmt cs-auto --tgt-fmt hf --config {trained.name} --output-dir released"
    zoo(trained.parent, "checkpoint", "convert", checkpoint, *asked.split())
    config = json.loads((trained.parent / "released" / "hf" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
