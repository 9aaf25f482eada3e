"""The learning-rate schedules of the trainer YAML: what they say, not yet what they compute (`train.schedule`).

Source: cerebras.pytorch optim/lr_scheduler.py and Model Zoo trainer/validate.py (milestones from total_iters) of 2.10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from cerebras_jais.config.base import Count, Rate, Section, refuse, unwrap
from cerebras_jais.config.modelzoo_only import OTHER_RATE_SCHEDULES, RATE_SCHEDULES, WEIGHT_DECAY_SCHEDULES
from cerebras_jais.wording import suggestion


class Schedule(Section):
    """What all learning-rate schedules share; `param_group_tags` restricts one to the groups with a tag."""

    param_group_tags: list[str | None] | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_tag_may_stand_alone(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("param_group_tags"), str):
            value = {**value, "param_group_tags": [value["param_group_tags"]]}
        return value


class LinearLR(Schedule):
    """From one learning rate to another in a straight line, then constant."""

    initial_learning_rate: Rate
    end_learning_rate: Rate
    total_iters: Count
    cycle: bool = False


class CosineDecayLR(Schedule):
    """From one learning rate to another along half a cosine, then constant."""

    initial_learning_rate: Rate
    end_learning_rate: Rate
    total_iters: Count


class ConstantLR(Schedule):
    """One learning rate."""

    learning_rate: Rate
    total_iters: Count | None = None


class SequentialLR(Schedule):
    """Schedules one after another; each but the last runs its `total_iters` steps."""

    schedulers: list[AnySimpleSchedule] = Field(min_length=1)
    milestones: list[int] | None = None
    last_epoch: Literal[-1] = -1  # the Model Zoo's only use of it: the schedule begins at its beginning

    @model_validator(mode="after")
    def _milestones_follow_from_total_iters(self) -> SequentialLR:
        expected = self.computed_milestones
        if self.milestones is not None and self.milestones != expected:
            raise refuse(f"the total_iters of the schedulers make it {expected}; remove the key", "milestones")
        if any(s.param_group_tags is not None for s in self.schedulers):
            raise refuse("give param_group_tags to the SequentialLR, not to the schedulers in it", "schedulers")
        return self

    @property
    def computed_milestones(self) -> list[int]:
        """The step at which each schedule but the first begins."""
        steps, milestones = 0, []
        for schedule in self.schedulers[:-1]:
            if schedule.total_iters is None:
                raise refuse("every schedule but the last needs total_iters", "schedulers")
            steps += schedule.total_iters
            milestones.append(steps)
        return milestones


class ScalePerParamLR(Schedule):
    """A schedule times each parameter group's `adjust_learning_rate`, which happens here without it too."""

    scheduler: AnySimpleSchedule | Annotated[SequentialLR, Field()]

    @model_validator(mode="before")
    @classmethod
    def _unwrap_inner(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("scheduler"), dict):
            name, keys = unwrap(value["scheduler"], "scheduler")
            if name.lower() == "sequentiallr":
                value = {**value, "scheduler": SequentialLR.model_validate(keys)}
        return value


def parts_of(schedule: Schedule) -> list[Schedule]:
    """The simple schedules that one consists of, in their order."""
    inner = schedule.scheduler if isinstance(schedule, ScalePerParamLR) else schedule
    return list(inner.schedulers) if isinstance(inner, SequentialLR) else [inner]


def planned_steps(schedule: Schedule) -> int | None:
    """The steps after which a schedule stays at its last rate; None where its last part is constant from its begin."""
    parts = parts_of(schedule)
    return None if isinstance(parts[-1], ConstantLR) else sum(getattr(part, "total_iters", None) or 0 for part in parts)


_SIMPLE = {"linearlr": "LinearLR", "cosinedecaylr": "CosineDecayLR", "constantlr": "ConstantLR"}
_SCHEDULES = {**_SIMPLE, "sequentiallr": "SequentialLR", "scaleperparamlr": "ScalePerParamLR"}


def _kind(value: Any) -> str:
    return type(value).__name__.lower() if isinstance(value, Schedule) else unwrap(value, "scheduler")[0].lower()


def _named(names: dict[str, str]) -> BeforeValidator:
    """Refuses a schedule of another name, before the union would with a list of all its members."""

    def check(value: Any) -> Any:
        if not isinstance(value, Schedule):
            name, _ = unwrap(value, "scheduler")
            if name.lower() not in names:
                if name.lower() in _SCHEDULES:
                    raise refuse(
                        "cannot be inside another schedule (it would never advance); write one flat list", name
                    )
                known = (*RATE_SCHEDULES, *OTHER_RATE_SCHEDULES, *WEIGHT_DECAY_SCHEDULES)
                raise refuse(f"unknown schedule; {suggestion(name, known)}", name)
        return value

    return BeforeValidator(check)


def _unwrapping(cls: type[Schedule]) -> Any:
    return Annotated[
        cls,
        BeforeValidator(lambda value: value if isinstance(value, Schedule) else unwrap(value, "scheduler")[1]),
        Tag(cls.__name__.lower()),
    ]


if TYPE_CHECKING:
    AnySimpleSchedule = LinearLR | CosineDecayLR | ConstantLR
    AnySchedule = LinearLR | CosineDecayLR | ConstantLR | SequentialLR | ScalePerParamLR
else:
    _SIMPLE_UNION = _unwrapping(LinearLR) | _unwrapping(CosineDecayLR) | _unwrapping(ConstantLR)
    AnySimpleSchedule = Annotated[_SIMPLE_UNION, Discriminator(_kind), _named(_SIMPLE)]
    AnySchedule = Annotated[
        _SIMPLE_UNION | _unwrapping(SequentialLR) | _unwrapping(ScalePerParamLR),
        Discriminator(_kind),
        _named(_SCHEDULES),
    ]
SequentialLR.model_rebuild()
ScalePerParamLR.model_rebuild()
