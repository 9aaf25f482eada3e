"""What a run needs before its first step: folder, checkpoint, data, plan, model, optimizer, and position.

Everything that can be wrong with the input is found here, before the first file is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from cerebras_jais.checkpoint import Checkpoint
from cerebras_jais.config.modelzoo_only import not_done_here
from cerebras_jais.config.trainer import TrainerConfig
from cerebras_jais.data.dataset import HDF5Samples
from cerebras_jais.launch.memory import arrangement_of
from cerebras_jais.launch.phases import Phase
from cerebras_jais.launch.plan import (
    NothingLeft,
    TrainingPlan,
    check_data,
    check_division,
    check_memory,
    missing_sections,
    plan_training,
)
from cerebras_jais.launch.saved import nothing_left, with_remedy
from cerebras_jais.launch.start import Start
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.freeze import freeze_parameters
from cerebras_jais.model.load import allocate
from cerebras_jais.optimizer.adamw import build_adamw
from cerebras_jais.optimizer.groups import groups_of, named_tensors
from cerebras_jais.optimizer.precision import PrecisionPlan, plan_precision
from cerebras_jais.optimizer.schedule import beyond_schedules, check_schedules
from cerebras_jais.train.data_record import record_of
from cerebras_jais.train.evaluation import TrainedModel
from cerebras_jais.train.folder import RunFolder
from cerebras_jais.train.parallel import DistributedContext
from cerebras_jais.train.progress import CURVE_FILE, curve_is_current, draw_curve, earlier_rows
from cerebras_jais.train.signals import StopRequest
from cerebras_jais.train.state import (
    ResumeError,
    Run,
    TrainingProgress,
    check_checkpoint,
    check_same_data,
    load_position,
    load_weights,
    open_for_resume,
    sampled_digest,
    step_of,
)
from cerebras_jais.train.steps import Steps, TrainingError


@dataclass(frozen=True)
class FitOptions:
    """How a phase is run on this machine; nothing of it changes what is trained.

    Attributes:
        backend: "cpu" or "gpu".
        activation_checkpointing: keep only each layer's input and compute the rest again, for memory.
        compile_layers: run each decoder layer through torch.compile.
        sharding: with several processes (torchrun), "ddp" or "fsdp".
        progress: show what happens.
    """

    backend: str = "cpu"
    activation_checkpointing: bool = False
    compile_layers: bool = False
    sharding: str = "ddp"
    progress: bool = True


@dataclass(frozen=True)
class Prepared:
    """A run before its first step.

    Attributes:
        phase, start: what is run and how it begins.
        processes: this process among those of the run.
        plan: where it ends, saves and evaluates.
        folder: its checkpoints among the files of its folder.
        rows: of losses.csv, up to its step; empty in all processes but the first.
        held_out: the data to evaluate on.
        precision: what it computes in.
        run: model, optimizer and data.
        steps: takes steps and evaluates.
        position: its step, and its places in the data and the schedules.
        lacks_evaluation: whether the evaluation of its step is still to be recorded.
        notes: lines for people.
    """

    phase: Phase
    start: Start
    processes: DistributedContext
    plan: TrainingPlan
    folder: RunFolder
    rows: list[dict[str, str]]
    held_out: list[HDF5Samples]
    precision: PrecisionPlan
    run: Run
    steps: Steps
    position: TrainingProgress
    lacks_evaluation: bool
    notes: list[str]

    @property
    def config(self) -> TrainerConfig:
        """Of the phase."""
        return self.phase.config

    @property
    def goes_on(self) -> bool:
        """Whether the run continues from a checkpoint of its own."""
        return self.start.begins is not None


def prepare(
    phase: Phase, start: Start, options: FitOptions, processes: DistributedContext, stop: StopRequest
) -> Prepared:
    """Read, check and build what a run needs; writes nothing, but repairs the records of a run that is complete.

    Raises:
        UserError: (one of its kinds) data, checkpoint and config that do not fit.
        NothingLeft: the run is complete.
    """
    config, goes_on = phase.config, start.begins is not None
    for problem in [*not_done_here(config.aside), *missing_sections(config)]:
        raise TrainingError(config.message(problem))
    notes: list[str] = []
    precision = plan_precision(config.init.precision, processes.device.type, notes.append)
    with ExitStack() as opening:
        opening.enter_context(with_remedy(start.checkpoint if goes_on else None))
        opened, states = None, set[str]()
        if start.checkpoint is not None:
            opened = opening.enter_context(open_for_resume(start.checkpoint))
            states = check_checkpoint(opened, config, start.states)
        step = 0 if opened is None else step_of(opened, states)
        begins = step if start.begins is None else start.begins
        if not processes.agree(
            f"{step} {begins} {sorted(states)} {start.checkpoint and sampled_digest(start.checkpoint)}"
        ):
            raise ResumeError(
                f"{phase.model_dir}: the processes do not begin from the same checkpoint; give all of them one folder "
                "on a file system that they share"
            )
        folder = RunFolder(config, phase.model_dir, begins, step if goes_on else None)
        rows = earlier_rows(phase.model_dir, step) if processes.is_first else []
        lacks_evaluation = goes_on and _lacks_evaluation(config, rows, step, processes)
        if goes_on and phase.ends is not None and phase.ends <= step:
            _refuse_complete(phase, start, step, phase.ends, folder, rows, lacks_evaluation, processes)
        data, held_out = _open_data(config, processes)
        if goes_on:  # a checkpoint of another run is checked as a whole before its step is
            plan = plan_training(config, data, begins)
            if plan.end <= step:
                _refuse_complete(phase, start, step, plan.end, folder, rows, lacks_evaluation, processes)
        run, trained = _build(config, options, data, held_out, opened, states, precision, processes, notes)
        position = TrainingProgress()
        if opened is not None:
            position = load_position(opened, run, states)
            notes.append(f"continuing from {opened.path}: {', '.join(sorted(states))} at step {position.step}")
        if not goes_on:
            plan = plan_training(config, data, begins)
    steps = Steps(run, trained, precision, stop, plan.batches_per_step, position.samples)
    notes += beyond_schedules(config.init.schedulers, position.scheduled + plan.end - step)
    return Prepared(
        phase,
        start,
        processes,
        plan,
        folder,
        rows,
        held_out,
        precision,
        run,
        steps,
        position,
        lacks_evaluation and bool(held_out) and step in plan.evaluation_steps,
        notes,
    )


def _open_data(config: TrainerConfig, processes: DistributedContext) -> tuple[HDF5Samples, list[HDF5Samples]]:
    """The data to train and to evaluate on, checked against the model."""
    assert config.fit is not None
    check_division(config, processes.world_size)
    data = HDF5Samples(**config.fit.train_dataloader.reader_keys())
    held_out = [HDF5Samples(**section.reader_keys()) for section in config.fit.val_dataloader]
    for samples, key in [(data, "train_dataloader"), *((v, "val_dataloader") for v in held_out)]:
        check_data(samples, config.init.model, f"{config.source}: trainer.fit.{key}")
    return data, held_out


def _build(
    config: TrainerConfig,
    options: FitOptions,
    data: HDF5Samples,
    held_out: list[HDF5Samples],
    opened: Checkpoint | None,
    states: set[str],
    precision: PrecisionPlan,
    processes: DistributedContext,
    notes: list[str],
) -> tuple[Run, torch.nn.Module]:
    """Model, with the weights of the checkpoint, and optimizer; and the model as several processes train it."""
    init = config.init
    assert init.optimizer is not None
    arrangement = arrangement_of(
        config,
        processes.world_size,
        options.sharding,
        activation_checkpointing=options.activation_checkpointing,
        backend=options.backend,
    )
    check_memory(config, arrangement, processes.memory)
    seed = processes.common_seed(init.seed)
    if seed is not None:
        torch.manual_seed(seed)
    with torch.device("meta"):
        model = LanguageModel(init.model)
    model.model.activation_checkpointing = options.activation_checkpointing
    frozen = freeze_parameters(model, init.model.frozen_parameters)
    if frozen:
        notes.append(f"frozen: {len(frozen)} of {len(dict(model.named_parameters()))} tensors do not train")
    groups = groups_of(model, init.model, init.optimizer)
    check_schedules(init.schedulers, groups)
    if not init.schedulers and any(g.adjust_learning_rate not in (None, 1.0) for g in groups):
        notes.append(
            "no schedulers: the learning rate is the same for all parameters, as in the Model Zoo, which applies "
            "muP's scales to schedules only; a ConstantLR would have them"
        )
    record = record_of(data, held_out)
    if opened is not None:
        notes += check_same_data(opened, config, states, record)
    if options.compile_layers:
        for layer in model.model.transformer_decoder.layers:
            layer.compile()
    trained = TrainedModel(model)
    processes.divide(trained, precision.dtype)
    allocate(model, processes.device)
    load_weights(
        opened if "model" in states else None,
        model,
        processes,
        strict=not init.checkpoint.disable_strict_checkpoint_loading,
    )
    optimizer = build_adamw(
        groups,
        named_tensors(model),
        learning_rate=init.optimizer.learning_rate or 0.0,
        betas=init.optimizer.betas,
        eps=init.optimizer.eps,
        correct_bias=init.optimizer.correct_bias,
        # Loss scaling leaves steps out, which a fused kernel would only notice after the fact.
        fused=precision.scaler is None,
    )
    wrapped = processes.wrap(trained)
    return Run(config, model, optimizer, groups, data, precision.scaler, processes, record), wrapped


def _lacks_evaluation(
    config: TrainerConfig, rows: list[dict[str, str]], step: int, processes: DistributedContext
) -> bool:
    """Whether the process that wrote the checkpoint of a step died before the evaluation after it was recorded.

    All processes agree on what the first one finds.
    """
    assert config.fit is not None
    if not config.fit.val_dataloader or not config.init.loop.eval_frequency:
        return False
    last: Mapping[str, str] | None = rows[-1] if rows else None
    found = processes.is_first and last is not None and int(last["step"]) == step and not last["eval_loss"]
    return bool(processes.sum(torch.tensor([float(found)], device=processes.device)).item())


def _refuse_complete(
    phase: Phase,
    start: Start,
    step: int,
    end: int,
    folder: RunFolder,
    rows: list[dict[str, str]],
    lacks_evaluation: bool,
    processes: DistributedContext,
) -> None:
    """Raise NothingLeft where a run is at its end; return where only its last evaluation is missing."""
    if end == step:
        if processes.is_first:
            folder.put_in_order(end)
        if lacks_evaluation:
            return
        if rows and not curve_is_current(phase.model_dir):
            draw_curve(rows, phase.model_dir / CURVE_FILE)
    raise NothingLeft(phase.config.source, nothing_left(start.checkpoint))
