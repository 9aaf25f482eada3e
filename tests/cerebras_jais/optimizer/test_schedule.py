"""Learning rates are Cerebras' at every step, and the schedulers' state in a checkpoint is theirs.

Contract: `learning_rate` equals what cerebras.pytorch's scheduler puts into the optimizer before each step; groups get
it times their scale; `scheduler_states` equals the `state_dict()` of its ScalePerParamLR or bare scheduler.
"""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from cerebras_jais.config.schedules import AnySchedule
from cerebras_jais.optimizer.groups import OptimizerError, ParameterGroup
from cerebras_jais.optimizer.schedule import check_schedules, learning_rate, learning_rates, scheduler_states
from tests import tolerances
from tests.cerebras_jais.train.examples import use_cpu

LINEAR = {"LinearLR": {"initial_learning_rate": 0.0, "end_learning_rate": 0.01, "total_iters": 4}}
COSINE = {"CosineDecayLR": {"initial_learning_rate": 0.01, "end_learning_rate": 0.001, "total_iters": 9}}
CONSTANT = {"ConstantLR": {"learning_rate": 0.003, "total_iters": 2}}
SCHEDULES = {
    "linear": LINEAR,
    "linear-cycle": {"LinearLR": {**LINEAR["LinearLR"], "cycle": True}},
    "cosine": COSINE,
    "constant": CONSTANT,
    "sequential": {"SequentialLR": {"schedulers": [LINEAR, COSINE, CONSTANT]}},
    "constant-then-linear": {"SequentialLR": {"schedulers": [CONSTANT, LINEAR]}},
    "one": {"SequentialLR": {"schedulers": [COSINE]}},
}
GROUPS = [ParameterGroup(("a",), 0.1, 0.25), ParameterGroup(("b",), 0.0, 1.0)]
PLAIN = [ParameterGroup(("a",), 0.1), ParameterGroup(("b",), 0.0)]


def read(section):
    return TypeAdapter(AnySchedule).validate_python(section)


def test_schedules_have_the_values_they_name():
    schedule = read(SCHEDULES["sequential"])
    assert [learning_rate(schedule, s) for s in (0, 2, 4)] == pytest.approx([0.0, 0.005, 0.01])
    assert learning_rate(schedule, 4 + 9) == 0.003
    assert learning_rate(read(COSINE), 100) == 0.001
    assert learning_rate(read(LINEAR), 100) == 0.01


def test_a_schedule_is_scaled_by_group_and_a_plain_rate_is_not():
    schedule = read(CONSTANT)
    assert learning_rates([schedule], GROUPS, None, 0) == [0.003 * 0.25, 0.003]
    assert learning_rates([], GROUPS, 0.1, 0) == [0.1, 0.1]
    assert learning_rates([read({"ScalePerParamLR": {"scheduler": CONSTANT}})], GROUPS, None, 0) == [
        0.003 * 0.25,
        0.003,
    ]


def test_tags_choose_the_groups_of_a_schedule():
    groups = [ParameterGroup(("a",), 0.1, None, frozenset({"x"})), ParameterGroup(("b",), 0.0)]
    tagged = read({"ConstantLR": {"learning_rate": 0.5, "param_group_tags": "x"}})
    rest = read({"ConstantLR": {"learning_rate": 0.25, "param_group_tags": [None]}})
    check_schedules([tagged, rest], groups)
    assert learning_rates([tagged, rest], groups, 0.1, 3) == [0.5, 0.25]
    with pytest.raises(OptimizerError, match="match no parameter group"):
        check_schedules([tagged], PLAIN)
    with pytest.raises(OptimizerError, match="two of them"):
        check_schedules([tagged, read(CONSTANT)], groups)


def cerebras_scheduler(cstorch, section, optimizer):
    ((name, keys),) = section.items()
    keys = dict(keys)
    if name == "SequentialLR":
        iterations = [next(iter(s.values()))["total_iters"] for s in keys["schedulers"][:-1]]
        keys["milestones"] = np.cumsum(iterations).astype(int).tolist()
        keys["schedulers"] = [cerebras_scheduler(cstorch, s, optimizer) for s in keys["schedulers"]]
    return getattr(cstorch.optim.lr_scheduler, name)(optimizer, **keys)


def same(ours, theirs, where=""):
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), where
        for key, value in theirs.items():
            same(ours[key], value, f"{where}.{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            same(a, b, f"{where}.{index}")
    elif isinstance(theirs, torch.Tensor):
        assert isinstance(ours, np.ndarray), where
        assert ours.shape == tuple(theirs.shape), where
        assert ours.dtype == theirs.numpy().dtype, where
        np.testing.assert_allclose(
            ours, theirs.numpy(), rtol=tolerances.LEARNING_RATE_RELATIVE, atol=tolerances.SCHEDULER_STATE
        )
    else:
        assert ours == theirs, where
        assert type(ours) is type(theirs), where


@pytest.mark.cerebras
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_and_state_are_those_of_cerebras(name, scaled):
    cstorch = pytest.importorskip("cerebras.pytorch")
    use_cpu(cstorch)
    groups = GROUPS if scaled else PLAIN
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in groups]
    settings = [
        {"params": [p]} | ({"adjust_learning_rate": g.adjust_learning_rate} if scaled else {})
        for g, p in zip(groups, parameters, strict=True)
    ]
    optimizer = cstorch.optim.AdamW(settings, lr=0.1)
    scheduler = cerebras_scheduler(cstorch, SCHEDULES[name], optimizer)
    if scaled:
        scheduler = cstorch.optim.lr_scheduler.ScalePerParamLR(optimizer, scheduler)
    schedule = read(SCHEDULES[name])
    for step in range(20):
        np.testing.assert_allclose(
            learning_rates([schedule], groups, None, step),
            [float(group["lr"]) for group in optimizer.param_groups],
            rtol=tolerances.LEARNING_RATE_RELATIVE,
            atol=tolerances.LEARNING_RATE_ABSOLUTE,
        )
        if step in (0, 1, 5, 14):
            (state,) = scheduler_states([schedule], groups, step)
            same(state, scheduler.state_dict())
        for parameter in parameters:
            parameter.grad = torch.ones(2)
        optimizer.step()
        scheduler.step()
