"""The program of a CS system and the reference path take the same steps.

Contract: for every tiny config and each of its phases, ten steps of the lowered program in float32 give the losses,
learning rates, weights and states of the reference path with the constants that the program holds; the losses of the
unchanged reference path and of the Model Zoo on a CPU differ by no more than 16 bits change the constants. Loss
scaling, value clipping and evaluation agree too; a step with an overflow is left out.
"""

import math

import numpy as np
import pytest
import torch
import yaml

from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.cirh.rounding import types_of
from cerebras_jais.cirh.run import initial_state, run_step
from cerebras_jais.model.decoder import LanguageModel
from tests import tolerances
from tests.cerebras_jais.cirh.lowered import (
    apart,
    change_of_constants,
    learning_rates,
    programs_of,
    reference_with_constants,
    steps_of,
    tensors_of,
    with_constants_of,
    without_effect,
)
from tests.cerebras_jais.modelzoo.runs import (
    CONFIGS,
    TINY,
    group_rates,
    prepare,
    reference,
    require_modelzoo,
    zoo,
    zoo_scalars,
)

pytestmark = [pytest.mark.modelzoo, pytest.mark.slow]

STEPS = 10


class Lowered:
    """A config with its data, initial checkpoint and programs."""

    def __init__(self, folder, name, change=lambda trainer: None):
        require_modelzoo()
        self.folder, self.name = folder, name
        self.path = prepare(folder, name, steps=STEPS, save_every=1)
        document = yaml.safe_load(self.path.read_text())
        if isinstance(document["trainer"], dict):
            change(document["trainer"])
        lowered = folder / "lowered.yaml"
        lowered.write_text(yaml.safe_dump(document, sort_keys=False))
        self.programs = programs_of(lowered, folder / "programs")


@pytest.fixture(scope="module", params=CONFIGS)
def lowered(request, tmp_path_factory):
    return Lowered(tmp_path_factory.mktemp(request.param.removesuffix(".yaml")), request.param)


def compare(lowered, runs, **keys):
    """Losses, rates, weights and states of each step against the reference path's `runs`."""
    for (phase, result, start), programs in zip(runs, lowered.programs, strict=True):
        rates, left_out = group_rates(phase.config, STEPS), without_effect(phase.config)
        steps = steps_of(lowered.folder, programs["train"], phase, start, STEPS, **keys)
        worst = {"loss": 0.0, "weights and states": 0.0}
        for step, ran in enumerate(steps):
            stored = tensors_of(lowered.folder / phase.model_dir / f"checkpoint_{phase.begins + step + 1}.mdl")
            assert {name for name in ran.state if not name.startswith("grad_scaler")} <= stored.keys()
            np.testing.assert_allclose(
                learning_rates(ran, rates.shape[1]),
                rates[step],
                rtol=tolerances.LEARNING_RATE_RELATIVE,
                atol=tolerances.LEARNING_RATE_ABSOLUTE,
            )
            far = apart(ran.state, stored, left_out)
            name = max(far, key=far.get)
            assert far[name] <= tolerances.PROGRAM_RELATIVE, (step, name)
            loss = abs(ran.loss / result.losses[step] - 1)
            assert loss <= tolerances.PROGRAM_RELATIVE, step
            worst["loss"] = max(worst["loss"], loss)
            worst["weights and states"] = max(worst["weights and states"], far[name])
        print(lowered.name, phase.name, {what: f"{value:.1e}" for what, value in worst.items()})


def test_ten_steps_are_those_of_the_reference_path_with_the_programs_constants(lowered):
    compare(lowered, reference_with_constants(lowered.folder, lowered.path, "rounded", lowered.programs))


def test_losses_are_those_of_both_trainers_but_for_the_constants(lowered):
    zoo(lowered.folder, "fit", lowered.path.name, "-o", "zoo")
    for (phase, result, start), programs in zip(
        reference(lowered.folder, lowered.path, "ours"), lowered.programs, strict=True
    ):
        scalars = zoo_scalars(lowered.folder / "zoo" / phase.model_dir.relative_to("ours"))
        theirs = [scalars["loss"][phase.begins + step + 1] for step in range(STEPS)]
        ours = [ran.loss for ran in steps_of(lowered.folder, programs["train"], phase, start, STEPS)]
        for name, losses in (("reference", result.losses), ("Model Zoo", theirs)):
            far = np.abs(np.asarray(ours) / losses - 1).max()
            print(lowered.name, phase.name, name, f"{far:.1e}")
            allowed = max(tolerances.PROGRAM_RELATIVE, change_of_constants(programs["train"], phase.config))
            assert far <= allowed


def scaled(trainer):
    trainer["init"]["precision"] |= {"enabled": True, "fp16_type": "cbfloat16", "loss_scaling_factor": "dynamic"}


@pytest.fixture(scope="module")
def scaling(tmp_path_factory):
    return Lowered(tmp_path_factory.mktemp("scaled"), "jais.yaml", scaled)


def test_dynamic_loss_scaling_changes_nothing_in_float32(scaling):
    compare(scaling, reference_with_constants(scaling.folder, scaling.path, "rounded", scaling.programs))


def test_a_step_whose_gradients_overflow_is_left_out_and_the_scale_halved(scaling):
    (phase, _, start), program = reference(scaling.folder, scaling.path, "skip")[0], scaling.programs[0]["train"]
    before, after = (
        next(steps_of(scaling.folder, program, phase, start, 1, types=types_of(program), loss_scale=scale))
        for scale in (2.0**31, 2.0**60)
    )
    assert before.state["grad_scaler.0.num_skipped_steps"] == 0
    assert before.state["grad_scaler.0.loss_scale"] == 2.0**31
    assert after.state["grad_scaler.0.num_skipped_steps"] == 1
    assert after.state["grad_scaler.0.loss_scale"] == 2.0**31  # half of 2^60, and at most this
    assert after.loss == before.loss
    initial = tensors_of(scaling.folder / "initial.mdl")
    assert all(torch.equal(after.state[name], value) for name, value in initial.items() if name in after.state)
    assert not after.state["optimizer.state.0.exp_avg"].any()
    assert before.state["optimizer.state.0.exp_avg"].any()


def test_clipping_by_value_agrees(tmp_path):
    def clipped(trainer):
        trainer["init"]["precision"] = {"enabled": False, "max_gradient_value": 1e-4}

    lowered = Lowered(tmp_path, "jais.yaml", clipped)
    document = yaml.safe_load(lowered.path.read_text())
    clipped(document["trainer"])
    lowered.path.write_text(yaml.safe_dump(document, sort_keys=False))
    compare(lowered, reference_with_constants(tmp_path, lowered.path, "rounded", lowered.programs))


def test_gradient_accumulation_is_not_lowered(scaling, tmp_path):
    def accumulating(trainer):
        scaled(trainer)
        trainer["init"]["loop"]["grad_accum_steps"] = 2

    other = Lowered(tmp_path, "jais.yaml", accumulating).programs[0]["train"]
    same = scaling.programs[0]["train"]
    assert [(each.kind, each.operands) for each in other.operations] == [
        (each.kind, each.operands) for each in same.operations
    ]


@pytest.mark.parametrize("name", ["jais.yaml", "adapted.yaml"])
def test_an_evaluation_step_gives_loss_and_accuracy_of_its_batch(name, tmp_path):
    require_modelzoo()
    program = programs_of(TINY / name, tmp_path / "programs")[0]["evaluate"]
    config = with_constants_of(program, read_trainer_yaml(TINY / name)[0])
    torch.manual_seed(3)
    model = LanguageModel(config.init.model).eval()
    rows = torch.randint(0, 2048, (2, 129), dtype=torch.int32)
    mask = (torch.rand(2, 128) < 0.7).int()
    batch = {"input_ids": rows[:, :-1], "labels": rows[:, 1:], "attention_mask": mask}
    state = initial_state(program, {f"model.{key}": value for key, value in model.state_dict().items()})
    result = run_step(program, state, batch)
    with torch.no_grad():
        loss, logits = model(batch).item(), model.logits(batch["input_ids"])
    assert result.loss == pytest.approx(loss, rel=tolerances.PROGRAM_RELATIVE)
    right = ((logits.argmax(-1) == batch["labels"]) & mask.bool()).sum()
    assert result.state["model.accuracy_metric.total_correct_predictions"] == right
    assert result.state["model.accuracy_metric.total_num_tokens"] == mask.sum()
    perplexity = result.state["model.perplexity_metric.total_loss"] / mask.sum()
    assert perplexity.item() == pytest.approx(loss, rel=tolerances.PROGRAM_RELATIVE)
    assert math.isfinite(loss)
