"""The YAML beside a converted checkpoint trains it on.

Contract: it is YAML that says again the `model:` section; muP groups follow from mup_base_* and nothing else; the Model
Zoo validates it; a section is found in every form of trainer YAML.
"""

import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import yaml

from cerebras_jais.errors import UserError
from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.configs.convert import SpecialTokens, to_config_json, to_model_section
from checkpoint_convert.configs.trainer_yaml import (
    adjustments_left_out,
    model_section_of,
    read_model_section,
    trainer_params,
    yaml_text,
)
from tests.checkpoint_convert.examples import PUBLISHED, VARIANTS, jais_section, llama_section
from tests.checkpoint_convert.old_runs import DEPRECATED, in_first_form, in_trainer_form


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
        "{model: {model_name: jais, layer_norm_epsilon: 1e-5, mixed_precision: true, fp16_type: cbfloat16},"
        " optimizer: {optimizer_type: AdamW}, train_input: {}, runconfig: {}}",
        "trainer: {init: {model: {name: jais, layer_norm_epsilon: 1e-5}, optimizer: {AdamW: {}}}, fit: null}",
        "trainer: {init: {model: {name: jais, layer_norm_epsilon: 1e-5}, optimizer: null}}",
    ],
)
def test_a_section_is_found_in_every_form(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    assert read_model_section(tmp_path / "c.yaml") == {"name": "jais", "layer_norm_epsilon": 1e-5}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "trainer: {}",
        "trainer: []",
        "trainer: [3]",
        "trainer: {init: {model: 3}}",
        "a: [",
        "x: !!python/name:os.system",
        "x: 2026-13-45",
        "model: &all {name: jais, model: *all}",
        "[" * 2000,
        "model: {name: jais, use_position_embedding: false}",
    ],
)
def test_a_file_without_a_section_is_one_error(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml") as caught:
        read_model_section(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)


def test_a_key_given_twice_is_refused_with_its_line(tmp_path):
    (tmp_path / "c.yaml").write_text("trainer:\n  init:\n    model:\n      name: jais\n      name: llama\n")
    with pytest.raises(UserError, match=r"c\.yaml, line 5: trainer\.init\.model\.name is given twice, on line 4 too"):
        read_model_section(tmp_path / "c.yaml")


def test_a_missing_file_is_one_error(tmp_path):
    with pytest.raises(UserError, match=r"no\.yaml"):
        read_model_section(tmp_path / "no.yaml")


def test_params_that_are_no_mapping_are_one_error():
    with pytest.raises(UserError, match="its metadata"):
        model_section_of([1, 2], "its metadata")


@pytest.mark.parametrize("form", [in_first_form, in_trainer_form])
def test_every_form_gives_the_section_without_its_dead_keys(form):
    for section in (jais_section(), llama_section(kv_groups=4)):
        assert model_section_of(form(section, {}), "run.yaml") == section


@pytest.mark.parametrize("form", [in_first_form, in_trainer_form])
def test_scales_that_a_section_cannot_say_are_named(form):
    scales = {"decoder_kernel": 0.5, "embedding": 0.1}
    (note,) = adjustments_left_out(form(jais_section(), scales))
    assert "adjust_learning_rate.embedding = 0.1" in note
    assert adjustments_left_out(form(jais_section(), {"decoder_kernel": 0.5})) == []
    assert adjustments_left_out(3) == []


def test_the_text_says_whether_muP_is_in_force():
    old = model_section_of(in_first_form(DEPRECATED["jais-one"], {"decoder_kernel": 0.5}), "run.yaml")
    assert "imply the muP learning-rate groups" in yaml_text(trainer_params(old, "start.mdl"), [])
    assert "without muP groups" in yaml_text(trainer_params(DEPRECATED["jais-one"], "start.mdl"), [])


OLD_RUNS = {f"{name}, deprecated": DEPRECATED[name] for name in DEPRECATED}


@pytest.mark.modelzoo
@pytest.mark.parametrize("name", [*VARIANTS, *OLD_RUNS, *PUBLISHED])
def test_the_model_zoo_validates_it(name, tmp_path, monkeypatch):
    pytest.importorskip("cerebras.modelzoo")
    for module in ("bigcode_eval", "bigcode_eval.base", "bigcode_eval.evaluator", "bigcode_eval.utils"):
        # The Model Zoo imports this package, which no registry has, for a callback that no YAML of ours uses.
        monkeypatch.setitem(
            sys.modules, module, MagicMock(Task=type("Task", (), {}), Evaluator=type("Evaluator", (), {}))
        )
    from cerebras.modelzoo.trainer.validate import validate_trainer_params

    monkeypatch.chdir(tmp_path)
    for part in ("train", "held_out/ar", "held_out/en"):
        (tmp_path / "data" / part).mkdir(parents=True)
    if name in OLD_RUNS:
        section = model_section_of(in_first_form(OLD_RUNS[name], {"decoder_kernel": 1 / 3}), "run.yaml")
    else:
        section = VARIANTS[name] if name in VARIANTS else PUBLISHED[name][0]
    text = yaml_text(trainer_params(section, "start.mdl"), [])
    (config,) = validate_trainer_params(yaml.safe_load(text))
    assert config.init.model.config.hidden_size == section["hidden_size"]
    assert config.init.model.config.mup_base_hidden_size == section.get("mup_base_hidden_size")


@pytest.mark.parametrize("which", ["given", "whole"])
def test_what_the_model_zoo_writes_of_a_run_describes_the_model_of_the_run(which):
    folder = Path(__file__).parents[2] / "cerebras_jais" / "launch" / "trainer_params"
    section = read_model_section(folder / f"{which}.yaml")
    ours = read_model_section(Path(__file__).parents[3] / "configs" / "tiny" / "jais.yaml")
    described, wanted = DecoderConfig.from_section(section), DecoderConfig.from_section(ours)
    assert described == wanted.model_copy(update={"embd_pdrop": wanted.embedding_dropout})
    assert "lr_adjustment_groups" not in section


def test_a_choice_of_learning_rates_in_the_section_comes_back_from_a_release():
    groups = {"embedding": {"param_filter_patterns": "*embedding*weight", "scale": 0.5}}
    section = model_section_of({"model": {**jais_section(), "lr_adjustment_groups": groups}}, "run.yaml")
    assert section == {**jais_section(), "lr_adjustment_groups": groups}
    config_json = to_config_json(section, "float32", SpecialTokens(0, 0, 0))
    back, _ = to_model_section(config_json)
    assert back["lr_adjustment_groups"] == groups
