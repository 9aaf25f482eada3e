"""AdamW is Cerebras' AdamW, step by step, and its state is what a checkpoint holds.

Contract: 30 steps of `AdamW` give the weights of cerebras.pytorch's AdamW, with and without bias correction, fused or
not; `optimizer_state` equals its `state_dict()`; `load_optimizer_state` goes on from either as if never stopped, also
when the powers of beta have underflowed. Without Cerebras the same is checked against its formula in float64.
"""

import math

import numpy as np
import pytest
import torch

from cerebras_jais.optimizer.adamw import build_adamw, load_optimizer_state, optimizer_state
from cerebras_jais.optimizer.groups import OptimizerError, ParameterGroup
from tests import tolerances
from tests.cerebras_jais.train.examples import use_cpu

GROUPS = [ParameterGroup(("a", "b"), 0.1, 0.5), ParameterGroup(("c",), 0.0, 1.0)]
SHAPES = {"a": (5, 7), "b": (3,), "c": (2, 2)}
RATES = [0.01, 0.02]


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def give_gradients(parameters, step):
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters.values():
        # Small gradients, so that eps counts.
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** -(step % 5)


def ours(correct_bias, fused, parameters, eps=1e-4):
    return build_adamw(
        GROUPS, parameters, learning_rate=0.1, betas=(0.9, 0.95), eps=eps, correct_bias=correct_bias, fused=fused
    )


def run(optimizer, parameters, steps, rates=RATES):
    for step in steps:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (step + 1) / 10
        give_gradients(parameters, step)
        optimizer.step()


def state_of(optimizer):
    return optimizer_state(optimizer, GROUPS, RATES, scheduled=True, to_array=lambda t: t.detach().numpy().copy())


def load(optimizer, state, step):
    load_optimizer_state(
        optimizer, GROUPS, state, step, source="x.mdl", load=lambda leaf, p: torch.from_numpy(np.array(leaf))
    )


@pytest.mark.parametrize("correct_bias", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_steps_follow_the_formula(correct_bias, fused):
    parameters = weights()
    expected = {name: p.detach().double() for name, p in parameters.items()}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in expected.items()}
    optimizer = ours(correct_bias, fused, parameters)
    for step in range(30):
        run(optimizer, parameters, [step])
        for group, rate in zip(GROUPS, RATES, strict=True):
            for name in group.names:
                gradient, (m, v) = parameters[name].grad.double(), moments[name]
                m.mul_(0.9).add_(gradient, alpha=0.1)
                v.mul_(0.95).addcmul_(gradient, gradient, value=0.05)
                update = m / (v.sqrt() + 1e-4)
                if correct_bias:
                    update *= math.sqrt(1 - 0.95 ** (step + 1)) / (1 - 0.9 ** (step + 1))
                expected[name] -= rate * (step + 1) / 10 * (update + group.weight_decay * expected[name])
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=0, atol=tolerances.OPTIMIZER_STEPS)


@pytest.mark.parametrize("fused", [True, False])
def test_a_run_stopped_and_resumed_is_the_run_never_stopped(fused):
    whole, first = weights(), weights()
    run(ours(True, fused, whole), whole, range(20))
    optimizer = ours(True, fused, first)
    run(optimizer, first, range(8))
    resumed = ours(True, fused, first)
    load(resumed, state_of(optimizer), 8)
    assert resumed.steps_taken == 8
    run(resumed, first, range(8, 20))
    assert all(torch.equal(whole[name], first[name]) for name in SHAPES)


def test_steps_are_told_by_the_powers_of_beta_or_else_by_the_step():
    parameters = weights()
    for taken, file_step, told in ((7, 0, 7), (7, 7, 7), (500, 500, 500), (60_000, 60_000, 60_000)):
        optimizer = ours(True, True, parameters)
        optimizer.steps_taken = taken
        state = state_of(optimizer)
        resumed = ours(True, True, parameters)
        load(resumed, state, file_step)
        assert resumed.steps_taken == told


def test_state_that_does_not_fit_is_refused():
    parameters = weights()
    state = state_of(ours(True, True, parameters))
    state["param_groups"][1]["params"] = [2, 3]
    with pytest.raises(OptimizerError, match=r"groups of \[2, 2\] parameters.*LoadCheckpointStates"):
        load(ours(True, True, parameters), state, 0)
    state = state_of(ours(True, True, parameters))
    state["state"][0]["exp_avg"] = np.zeros((1, 1), np.float32)
    with pytest.raises(OptimizerError, match=r"exp_avg of a is \[1, 1\]"):
        load(ours(True, True, parameters), state, 0)


@pytest.mark.cerebras
@pytest.mark.parametrize("correct_bias", [True, False])
def test_steps_and_state_are_those_of_cerebras(correct_bias):
    cstorch = pytest.importorskip("cerebras.pytorch")
    use_cpu(cstorch)
    theirs, own = weights(), weights()
    groups = [
        {
            "params": [theirs[n] for n in g.names],
            "weight_decay": g.weight_decay,
            "adjust_learning_rate": g.adjust_learning_rate,
        }
        for g in GROUPS
    ]
    reference = cstorch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95), eps=1e-4, correct_bias=correct_bias)
    optimizer = ours(correct_bias, True, own)
    run(reference, theirs, range(30))
    run(optimizer, own, range(30))
    for name in SHAPES:
        torch.testing.assert_close(own[name], theirs[name], rtol=0, atol=tolerances.OPTIMIZER_STEPS)

    expected = reference.state_dict()
    state = optimizer_state(
        optimizer,
        GROUPS,
        [g["lr"] for g in optimizer.param_groups],
        scheduled=False,
        to_array=lambda t: t.detach().numpy(),
    )
    assert [set(g) for g in state["param_groups"]] == [set(g) for g in expected["param_groups"]]
    assert state["param_groups"] == expected["param_groups"]
    assert list(state["state"]) == list(expected["state"])
    for index, entry in expected["state"].items():
        assert set(state["state"][index]) == set(entry)
        for key, value in entry.items():
            np.testing.assert_allclose(
                state["state"][index][key],
                value.numpy(),
                rtol=tolerances.OPTIMIZER_STATE_RELATIVE,
                atol=tolerances.OPTIMIZER_STATE,
            )

    # Theirs goes on in ours.
    copied = {name: torch.nn.Parameter(p.detach().clone()) for name, p in theirs.items()}
    resumed = ours(correct_bias, True, copied)
    load(resumed, expected, 30)
    run(reference, theirs, range(30, 40))
    run(resumed, copied, range(30, 40))
    for name in SHAPES:
        torch.testing.assert_close(copied[name], theirs[name], rtol=0, atol=tolerances.OPTIMIZER_STEPS)
