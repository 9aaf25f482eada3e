"""Learning rates as pure functions of the step, and the state the Model Zoo's schedulers keep of them.

Source: cerebras.pytorch optim/scheduler.py and lr_scheduler.py of 2.10; Model Zoo trainer/utils.py, which multiplies
by each group's `adjust_learning_rate` (ScalePerParamLR) whenever there is a schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cerebras_jais.config.schedules import (
    ConstantLR,
    CosineDecayLR,
    LinearLR,
    ScalePerParamLR,
    Schedule,
    SequentialLR,
    planned_steps,
)
from cerebras_jais.optimizer.groups import OptimizerSectionError, ParameterGroup


def learning_rate(schedule: Schedule, step: int) -> float:
    """The learning rate of a schedule for the optimizer step that follows `step` finished ones."""
    if isinstance(schedule, ConstantLR):
        return schedule.learning_rate
    if isinstance(schedule, LinearLR):
        # `cycle` stretches nothing before total_iters, and beyond it the Model Zoo holds the end value.
        if step >= schedule.total_iters:
            return schedule.end_learning_rate
        rest = 1 - step / schedule.total_iters
        return schedule.end_learning_rate + rest * (schedule.initial_learning_rate - schedule.end_learning_rate)
    if isinstance(schedule, CosineDecayLR):
        progress = 0.5 * (1 + math.cos(math.pi * min(step, schedule.total_iters) / schedule.total_iters))
        return schedule.end_learning_rate + progress * (schedule.initial_learning_rate - schedule.end_learning_rate)
    if isinstance(schedule, SequentialLR):
        index, begin = _phase(schedule, step)
        return learning_rate(schedule.schedulers[index], step - begin)
    if isinstance(schedule, ScalePerParamLR):
        return learning_rate(schedule.scheduler, step)
    raise AssertionError(f"no rule for {type(schedule).__name__}")


def _phase(schedule: SequentialLR, step: int) -> tuple[int, int]:
    index, begin = 0, 0
    for number, milestone in enumerate(schedule.computed_milestones):
        if step >= milestone:
            index, begin = number + 1, milestone
    return index, begin


def learning_rates(
    schedules: Sequence[Schedule], groups: Sequence[ParameterGroup], constant: float | None, step: int
) -> list[float]:
    """The learning rate of each group for the step that follows `step` finished ones.

    A schedule's value is multiplied by the group's `adjust_learning_rate`. Groups without a schedule have `constant`,
    the optimizer's own learning_rate, which is not multiplied: the Model Zoo scales schedules only.
    """
    rates = []
    for group in groups:
        rate = constant if constant is not None else 0.1  # the Model Zoo's default
        for schedule in schedules:
            if _applies(schedule, group):
                scale = 1.0 if group.adjust_learning_rate is None else group.adjust_learning_rate
                rate = learning_rate(schedule, step) * scale
        rates.append(rate)
    return rates


def check_schedules(schedules: Sequence[Schedule], groups: Sequence[ParameterGroup]) -> None:
    """Raise OptimizerSectionError when a schedule applies to no group, or two apply to the same one."""
    for number, schedule in enumerate(schedules):
        if not any(_applies(schedule, group) for group in groups):
            raise OptimizerSectionError(
                ("schedulers", number),
                f"param_group_tags {schedule.param_group_tags} match no parameter group; the tags come from "
                "optimizer.AdamW.params",
            )
    for group in groups:
        if sum(_applies(schedule, group) for schedule in schedules) > 1:
            message = "two of them are for the same parameters; give each param_group_tags"
            raise OptimizerSectionError(("schedulers",), message)


def beyond_schedules(schedules: Sequence[Schedule], steps: int) -> list[str]:
    """A line for each schedule that ends before a run of `steps` steps, which then trains at the last rate."""
    lines = []
    for schedule in schedules:
        planned = planned_steps(schedule)
        if planned is not None and planned < steps:
            lines.append(
                f"the schedule ends after {planned} steps, the run continues for {steps}: the last {steps - planned} "
                f"train at its last rate, {learning_rate(schedule, planned):g}; to change that raise total_iters"
            )
    return lines


def _tags(schedule: Schedule) -> set[str | None] | None:
    if isinstance(schedule, ScalePerParamLR) and schedule.param_group_tags is None:
        return _tags(schedule.scheduler)
    return None if schedule.param_group_tags is None else set(schedule.param_group_tags)


def _applies(schedule: Schedule, group: ParameterGroup) -> bool:
    tags = _tags(schedule)
    return tags is None or not tags.isdisjoint(group.tags or {None})  # a tag None is for groups without tags


def scheduler_states(
    schedules: Sequence[Schedule], groups: Sequence[ParameterGroup], step: int
) -> list[dict[str, Any]]:
    """The checkpoint's `schedulers` entry after `step` steps, as the Model Zoo's schedulers write and take it."""
    scales = [1.0 if g.adjust_learning_rate is None else g.adjust_learning_rate for g in groups]
    scaled = any(g.adjust_learning_rate is not None for g in groups)
    states = []
    for schedule in schedules:
        inner = schedule.scheduler if isinstance(schedule, ScalePerParamLR) else schedule
        applies = [_applies(schedule, group) for group in groups]
        if not scaled and not isinstance(schedule, ScalePerParamLR):
            states.append(_state(inner, applies, step, outermost=True))
            continue
        nested = _state(inner, applies, step, outermost=False)
        nested.pop("_get_called_within_step")
        tags = _tags(schedule)
        value = learning_rate(inner, step)
        states.append(
            {
                "lr_adjustment_scalars": scales,
                "param_group_tags": tags,
                "_last_value": [_scalar(value * s) if a else None for a, s in zip(applies, scales, strict=True)],
                "total_iters": None,
                "last_epoch": np.asarray(np.int64(step)),
                "_step_count": step + 1,
                "_get_called_within_step": False,
                "_scheduler": nested,
            }
        )
    return states


def _state(schedule: Schedule, applies: Sequence[bool], step: int, *, outermost: bool) -> dict[str, Any]:
    """The state of one scheduler; only the outermost continues to record its value, the others keep their first."""
    if isinstance(schedule, SequentialLR):
        own: dict[str, Any] = {"_milestones": schedule.computed_milestones}
    elif isinstance(schedule, ConstantLR):
        own = {"learning_rate": schedule.learning_rate}
    else:
        assert isinstance(schedule, LinearLR | CosineDecayLR)
        own = {
            "initial_learning_rate": schedule.initial_learning_rate,
            "end_learning_rate": schedule.end_learning_rate,
        }
        if isinstance(schedule, LinearLR):
            own |= {"power": 1.0, "cycle": schedule.cycle}
    value = learning_rate(schedule, step if outermost else 0)
    tags = _tags(schedule)
    state = own | {
        "param_group_tags": tags,
        "_last_value": [_scalar(value) if applied else None for applied in applies],
        "total_iters": getattr(schedule, "total_iters", None),
        "last_epoch": np.asarray(np.int64(step)),
        "_step_count": step + 1 if outermost else 1,
        "_get_called_within_step": False,
    }
    if isinstance(schedule, SequentialLR):
        begins = [0, *schedule.computed_milestones]
        state["_schedulers"] = [
            _state(part, applies, max(0, step - begin), outermost=False)
            for part, begin in zip(schedule.schedulers, begins, strict=True)
        ]
    return state


def _scalar(value: float) -> np.ndarray:
    return np.asarray(np.float32(value))
