"""The YAML beside a converted checkpoint trains it on.

Contract: it is YAML that says again the `model:` section; muP groups follow from mup_base_* and nothing else; the Model
Zoo validates it; a section is found in every form of trainer YAML.
"""

import sys
from unittest.mock import MagicMock

import pytest
import yaml

from cerebras_jais.errors import UserError
from checkpoint_convert.trainer_yaml import model_section_of, read_model_section, trainer_params, yaml_text
from tests.checkpoint_convert.examples import PUBLISHED, VARIANTS, jais_section


@pytest.mark.parametrize("name", [*VARIANTS, *PUBLISHED])
def test_the_text_reads_back_as_the_params(name, tmp_path):
    section = VARIANTS[name] if name in VARIANTS else PUBLISHED[name][0]
    params = trainer_params(section, "start.mdl")
    text = yaml_text(params, ["a note"])
    assert yaml.safe_load(text) == params
    assert "# Note: a note" in text
    (tmp_path / "c.yaml").write_text(text)
    assert read_model_section(tmp_path / "c.yaml") == section


def test_mup_needs_no_group_of_its_own():
    init = trainer_params(jais_section(), "start.mdl")["trainer"]["init"]
    assert "adjust_learning_rate" not in init["optimizer"]["AdamW"]
    assert init["model"]["mup_base_hidden_size"] == 16


@pytest.mark.parametrize(
    "text",
    [
        "trainer: {init: {model: {name: jais, layer_norm_epsilon: 1e-5}}}",
        "trainer: [{trainer: {init: {model: {name: llama}}}},"
        " {trainer: {init: {model: {name: jais, layer_norm_epsilon: 1e-5}}}}]",
        "model: {name: jais, layer_norm_epsilon: 1.0e-5}",
    ],
)
def test_a_section_is_found_in_every_form(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    assert read_model_section(tmp_path / "c.yaml") == {"name": "jais", "layer_norm_epsilon": 1e-5}


@pytest.mark.parametrize(
    "text", ["", "3", "trainer: {}", "trainer: []", "trainer: {init: {model: 3}}", "a: [", "x: !!python/name:os.system"]
)
def test_a_file_without_a_section_is_one_error(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml") as caught:
        read_model_section(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_error(tmp_path):
    with pytest.raises(UserError, match=r"no\.yaml"):
        read_model_section(tmp_path / "no.yaml")


def test_params_that_are_no_mapping_are_one_error():
    with pytest.raises(UserError, match="its metadata"):
        model_section_of([1, 2], "its metadata")


@pytest.mark.modelzoo
@pytest.mark.parametrize("name", ["jais-12-heads", "jais-deprecated-mup", "llama-40-heads-grouped"])
def test_the_model_zoo_validates_it(name, tmp_path, monkeypatch):
    pytest.importorskip("cerebras.modelzoo")
    for module in ("bigcode_eval", "bigcode_eval.base", "bigcode_eval.evaluator", "bigcode_eval.utils"):
        # The Model Zoo imports this package, which no registry has, for a callback that no YAML of ours uses.
        monkeypatch.setitem(
            sys.modules, module, MagicMock(Task=type("Task", (), {}), Evaluator=type("Evaluator", (), {}))
        )
    from cerebras.modelzoo.trainer.validate import validate_trainer_params

    monkeypatch.chdir(tmp_path)
    for part in ("train", "validation"):
        (tmp_path / "data" / part).mkdir(parents=True)
    assert validate_trainer_params(yaml.safe_load(yaml_text(trainer_params(VARIANTS[name], "start.mdl"), [])))
