"""`config check` notes a run that sees other tokens than its model's phase in the catalog has, and no other run.

Contract: every config of ours is silent; half a batch, or half the steps, is said with both numbers of tokens and with
the steps that make up for it, which then are silent; models outside the family are not judged.
"""

import re

import pytest

from cerebras_jais.catalog.models import MODELS
from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.catalog.yaml_files import find_preset, preset_yaml, presets
from cerebras_jais.launch.phases import plan_phases
from cerebras_jais.launch.token_budget import token_notes

PRETRAIN = "jais-family-590m/pretrain"


def notes_of(text, folder):
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    return list(token_notes(plan_phases(read_trainer_yaml(folder / "run.yaml"))))


def test_every_config_of_ours_sees_the_tokens_of_the_catalog(tmp_path):
    judged = 0
    for preset in presets():
        assert notes_of(preset_yaml(preset), tmp_path) == []
        judged += preset.model in MODELS
    assert judged >= 20


@pytest.mark.parametrize("name", ["jais-family-590m/pretrain", "jais-adapted-7b/stage-1", "jais-family-30b-16k/16k"])
def test_half_a_batch_is_said_with_the_steps_that_make_up_for_it(tmp_path, name):
    preset = find_preset(name)
    ((model, phase),) = preset.trainers
    text = preset_yaml(preset)
    batch, steps = phase.batch_size.value, phase.steps.value
    halved = re.sub(rf"batch_size: {batch}\b", f"batch_size: {batch // 2}", text)
    assert halved != text
    (note,) = notes_of(halved, tmp_path)
    half, whole = (steps * batch * phase.context.value / share / 1e9 for share in (2, 1))
    assert f"are {half:,.4g} billion tokens; {model.name}/{phase.name} has {whole:,.4g} billion" in note
    assert f"{2 * steps:,} steps of this batch" in note
    accumulated = halved.replace("    loop:\n", "    loop:\n      grad_accum_steps: 2\n")
    assert accumulated != halved
    assert notes_of(accumulated, tmp_path) == []


def test_phases_in_one_launch_are_judged_one_by_one(tmp_path):
    text = preset_yaml(find_preset("jais-family-30b-16k/phases"))
    assert notes_of(text, tmp_path) == []
    batch = find_preset("jais-family-30b-8k/8k").trainers[0][1].batch_size.value
    (note,) = notes_of(re.sub(rf"batch_size: {batch}\b", f"batch_size: {batch * 2}", text), tmp_path)
    assert "jais-family-30b-8k/8k has" in note


def test_a_model_of_other_sizes_is_not_judged(tmp_path):
    text = preset_yaml(find_preset(PRETRAIN)).replace("batch_size: 1120", "batch_size: 560")
    assert notes_of(text.replace("num_hidden_layers: 18", "num_hidden_layers: 17"), tmp_path) == []
