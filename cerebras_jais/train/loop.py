"""`fit`: run a Model Zoo trainer YAML on a CPU or GPU, step by step as the Model Zoo's trainer does.

Source: Model Zoo trainer/trainer.py, trainer/callbacks/{loop,run_schedule,grad_accum,loss,checkpoint}.py of 2.10.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from cerebras_jais.checkpoint import Checkpoint
from cerebras_jais.config.modelzoo_only import not_done_here
from cerebras_jais.config.trainer import TrainerConfig, without_effect_here
from cerebras_jais.data.dataset import HDF5Samples
from cerebras_jais.launch.phases import GIVEN, Start, next_phase, plan_phases
from cerebras_jais.launch.plan import (
    TrainingPlan,
    check_data,
    check_memory,
    known_end,
    missing_sections,
    plan_training,
    refuse_finished,
    say_to,
)
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.freeze import freeze_parameters
from cerebras_jais.optimizer.adamw import build_adamw
from cerebras_jais.optimizer.groups import groups_of, named_tensors
from cerebras_jais.optimizer.precision import plan_precision
from cerebras_jais.optimizer.schedule import beyond_schedules, check_schedules
from cerebras_jais.train.data_record import record_of
from cerebras_jais.train.evaluation import Evaluation, TrainedModel
from cerebras_jais.train.folder import RunFolder, only_process_in, remove_abandoned
from cerebras_jais.train.parallel import DistributedContext
from cerebras_jais.train.progress import CURVE_FILE, Reporter, curve_is_current, draw_curve, earlier_rows
from cerebras_jais.train.result import FitResult
from cerebras_jais.train.signals import Stopped, StopRequest, name_of
from cerebras_jais.train.state import (
    Run,
    TrainingProgress,
    check_checkpoint,
    check_same_data,
    load_position,
    load_weights,
    open_for_resume,
    step_of,
    write_checkpoint,
)
from cerebras_jais.train.steps import Interrupted, Steps, TrainingError


def fit(
    config: TrainerConfig,
    *,
    backend: str = "cpu",
    model_dir: str | Path | None = None,
    max_steps: int | None = None,
    checkpoint: str | Path | None = None,
    start: Start | None = None,
    activation_checkpointing: bool = False,
    compile_layers: bool = False,
    sharding: str = "ddp",
    progress: bool = True,
) -> FitResult:
    """Train as the YAML says and leave checkpoints, losses.csv, loss_curve.png and TensorBoard events in `model_dir`.

    Args:
        config: one trainer of the YAML.
        backend: "cpu" or "gpu".
        model_dir: instead of the YAML's.
        max_steps: the step to end at, instead of the YAML's num_steps, num_epochs and max_steps.
        checkpoint: the file to begin from, instead of the YAML's `ckpt_path` or the last one in `model_dir`.
        start: how to begin, where that has been decided already (a phase of a list, `recipes.phases`).
        activation_checkpointing: keep only each layer's input and compute the rest again, for memory.
        compile_layers: run each decoder layer through torch.compile.
        sharding: with several processes (torchrun), "ddp" or "fsdp".
        progress: show what happens.

    Everything that can be wrong with the input is found before the first file is written. A run that is stopped at any
    moment, by a signal, a crash or a power cut, and started again leaves the checkpoints and records of a run that was
    not, the times of its steps apart. SIGINT, SIGTERM and SIGHUP make it save the step that it has reached and raise
    Stopped; a second one raises it at once. That checkpoint is removed when the run has gone on to its next one.

    Raises:
        UserError: (one of its kinds) data, checkpoint and config that do not fit, a loss that is not finite, another
            process that trains in the folder; NothingLeft where the run is complete, Stopped after a signal.
    """
    processes = DistributedContext(backend, sharding)
    options = _Options(model_dir, max_steps, checkpoint, start, activation_checkpointing, compile_layers)
    say = say_to(progress and processes.is_first)
    try:
        with StopRequest(processes.world_size > 1) as stop, ExitStack() as until_done:
            trainer = _Trainer(config, processes, options, stop, until_done, say)
            result = trainer.run(progress)
            if stop.signum is not None:
                trainer.say_stopped()
    except BaseException:
        processes.close(after_error=True)
        raise
    processes.close()
    return result


@dataclass(frozen=True)
class _Options:
    model_dir: str | Path | None
    max_steps: int | None
    checkpoint: str | Path | None
    start: Start | None
    activation_checkpointing: bool
    compile_layers: bool


class _Trainer:
    """One run; made of checked parts, so that `run` only trains."""

    def __init__(
        self,
        config: TrainerConfig,
        processes: DistributedContext,
        options: _Options,
        stop: StopRequest,
        until_done: ExitStack,
        say: Callable[[str], Any],
    ):
        self.config, self.processes, self.options, self.stop, self.say = config, processes, options, stop, say
        for problem in [*not_done_here(config.aside), *missing_sections(config)]:
            raise TrainingError(config.message(problem))
        assert config.fit is not None
        self.model_dir = Path(options.model_dir or config.init.model_dir)
        self.until_done = until_done
        self.locked = False
        if self.model_dir.is_dir():
            self._lock()
        self.notes: list[str] = []
        self.precision = plan_precision(config.init.precision, processes.device.type, self.notes.append)
        self.started = options.start or self._find_start()
        with ExitStack() as opening:
            opened, states = None, set[str]()
            if self.started.checkpoint is not None:
                opened = opening.enter_context(open_for_resume(self.started.checkpoint))
                states = check_checkpoint(opened, config, self.started.states)
            self.start = 0 if opened is None else step_of(opened, states)
            begins, goes_on = self.started.begins, self.started.begins is not None
            begins = self.start if begins is None else begins
            self.folder = RunFolder(config, self.model_dir, begins, self.start if goes_on else None)
            self.rows = earlier_rows(self.model_dir, self.start) if processes.is_first else []
            ends = known_end(config.init.loop, begins, options.max_steps)
            if goes_on and ends is not None and ends <= self.start:
                self._refuse_complete(ends)
            self._open_data()
            if goes_on:
                self.plan = self._plan(begins)
                if self.plan.end <= self.start:
                    self._refuse_complete(self.plan.end)
            self._make(opened, states)
            if not goes_on:  # a checkpoint of another run is looked at as a whole before its step is
                self.plan = self._plan(begins)
        self.steps = Steps(
            self.run_state, self.trained, self.precision, stop, self.plan.batches_per_step, self.position.samples
        )
        self.notes += beyond_schedules(config.init.schedulers, self.position.scheduled + self.plan.end - self.start)

    def _plan(self, begins: int) -> TrainingPlan:
        init = self.config.init
        return plan_training(init.loop, init.checkpoint, self.data, begins, self.options.max_steps, self.config.source)

    def _find_start(self) -> Start:
        options = self.options
        phases = plan_phases(
            [self.config], model_dir=self.model_dir, max_steps=options.max_steps, checkpoint=options.checkpoint
        )
        return next_phase(phases, options.checkpoint)[1]

    def _lock(self) -> None:
        """Make sure that no other process trains here, and remove what one that was killed here has left."""
        self.locked = True
        if not self.processes.is_first:
            return
        self.until_done.enter_context(only_process_in(self.model_dir, self.say))
        remove_abandoned(self.config, self.model_dir, self.until_done)

    def _open_data(self) -> None:
        config = self.config
        assert config.fit is not None
        self.data = HDF5Samples(**config.fit.train_dataloader.reader_keys())
        self.held_out = [HDF5Samples(**section.reader_keys()) for section in config.fit.val_dataloader]
        for samples, key in [(self.data, "train_dataloader"), *((v, "val_dataloader") for v in self.held_out)]:
            check_data(samples, config.init.model, f"{config.source}: trainer.fit.{key}", self.processes.world_size)

    def _lacks_evaluation(self) -> bool:
        """Whether the process that wrote the checkpoint at hand died before the evaluation after it was recorded."""
        last = self.rows[-1] if self.rows else None
        return self._agreed(last is not None and int(last["step"]) == self.start and not last["eval_loss"])

    def _agreed(self, first: bool) -> bool:
        """What the first process says, in all of them."""
        said = torch.tensor([float(first and self.processes.is_first)], device=self.processes.device)
        return bool(self.processes.sum(said).item())

    def _refuse_complete(self, end: int) -> None:
        """Raise NothingLeft where a run is at its end; return where only its last evaluation is missing."""
        config = self.config
        assert config.fit is not None
        if self.started.begins is not None and end == self.start:
            if self.processes.is_first:
                self.folder.put_in_order(end)
            if config.fit.val_dataloader and config.init.loop.eval_frequency and self._lacks_evaluation():
                return
            if self.rows and not curve_is_current(self.model_dir):
                draw_curve(self.rows, self.model_dir / CURVE_FILE)
        refuse_finished(config.source, self.started.checkpoint, end)

    def _make(self, opened: Checkpoint | None, states: set[str]) -> None:
        """Model and optimizer, as they are at the start."""
        init, processes = self.config.init, self.processes
        assert init.optimizer is not None
        check_memory(init.model, processes.memory, self.config.source)
        seed = processes.common_seed(init.seed)
        if seed is not None:
            torch.manual_seed(seed)
        with processes.device:
            model = LanguageModel(init.model)
        model.model.activation_checkpointing = self.options.activation_checkpointing
        frozen = freeze_parameters(model, init.model.frozen_parameters)
        if frozen:
            self.notes.append(f"frozen: {len(frozen)} of {len(dict(model.named_parameters()))} tensors do not train")
        groups = groups_of(model, init.model, init.optimizer)
        check_schedules(init.schedulers, groups)
        if not init.schedulers and any(g.adjust_learning_rate not in (None, 1.0) for g in groups):
            self.notes.append(
                "no schedulers: the learning rate is the same for all parameters, as in the Model Zoo, which applies "
                "muP's scales to schedules only; a ConstantLR would have them"
            )
        optimizer = build_adamw(
            groups,
            named_tensors(model),
            learning_rate=init.optimizer.learning_rate or 0.0,
            betas=init.optimizer.betas,
            eps=init.optimizer.eps,
            correct_bias=init.optimizer.correct_bias,
            # Loss scaling leaves steps out, which a fused kernel would only notice after the fact.
            fused=self.precision.scaler is None,
        )
        record = record_of(self.data, self.held_out)
        self.position = TrainingProgress()
        if opened is not None:
            self.notes += check_same_data(opened, self.config, states, record)
            load_weights(opened, model, states, strict=not init.checkpoint.disable_strict_checkpoint_loading)
        if self.options.compile_layers:
            for layer in model.model.transformer_decoder.layers:
                layer.compile()
        self.trained: nn.Module
        self.trained, optimizer = processes.prepare(TrainedModel(model), optimizer)
        self.run_state = Run(self.config, model, optimizer, groups, self.data, self.precision.scaler, processes, record)
        if opened is not None:
            self.position = load_position(opened, self.run_state, states)
            loaded = ", ".join(sorted(states))
            self.notes.append(f"continuing from {opened.path}: {loaded} at step {self.position.step}")

    # ---- the run ---------------------------------------------------------------------------------------------------

    def run(self, progress: bool) -> FitResult:
        init, plan, first = self.config.init, self.plan, self.processes.is_first
        began = time.perf_counter()
        self.stop.wait()
        if not self.locked:
            self.model_dir.mkdir(parents=True, exist_ok=True)
            self._lock()
        if first:
            self.folder.put_in_order(self.start)
        for line in self._opening(plan):
            self.say(line)
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.norms: list[float] = []
        goes_on = self.started.begins is not None
        again = goes_on and bool(self.held_out) and self.start in plan.evaluation_steps and self._lacks_evaluation()
        self.reporter = Reporter(
            self.model_dir,
            self.rows,
            plan.begins,
            self.start,
            plan.end,
            again=again,
            log_steps=init.logging.log_steps,
            tensorboard=not self.config.switched_off("TensorBoardLogger"),
            events_dir=self.config.logger("TensorBoardLogger").get("summary_dir"),
            quiet=not (progress and first),
            writes=first,
        )
        evaluations: list[Evaluation] = []
        self.saved: Path | None = None
        # The step of the last checkpoint, or of none, since fresh weights come back by themselves.
        self.saved_step = self.start
        try:
            if init.checkpoint.save_initial_checkpoint and not goes_on:
                self._save()
            if again:
                evaluations = self._evaluate(self.start)
            for step in range(self.start, plan.end):
                self._step(step)
                if step + 1 in plan.checkpoint_steps:
                    self._save()
                if self.held_out and step + 1 in plan.evaluation_steps:
                    evaluations = self._evaluate(step + 1)
        except Interrupted:
            if self.position.step > self.saved_step:
                self.reporter.say(f"step {self.position.step}: a signal came; saving (a second one ends this at once)")
                self._save(interrupted=True)
            self.say_stopped()
        finally:
            self.reporter.close()
        return FitResult(
            start_step=self.start,
            steps=self.position.step,
            losses=self.losses,
            learning_rates=self.rates,
            gradient_norms=self.norms,
            evaluations=evaluations,
            checkpoint_path=self.saved,
            model_dir=self.model_dir,
            tokens=self.reporter.tokens,
            tokens_per_second=self.reporter.tokens_per_second,
            seconds=time.perf_counter() - began,
        )

    def say_stopped(self) -> NoReturn:
        """Raise Stopped, which says what is kept and how to go on."""
        step, end = self.position.step, self.plan.end
        signum = self.stop.signum or signal.SIGTERM  # another process may have had it
        if step == end:
            how = "the run is complete"
        else:
            section, fit_section = self.config.init.checkpoint, self.config.fit
            named = fit_section.ckpt_path if fit_section is not None else None
            goes_back = named is not None and Path(named).resolve().parent in self.folder.folders
            how = "to go on give the same command again"
            if self.saved is not None and (not section.autoload_last_checkpoint or goes_back):
                how = f"to go on give --checkpoint {self.saved}"
            elif self.started.why == GIVEN:
                how += " without --checkpoint"
        raise Stopped(f"stopped by {name_of(signum)} after step {step} of {end}; {self.stop.saved}; {how}", signum)

    def _opening(self, plan: TrainingPlan) -> list[str]:
        without = without_effect_here(self.config)
        parameters = sum(p.numel() for p in self.run_state.model.parameters())
        lines = [f"without effect here (they concern CS systems): {', '.join(without)}"] if without else []
        several = f", {self.processes.world_size} processes ({self.processes.sharding})"
        samples = self.data.batch_size * plan.batches_per_step
        return [
            *lines,
            *self.notes,
            f"{self.config.init.model.name}: {parameters:,} parameters on {self.processes.device.type} in "
            f"{self.precision.name}{several if self.processes.world_size > 1 else ''}; steps {self.start + 1} to "
            f"{plan.end}, {samples} samples of {self.data.sequence_length} tokens each",
        ]

    def _step(self, step: int) -> None:
        began = time.perf_counter()
        done = self.steps.take(step, step - self.start, self.position.scheduled)
        self.position = TrainingProgress(step + 1, self.position.samples + done.samples, self.position.scheduled + 1)
        self.losses.append(done.loss)
        self.rates.append(done.learning_rate)
        self.norms.append(done.gradient_norm)
        self.reporter.step(step + 1, done.loss, done.learning_rate, done.tokens, time.perf_counter() - began)

    def _save(self, *, interrupted: bool = False) -> None:
        """Write a checkpoint; the records of the steps up to it are on the disk before it is."""
        path = self.folder.new_path(self.position.step, interrupted=interrupted)
        self.reporter.flush()
        write_checkpoint(path, self.run_state, self.position, self.plan.begins, overwrite=interrupted)
        self.saved, self.saved_step = path, self.position.step
        self.stop.saved = f"{path} is kept"
        if self.processes.is_first:
            self.folder.put_in_order(self.position.step)
            self.reporter.say(f"checkpoint {path}")

    def _evaluate(self, step: int) -> list[Evaluation]:
        results = [self.steps.evaluate(samples) for samples in self.held_out]
        for number, result in enumerate(results):
            self.reporter.evaluation(step, number, result.loss, result.perplexity, result.accuracy)
        self.reporter.flush()
        return results
