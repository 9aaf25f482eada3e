"""When a run ends, evaluates and writes checkpoints, and whether its data fits its model; all known before it begins.

Source: cerebras.pytorch utils/data/utils.py (compute_num_steps), Model Zoo trainer/callbacks/run_schedule.py of 2.10.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cerebras_jais.config.sections import Loop
from cerebras_jais.config.trainer import TrainerConfig
from cerebras_jais.data.dataset import HDF5Samples
from cerebras_jais.errors import Problem, UserError, dotted
from cerebras_jais.launch.memory import Arrangement, arrangement_of, memory_problem
from cerebras_jais.launch.phases import end_of
from cerebras_jais.launch.saved import nothing_left
from cerebras_jais.model.config import DecoderConfig


class PlanError(UserError):
    """Data, model and length of a run that do not fit together; `problem` says what, without the name of the YAML."""

    def __init__(self, where: str, problem: str):
        super().__init__(f"{where}: {problem}")
        self.problem = problem


class NothingLeft(PlanError):
    """A run whose checkpoint is already at its last step."""


@dataclass(frozen=True)
class Every:
    """The steps `start` + n, `start` + 2 n and so on, n being `steps`, and `end`; none where n is 0."""

    steps: int
    start: int
    end: int

    def __contains__(self, step: int) -> bool:
        if not self.steps or not self.start < step <= self.end:
            return False
        return step == self.end or (step - self.start) % self.steps == 0


@dataclass(frozen=True)
class TrainingPlan:
    """The step that the run began at and that it ends at; the steps after which it saves and evaluates."""

    begins: int
    end: int
    batches_per_step: int
    checkpoint_steps: Every
    evaluation_steps: Every


def plan_training(config: TrainerConfig, data: HDF5Samples, begins: int) -> TrainingPlan:
    """The plan of a run that began after `begins` steps.

    A step is an optimizer step of `grad_accum_steps` batches. (The Model Zoo's CPU and GPU loop counts batches against
    max_steps and so makes fewer optimizer steps than it was told; here they are what they say.) The run ends at
    `phases.end_of`; checkpoints and evaluations are counted from `begins`.

    A difference by intent: a run that was stopped and continues keeps the step that it began at, and so ends, saves and
    evaluates where it would have. The Model Zoo's loop counts all of this from the step where it continues: a run of
    num_epochs that is stopped gets longer by what it had done.

    Args:
        config: of the phase, with the length that the launch gives it.
        data: to train on.
        begins: the step at which the run began.

    Raises:
        NothingLeft: the run was to end where it began.
        PlanError: an epoch that is too short for its steps.
    """
    loop, source = config.init.loop, config.source
    end = end_of(loop, begins, _steps_in_epochs(loop, data, source))
    assert end is not None
    if end <= begins:
        raise NothingLeft(source, nothing_left(f"step {end}"))
    frequency = loop.eval_frequency or 0
    evaluates = math.ceil(frequency * (end - begins)) if isinstance(frequency, float) else frequency
    return TrainingPlan(
        begins,
        end,
        loop.grad_accum_steps,
        checkpoint_steps=Every(config.init.checkpoint.steps or 0, begins, end),
        evaluation_steps=Every(evaluates, begins, end),
    )


def _steps_in_epochs(loop: Loop, data: HDF5Samples, source: str) -> int | None:
    """What num_epochs comes to in optimizer steps; None without it."""
    if loop.num_epochs is None:
        return None
    batches = loop.steps_per_epoch or data.batches_per_epoch
    if batches > data.batches_per_epoch:
        raise PlanError(
            source, f"loop.steps_per_epoch {batches} is more than the data's {data.batches_per_epoch} batches"
        )
    if batches < loop.grad_accum_steps:
        raise PlanError(
            source,
            f"an epoch has {batches} batches, fewer than loop.grad_accum_steps {loop.grad_accum_steps}; "
            "lower that or the batch size, or give max_steps",
        )
    return loop.num_epochs * (batches // loop.grad_accum_steps)


def check_data(data: HDF5Samples, model: DecoderConfig, where: str) -> None:
    """Raise PlanError or DataError when samples do not fit a model."""
    problem = data_problem(data, model)
    if problem is not None:
        raise PlanError(where, problem)


def check_division(config: TrainerConfig, processes: int) -> None:
    """Raise PlanError where a batch of training cannot be divided among processes; held-out rows need no equal shares.

    A process with fewer rows than others would wait for them in every step.
    """
    assert config.fit is not None
    size = config.fit.train_dataloader.batch_size
    more = size % processes
    if more:
        sizes = " or ".join(str(near) for near in (size - more, size - more + processes) if near)
        raise PlanError(
            f"{config.source}: {dotted((*config.at, 'fit', 'train_dataloader', 'batch_size'))}",
            f"{size} rows cannot be divided among {processes} processes; give {sizes}, or start another number of "
            "processes",
        )


def data_problem(data: HDF5Samples, model: DecoderConfig) -> str | None:
    """What is wrong where samples are not of the model's length or fill no batch.

    Raises DataError when they hold ids outside the model's vocabulary.
    """
    if data.sequence_length != model.max_position_embeddings:
        return (
            f"its samples have {data.sequence_length} tokens, model.max_position_embeddings is "
            f"{model.max_position_embeddings}; pack the text again with --max-sequence-length "
            f"{model.max_position_embeddings}, or change the model"
        )
    if data.batches_per_epoch == 0:
        return (
            f"{data.data_dir or 'its mixture'} holds {len(data)} samples, fewer than one batch of {data.batch_size}; "
            "set drop_last: false or a smaller batch_size"
        )
    data.check_vocabulary(model.vocab_size)
    return None


def missing_sections(config: TrainerConfig) -> Iterator[Problem]:
    """The sections that training needs and a trainer does not have; keys below `trainer`."""
    if config.fit is None:
        yield Problem(("fit",), "missing; it names the data to train on")
    elif config.init.optimizer is None and not any(aside.keys[1] == "optimizer" for aside in config.aside):
        yield Problem(("init", "optimizer"), "missing; add AdamW")


def planned_arrangement(
    config: TrainerConfig, processes: int, sharding: str, *, activation_checkpointing: bool, backend: str
) -> Arrangement:
    """How `processes` processes would train a phase. Raises PlanError where they cannot divide a batch or a model."""
    if sharding == "fsdp" and processes == 1:
        raise PlanError("--sharding fsdp", "divides the model among processes, and --processes is 1; leave it out")
    for missing in missing_sections(config):
        raise PlanError(f"{config.source}: {dotted((*config.at, *missing.keys))}", missing.message)
    check_division(config, processes)
    return arrangement_of(
        config, processes, sharding, activation_checkpointing=activation_checkpointing, backend=backend
    )


def check_memory(config: TrainerConfig, run: Arrangement, memory: int) -> None:
    """Raise PlanError for a model that a process cannot train in `memory` bytes."""
    problem = memory_problem(config.init.model, run, memory)
    if problem is not None:
        raise PlanError(config.source, problem)
