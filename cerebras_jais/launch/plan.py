"""When a run ends, evaluates and writes checkpoints, and whether its data fits its model; all known before it begins.

Source: cerebras.pytorch utils/data/utils.py (compute_num_steps), Model Zoo trainer/callbacks/run_schedule.py of 2.10.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

from cerebras_jais.config.sections import Loop
from cerebras_jais.config.trainer import TrainerConfig
from cerebras_jais.data.dataset import HDF5Samples
from cerebras_jais.errors import Problem, UserError
from cerebras_jais.launch.estimate import model_size
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


def check_data(data: HDF5Samples, model: DecoderConfig, where: str, world_size: int) -> None:
    """Raise PlanError or DataError when samples do not fit a model, or cannot be divided among processes."""
    if data.batch_size % world_size:
        raise PlanError(where, f"batch_size {data.batch_size} cannot be divided among {world_size} processes")
    problem = data_problem(data, model)
    if problem is not None:
        raise PlanError(where, problem)


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


def machine_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_problem(model: DecoderConfig, memory: int) -> str | None:
    """What is wrong where weights, gradients and AdamW's two moments, all float32, are more than `memory` bytes.

    Activations come on top, so a model that passes may still be too large.
    """
    needed = model_size(model).training_bytes
    if needed <= memory:
        return None
    return f"training takes {needed / 1e9:,.4g} GB for weights, gradients and moments; there are {memory / 1e9:,.4g} GB"


def check_memory(model: DecoderConfig, memory: int, source: str) -> None:
    """Raise PlanError for a model that cannot be trained in `memory` bytes."""
    problem = memory_problem(model, memory)
    if problem is not None:
        raise PlanError(source, f"{problem}; use a smaller model, a larger machine, or --sharding fsdp over several")
