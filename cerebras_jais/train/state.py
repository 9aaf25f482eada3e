"""Saving a run to a checkpoint and loading it: weights, optimizer, schedules, step and position in the data.

Source: Model Zoo trainer/callbacks/{checkpoint,model,optimizer,schedulers,dataloader,loop,precision,metadata}.py.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cerebras_jais.checkpoint import (
    Checkpoint,
    LazyTensor,
    StoredTensor,
    open_checkpoint,
    read_number,
    read_step,
    save_checkpoint,
)
from cerebras_jais.config.trainer import TrainerConfig
from cerebras_jais.data.dataset import HDF5Samples
from cerebras_jais.errors import UserError
from cerebras_jais.launch.saved import loaded_states, require_checkpoint
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.initialize import initial_weights
from cerebras_jais.model.load import fill_model, read_rows_into
from cerebras_jais.model.stored import stored_weights
from cerebras_jais.modelzoo_version import VERSION, class_name, is_of_this_release
from cerebras_jais.optimizer.adamw import AdamW, load_optimizer_state, optimizer_state
from cerebras_jais.optimizer.groups import ParameterGroup
from cerebras_jais.optimizer.schedule import learning_rates, scheduler_states
from cerebras_jais.ranges import COUNT_OR_NONE, LOSS_SCALE, STREAMED
from cerebras_jais.train.data_record import changes
from cerebras_jais.train.parallel import DistributedContext, is_divided


class ResumeError(UserError):
    """A checkpoint that this run cannot continue from."""


@dataclass(frozen=True)
class Run:
    """What a checkpoint holds of a run, except its progress; `data_record` is from `data_record.record_of`."""

    config: TrainerConfig
    model: LanguageModel
    optimizer: AdamW
    groups: Sequence[ParameterGroup]
    data: HDF5Samples
    scaler: torch.amp.GradScaler | None
    processes: DistributedContext
    data_record: str


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of a run: optimizer steps done, samples consumed, and steps of its schedules done.

    A new phase may continue the steps and restart its data and schedules, so the three can differ.
    """

    step: int = 0
    samples: int = 0
    scheduled: int = 0


def write_checkpoint(path: Path, run: Run, position: TrainingProgress, begins: int, *, overwrite: bool = False) -> None:
    """Write the run's state; a collective call, of which the first process writes the file.

    The file holds `model`, `optimizer`, `schedulers` (where there are any), `dataloader`, `global_step`,
    `grad_scaler` (float16) and `__metadata__`. There, beside what the Model Zoo's trainer writes and where it looks at
    nothing but the version, `run` says the step that the run began at, `begins`, and what its data were. The file
    appears whole or not at all.
    """
    init = run.config.init
    assert init.optimizer is not None
    rates = learning_rates(init.schedulers, run.groups, init.optimizer.learning_rate, position.scheduled)
    arrays = _Arrays(run.processes)
    model = OrderedDict((name, arrays(t)) for name, t in run.model.state_dict(keep_vars=True).items())
    optimizer = optimizer_state(run.optimizer, run.groups, rates, scheduled=bool(init.schedulers), to_array=arrays)
    state: dict[str, Any] = {
        "model": model,
        "dataloader": run.data.dataloader_state(position.samples),
        "optimizer": optimizer,
    }
    if init.schedulers:
        state["schedulers"] = scheduler_states(init.schedulers, run.groups, position.scheduled)
    if run.scaler is not None:
        state["grad_scaler"] = run.scaler.state_dict()
    state["global_step"] = position.step
    params = run.config.to_dict()
    record = {"first_step": begins, "data": run.data_record}
    state["__metadata__"] = [
        {"version": VERSION, "model_name": class_name(init.model.name), "params": params, "run": record}
    ]

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, state, overwrite=overwrite)

    run.processes.write_together(arrays.divided, write)


class _Arrays:
    """Converts tensors for save_checkpoint: the same object for the same tensor, so that tied weights are linked.

    `divided` lists the tensors that are divided among processes, in the same order in all of them; each is gathered
    when its turn to be written comes.
    """

    def __init__(self, processes: DistributedContext):
        self.processes = processes
        self.made: dict[int, Any] = {}
        self.divided: list[Tensor] = []

    def __call__(self, tensor: Tensor) -> Any:
        if id(tensor) not in self.made:
            self.made[id(tensor)] = (tensor, self._array(tensor.detach()))  # an id is unique while its tensor lives
        return self.made[id(tensor)][1]

    def _array(self, tensor: Tensor) -> Any:
        if is_divided(tensor):
            number = len(self.divided)
            self.divided.append(tensor)
            return _lazy(tensor, lambda: self.processes.gathered(number, tensor).numpy())
        if tensor.device.type == "cpu":
            return tensor.numpy()
        return _lazy(tensor, lambda: tensor.cpu().numpy())


def _lazy(tensor: Tensor, read: Callable[[], np.ndarray]) -> LazyTensor:
    return LazyTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), read)


def check_checkpoint(checkpoint: Checkpoint, config: TrainerConfig, states: Sequence[str] | None = None) -> set[str]:
    """The names of the states to load (`saved.loaded_states`).

    Raises ResumeError for a file of another release, UserError for states that are not in the file.
    """
    tree = checkpoint.tree
    if not isinstance(tree, Mapping) or "model" not in tree:
        raise ResumeError(f"{checkpoint.path}: has no 'model' in it; it is not a checkpoint of a trainer")
    metadata = checkpoint.metadata
    version = metadata[-1].get("version") if metadata and isinstance(metadata[-1], Mapping) else None
    own = version is None or "+" in str(version) or is_of_this_release(version)
    if config.init.checkpoint.strict_version and not own:
        raise ResumeError(
            f"{checkpoint.path}: written by release {version}, not {VERSION}; if the file is good nevertheless set "
            "init.checkpoint.strict_version to false"
        )
    held = frozenset(name for name in tree if not name.startswith("__"))
    return loaded_states(config, states, held, checkpoint.path)


def load_weights(
    checkpoint: Checkpoint | None, model: LanguageModel, processes: DistributedContext, *, strict: bool
) -> None:
    """Fill an allocated model: as drawn, or from a checkpoint; each process what it keeps, a tensor at a time.

    Args:
        checkpoint: where weights are read, if they are.
        model: to fill.
        processes: this process among those of the run.
        strict: otherwise those that fit by name and shape are read, and the others drawn.

    Raises WeightsError for what does not fit.
    """
    if checkpoint is not None and strict:
        fill_model(model, checkpoint, processes.own_rows)
        return
    targets = model.state_dict()
    with torch.device("meta"):
        shapes = LanguageModel(model.config)
    for name, values in initial_weights(shapes, model.config, processes.device):
        rows, first = processes.own_rows(targets[name])
        rows.copy_(values[first : first + len(rows)])
    stored = {} if checkpoint is None else stored_weights(checkpoint)
    for name, target in targets.items():
        if name in stored and stored[name].shape == tuple(target.shape):
            rows, first = processes.own_rows(target)
            read_rows_into(rows, stored[name], first)


def step_of(checkpoint: Checkpoint, states: set[str]) -> int:
    """The step that a run begins at with these states of a checkpoint."""
    return read_step(checkpoint.tree, checkpoint.path) if "global_step" in states else 0


def check_same_data(checkpoint: Checkpoint, config: TrainerConfig, states: set[str], now: str) -> list[str]:
    """Notes about data that changed since the checkpoint was written; `now` is the record of the data today.

    Raises ResumeError where the position in the training data is loaded and they are other data by size or content.
    """
    metadata = checkpoint.metadata
    last = metadata[-1] if metadata and isinstance(metadata[-1], Mapping) else {}
    run = last.get("run")
    if "dataloader" not in states or not isinstance(run, Mapping):
        return []
    problem, notes = changes(run.get("data"), now)
    if problem is None:
        return [f"data: {note}" for note in notes]
    problem = f"{checkpoint.path}: the training data changed since it was written: {problem}"
    if config.init.checkpoint.disable_strict_checkpoint_loading:
        return [problem, *(f"data: {note}" for note in notes)]
    raise ResumeError(
        f"{problem}; restore them, or leave `dataloader` out of the states to load (LoadCheckpointStates) to begin the "
        "new data from their start"
    )


def load_position(checkpoint: Checkpoint, run: Run, states: set[str]) -> TrainingProgress:
    """Load optimizer, scaler, step and data position, as far as the file and `states` have them."""
    tree = checkpoint.tree
    step = step_of(checkpoint, states)

    def load(leaf: StoredTensor, parameter: Tensor) -> Tensor:
        moment = torch.empty_like(parameter.detach())
        rows, first = run.processes.own_rows(moment)
        read_rows_into(rows, leaf, first)
        if leaf.key.endswith("exp_avg_sq") and rows.numel() and rows.min() < 0:
            raise ResumeError(f"{leaf.path}: {leaf.key} holds squares below 0; use another checkpoint")
        return moment

    if "optimizer" in states:
        load_optimizer_state(run.optimizer, run.groups, tree["optimizer"], step, source=str(checkpoint.path), load=load)
    if run.scaler is not None and "grad_scaler" in states and tree["grad_scaler"]:
        run.scaler.load_state_dict(_scaler_state(tree["grad_scaler"], checkpoint.path))
    samples = 0
    if "dataloader" in states:
        loader = tree["dataloader"]
        if not run.config.init.checkpoint.disable_strict_checkpoint_loading:
            samples = run.data.start_sample_from(loader, checkpoint.path)
        elif isinstance(loader, Mapping) and "samples_streamed" in loader:
            streamed = loader["samples_streamed"]
            samples = int(read_number(streamed, STREAMED, "dataloader.samples_streamed", checkpoint.path))
    scheduled = 0
    if "schedulers" in states and run.config.init.schedulers:
        scheduled = _steps_scheduled(tree["schedulers"], step, checkpoint.path)
    return TrainingProgress(step, samples, scheduled)


def _steps_scheduled(schedulers: Any, step: int, path: Path) -> int:
    """The steps that the schedules of a checkpoint have done; `step` where the file does not say."""
    first = schedulers[0] if isinstance(schedulers, Sequence) and schedulers else None
    last = first.get("last_epoch") if isinstance(first, Mapping) else None
    return step if last is None else int(read_number(last, COUNT_OR_NONE, "schedulers.last_epoch", path))


def _scaler_state(state: Any, path: Path) -> dict[str, Any]:
    """The checked state of torch's GradScaler in a checkpoint."""
    if not isinstance(state, Mapping) or not {"scale", "_growth_tracker"} <= state.keys():
        raise ResumeError(
            f"{path}: its grad_scaler is not PyTorch's (a CS system has its own); leave it out of the states to load"
        )
    scale = read_number(state["scale"], LOSS_SCALE, "grad_scaler.scale", path)
    tracker = read_number(state["_growth_tracker"], COUNT_OR_NONE, "grad_scaler._growth_tracker", path)
    return {**state, "scale": scale, "_growth_tracker": int(tracker)}


def sampled_digest(path: Path) -> str:
    """What tells the checkpoints of two runs apart without reading them: a SHA-256 of the size and of 64 pages.

    The pages lie evenly; a run of another seed or other data has other numbers in each that holds trained weights.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(64):
            file.seek(size * number // 64)
            digest.update(file.read(4096))
    return digest.hexdigest()


def open_for_resume(path: str | Path) -> Checkpoint:
    """Open the checkpoint a run begins from."""
    require_checkpoint(Path(path))
    return open_checkpoint(path)
