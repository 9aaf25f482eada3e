"""Steps of a CIRH program on a CPU: from weights and states, by their names in a checkpoint, to the next ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cerebras_jais.checkpoint import StoredTensor
from cerebras_jais.cirh.operations import compute, dtype_of
from cerebras_jais.cirh.program import Argument, Program, ProgramError
from cerebras_jais.cirh.rounding import FLOAT32, Rounding
from cerebras_jais.model.load import to_torch


@dataclass(frozen=True)
class StepResult:
    """What one step leaves.

    Attributes:
        state: every weight and state that the program has, by the path of its key in a checkpoint, after the step.
        outputs: what the trainer fetches, by name: "loss", "metrics_lr/0", "metrics_model_wise_grad_norm", ...
    """

    state: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @property
    def loss(self) -> float:
        """Of the batch, in nats, as the config scales it."""
        return self.outputs["loss"].item()


def run_step(
    program: Program,
    state: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    *,
    types: Mapping[str, Rounding] = FLOAT32,
    floats: torch.dtype = torch.float32,
) -> StepResult:
    """Run the program once, a training step or an evaluation step as it was lowered.

    Args:
        state: weights and states by the path of their key in a checkpoint; `initial_state` makes it.
        batch: tensors by feature, in the shapes of the program.
        types: how values of 16-bit types are rounded (`rounding`); by default all is float32.
        floats: what every float is computed in: float32, or float64 to tell apart rounding and meaning.

    Raises ProgramError for an operation that is not known, and for a weight, state or feature that is missing or of
    another shape.
    """
    values = {argument.name: _given(argument, state, batch, floats) for argument in program.arguments}
    last_use = {name: place for place, operation in enumerate(program.operations) for name in operation.operands}
    kept = {result.value for result in program.results}
    for place, operation in enumerate(program.operations):
        results = compute(operation, [values[name] for name in operation.operands], floats)
        for name, type_, value in zip(operation.results, operation.result_types, results, strict=True):
            values[name] = types[type_.dtype](value) if type_.dtype in types else value
        for name in {*operation.operands, *operation.results}:
            if last_use.get(name, -1) <= place and name not in kept:
                del values[name]
    after = dict(state)
    for argument in program.arguments:
        if argument.resource is not None and argument.alias is not None:
            after[argument.resource] = values[program.results[argument.alias].value]
    outputs = {result.output: values[result.value] for result in program.results if result.output is not None}
    return StepResult(after, outputs)


def run_steps(
    program: Program,
    state: Mapping[str, Tensor],
    batches: Iterable[Mapping[str, Tensor]],
    *,
    types: Mapping[str, Rounding] = FLOAT32,
    floats: torch.dtype = torch.float32,
) -> Iterator[StepResult]:
    """Run the program once for each batch, each step from the state that the one before left; see `run_step`."""
    for batch in batches:
        result = run_step(program, state, batch, types=types, floats=floats)
        state = result.state
        yield result


def _given(argument: Argument, state: Mapping[str, Tensor], batch: Mapping[str, Tensor], floats: torch.dtype) -> Tensor:
    name, source = (argument.resource, state) if argument.resource is not None else (argument.input, batch)
    if name is None or name not in source:
        what = "the batch has no" if source is batch else "the state has no"
        raise ProgramError(f"{what} {name or argument.name}, which the program takes as {argument.type}")
    value = source[name]
    if tuple(value.shape) != argument.type.shape:
        raise ProgramError(f"{name} is {list(value.shape)}, the program takes it as {argument.type}")
    return value.to(dtype_of(argument.type.dtype, floats))


# ---- where a run begins ----------------------------------------------------------------------------------------------

# The program counts loss scalers, of which the trainer has one, and its checkpoint does not.
_SCALER = "grad_scaler.0."
_LOSS_SCALE = f"{_SCALER}loss_scale"


STATES = ("model", "optimizer", "schedulers", "grad_scaler")


def initial_state(
    program: Program,
    leaves: Mapping[str, Any],
    states: Collection[str] = STATES,
    loss_scale: float | None = None,
) -> dict[str, Tensor]:
    """Weights and states of a program from a checkpoint; what it does not have begins as in a new run.

    A new run has moments and step counts of 0, the powers of AdamW's betas at their first power, which is the factor
    that the step multiplies them by, and the loss scale of cerebras_pytorch 2.10 (amp/grad_scaler.py): 2^31 for
    cbfloat16, 2^15 for float16.

    Args:
        leaves: of the checkpoint (`Checkpoint.leaves`): tensors of it or of PyTorch, and numbers, by flat key.
        states: which of the checkpoint's states are taken from it, as in LoadCheckpointStates.
        loss_scale: of a new run, where the config has an `initial_loss_scale`.

    Raises ProgramError for a weight that the checkpoint does not have, and for a state that the memory cannot hold.
    """
    factors = _factors(program)
    cbfloat16 = program.attributes.get("cs.fp16_type") == "cbfloat16"
    first = {_LOSS_SCALE: loss_scale or (2.0**31 if cbfloat16 else 2.0**15)}
    state = {}
    for argument in program.arguments:
        name = argument.resource
        if name is None:
            continue
        key = name.replace(_SCALER, "grad_scaler.", 1)
        stored = leaves.get(key) if name.partition(".")[0] in states else None
        if isinstance(stored, Tensor):
            state[name] = stored
        elif stored is not None:
            state[name] = to_torch(stored) if isinstance(stored, StoredTensor) else torch.tensor(stored)
        elif name.startswith("model.model."):
            raise ProgramError(f"the checkpoint has no {name}; the program is of another model")
        else:
            value = first.get(name, factors.get(argument.name, 0.0))
            dtype = dtype_of(argument.type.dtype, torch.float32)
            try:
                state[name] = torch.full(argument.type.shape, value, dtype=dtype)
            except RuntimeError:
                raise ProgramError(f"{name} is {argument.type}, for which the memory does not suffice") from None
    return state


def _factors(program: Program) -> dict[str, float]:
    """Scalar arguments whose next value is a multiple of theirs, where the step is not left out -> the multiple."""
    made = {name: operation for operation in program.operations for name in operation.results}
    found = {}
    for argument in program.arguments:
        if argument.alias is None or argument.type.shape:
            continue
        operation = made.get(program.results[argument.alias].value)
        if (
            operation is not None and operation.kind == "Select" and len(operation.operands) == 3
        ):  # loss scaling: this or the old value
            operation = made.get(operation.operands[1])
        if operation is None or operation.kind != "Mul" or argument.name not in operation.operands:
            continue
        for name in operation.operands:
            if name in made and made[name].kind == "Const" and not made[name].result_types[0].shape:
                found[argument.name] = float(made[name].attributes["value"].values[0])
    return found
