"""The first steps of a program in float32 and in its own 16-bit types, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cerebras_jais.checkpoint import open_checkpoint
from cerebras_jais.cirh.program import Program, ProgramError
from cerebras_jais.cirh.rounding import FLOAT32, types_of
from cerebras_jais.cirh.run import STATES, StepResult, initial_state, run_steps
from cerebras_jais.config.trainer import TrainerConfig
from cerebras_jais.data.dataset import HDF5Samples
from cerebras_jais.errors import UserError
from cerebras_jais.model.decoder import LanguageModel

_LOSS_SCALE, _SKIPPED_STEPS = "grad_scaler.0.loss_scale", "grad_scaler.0.num_skipped_steps"


@dataclass(frozen=True)
class ComparedStep:
    """One step, from 1: its loss in float32 and in the program's own types, in nats, and the loss scaler's counts.

    `loss_scale` is that after the step, and `skipped` how many steps have been left out so far, both in the program's
    own types; None and 0 without loss scaling.
    """

    step: int
    loss: float
    rounded_loss: float
    loss_scale: float | None
    skipped: int


def compare_types(
    program: Program,
    config: TrainerConfig,
    steps: int,
    checkpoint: Path | None = None,
    states: Sequence[str] = STATES,
) -> Iterator[ComparedStep]:
    """Run a training program in float32 and in its own types from the same state on the same batches.

    Args:
        program: of the phase, for training.
        config: of the phase; its training data is read from the beginning.
        steps: how many.
        checkpoint: where the run begins; None for weights as the reference path draws them with the config's seed.
        states: which of the checkpoint's states are loaded.

    Raises:
        UserError: (one of its kinds) a program without a loss, data or a checkpoint that cannot be read or does not fit
            the program.
    """
    if config.fit is None:
        raise UserError(f"{config.source}: has no trainer.fit, which names the training data")
    _check_scalars(program)
    data = HDF5Samples(**config.fit.train_dataloader.reader_keys())
    with ExitStack() as opening:
        if checkpoint is not None:
            leaves = opening.enter_context(open_checkpoint(checkpoint)).leaves
        else:
            leaves = {f"model.{name}": value for name, value in _drawn(config).items()}
        precision = config.init.precision
        scale = None if precision is None else precision.initial_loss_scale
        state = initial_state(program, leaves, states, scale)
    runs = [run_steps(program, state, _batches(data, steps), types=types) for types in (FLOAT32, types_of(program))]
    for step, (exact, rounded) in enumerate(zip(*runs, strict=True), 1):
        yield ComparedStep(step, exact.loss, rounded.loss, *_scaling(rounded))


def _check_scalars(program: Program) -> None:
    """Raise ProgramError unless the loss is there, and it and the loss scaler's counts are one number each."""
    if [result.type.elements for result in program.results if result.output == "loss"] != [1]:
        raise ProgramError('has no result "loss" of one number; give the train.cirh.mlir of a lowered config')
    for argument in program.arguments:
        if argument.resource in (_LOSS_SCALE, _SKIPPED_STEPS) and argument.type.elements != 1:
            raise ProgramError(f"{argument.resource} is {argument.type}, and must be one number")


def _drawn(config: TrainerConfig) -> dict[str, Tensor]:
    if config.init.seed is not None:
        torch.manual_seed(config.init.seed)
    return {name: value.detach() for name, value in LanguageModel(config.init.model).state_dict().items()}


def _batches(data: HDF5Samples, steps: int) -> Iterator[dict[str, Tensor]]:
    for index in range(steps):
        yield {name: torch.from_numpy(array) for name, array in data.batch(index).items()}


def _scaling(result: StepResult) -> tuple[float | None, int]:
    scale = result.state.get(_LOSS_SCALE)
    skipped = result.state.get(_SKIPPED_STEPS)
    return None if scale is None else scale.item(), 0 if skipped is None else int(skipped.item())


def table(compared: Iterator[ComparedStep]) -> Iterator[str]:
    """A line for each step, as it is done; the first below a heading."""
    heading = f"{'step':>4}  {'loss, float32':>13}  {'own types':>10}  {'difference':>10}  {'loss scale':>10}  skipped"
    for number, each in enumerate(compared):
        if number == 0:
            yield heading
        scale = "" if each.loss_scale is None else f"{each.loss_scale:.4g}"
        apart = each.rounded_loss - each.loss
        yield (
            f"{each.step:>4}  {each.loss:>13.6f}  {each.rounded_loss:>10.6f}  {apart:>+10.6f}  {scale:>10}  "
            f"{each.skipped:>7}"
        )
