"""`fit`: run a phase of a Model Zoo trainer YAML on a CPU or GPU, step by step as the Model Zoo's trainer does.

Source: Model Zoo trainer/trainer.py, trainer/callbacks/{loop,run_schedule,grad_accum,loss,checkpoint}.py of 2.10.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from cerebras_jais.config.trainer import without_effect_here
from cerebras_jais.launch.phases import Phase, ckpt_path_of
from cerebras_jais.launch.start import GIVEN, Start
from cerebras_jais.train.evaluation import Evaluation
from cerebras_jais.train.folder import only_process_in, remove_abandoned
from cerebras_jais.train.parallel import DistributedContext
from cerebras_jais.train.progress import Reporter
from cerebras_jais.train.result import FitResult
from cerebras_jais.train.setup import FitOptions, Prepared, prepare
from cerebras_jais.train.signals import Stopped, StopRequest, name_of
from cerebras_jais.train.state import TrainingProgress, write_checkpoint
from cerebras_jais.train.steps import Interrupted

__all__ = ["FitOptions", "fit"]


def fit(phase: Phase, start: Start, options: FitOptions) -> FitResult:
    """Train a phase and leave checkpoints, losses.csv, loss_curve.png and TensorBoard events in its `model_dir`.

    Args:
        phase: what to run, as planned (`launch.start`).
        start: how it begins, as planned.
        options: how it is run on this machine.

    Everything that can be wrong with the input is found before the first file is written. A run that is stopped at any
    moment, by a signal, a crash or a power cut, and started again leaves the checkpoints and records of a run that was
    not, the times of its steps apart. SIGINT, SIGTERM and SIGHUP make it save the step that it has reached and raise
    Stopped; a second one raises it at once. That checkpoint is removed when the run has written its next one.

    Raises:
        UserError: (one of its kinds) data, checkpoint and config that do not fit, a loss that is not finite, another
            process that trains in the folder; NothingLeft where the run is complete, Stopped after a signal.
    """
    processes = DistributedContext(options.backend, options.sharding)
    log = _logger(options.progress and processes.is_first)
    try:
        result = _prepare_and_run(phase, start, options, processes, log)
    except BaseException as error:
        cause = processes.explained(error)
        processes.close(after_error=True)
        if cause is error:
            raise
        raise cause from error
    processes.close()
    return result


def _prepare_and_run(
    phase: Phase, start: Start, options: FitOptions, processes: DistributedContext, log: Callable[[str], None]
) -> FitResult:
    """Do what `fit` does; the model is gone when this returns, before the processes leave their group."""
    with StopRequest(processes.world_size > 1) as stop, ExitStack() as until_done:
        locked = phase.model_dir.is_dir()
        if locked:
            _lock(phase, processes, until_done, log)
        prepared = prepare(phase, start, options, processes, stop)
        stop.wait()
        if processes.is_first:
            prepared.folder.try_to_write(prepared.plan.end)
        if not locked:
            phase.model_dir.mkdir(parents=True, exist_ok=True)
            _lock(phase, processes, until_done, log)
        trainer = _Trainer(prepared, stop, log)
        result = trainer.run(options.progress)
        if stop.signum is not None:
            trainer.report_stopped()
    return result


def _logger(aloud: bool) -> Callable[[str], None]:
    """A function that prints one line to standard error, or does nothing."""
    return (lambda line: print(line, file=sys.stderr, flush=True)) if aloud else (lambda line: None)


def _lock(phase: Phase, processes: DistributedContext, until_done: ExitStack, log: Callable[[str], None]) -> None:
    """Make sure that no other process trains in the folder, and remove what one that was killed there has left."""
    if processes.is_first:
        until_done.enter_context(only_process_in(phase.model_dir, log))
        remove_abandoned(phase.config, phase.model_dir, until_done)


class _Trainer:
    """A prepared run while it trains: its position and what it has recorded."""

    def __init__(self, prepared: Prepared, stop: StopRequest, log: Callable[[str], None]):
        self.prepared, self.stop, self.log = prepared, stop, log
        self.start, self.position = prepared.position.step, prepared.position
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.norms: list[float] = []
        self.saved: Path | None = None
        # The step of the last checkpoint, or of none, since fresh weights come back by themselves.
        self.saved_step = self.start

    def run(self, progress: bool) -> FitResult:
        prepared = self.prepared
        init, plan, first = prepared.config.init, prepared.plan, prepared.processes.is_first
        began = time.perf_counter()
        if first:
            prepared.folder.put_in_order(self.start)
        for line in self._opening():
            self.log(line)
        self.reporter = Reporter(
            prepared.phase.model_dir,
            prepared.rows,
            plan.begins,
            self.start,
            plan.end,
            again=prepared.lacks_evaluation,
            log_steps=init.logging.log_steps,
            tensorboard=not prepared.config.switched_off("TensorBoardLogger"),
            events_dir=prepared.config.logger("TensorBoardLogger").get("summary_dir"),
            quiet=not (progress and first),
            writes=first,
        )
        evaluations: list[Evaluation] = []
        try:
            if init.checkpoint.save_initial_checkpoint and not prepared.goes_on:
                self._save()
            if prepared.lacks_evaluation:
                evaluations = self._evaluate(self.start)
            for step in range(self.start, plan.end):
                self._step(step)
                if step + 1 in plan.checkpoint_steps:
                    self._save()
                if prepared.held_out and step + 1 in plan.evaluation_steps:
                    evaluations = self._evaluate(step + 1)
        except Interrupted:
            if self.position.step > self.saved_step:
                self.reporter.log(
                    f"step {self.position.step}: signal received; saving a checkpoint (a second signal stops at once)"
                )
                self._save(interrupted=True)
            self.report_stopped()
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
            model_dir=prepared.phase.model_dir,
            tokens=self.reporter.tokens,
            tokens_per_second=self.reporter.tokens_per_second,
            seconds=time.perf_counter() - began,
        )

    def report_stopped(self) -> NoReturn:
        """Raise Stopped, which says what is kept and how to continue."""
        prepared, step, end = self.prepared, self.position.step, self.prepared.plan.end
        signum = self.stop.signum or signal.SIGTERM  # another process may have had it
        if step == end:
            how = "the run is complete"
        else:
            section, named = prepared.config.init.checkpoint, ckpt_path_of(prepared.config)
            goes_back = named is not None and Path(named).resolve().parent in prepared.folder.folders
            how = "to continue give the same command again"
            if self.saved is not None and (not section.autoload_last_checkpoint or goes_back):
                how = f"to continue give --checkpoint {self.saved}"
            elif prepared.start.why == GIVEN:
                how += " without --checkpoint"
        raise Stopped(f"stopped by {name_of(signum)} after step {step} of {end}; {self.stop.saved}; {how}", signum)

    def _opening(self) -> list[str]:
        prepared, processes, data = self.prepared, self.prepared.processes, self.prepared.run.data
        without = without_effect_here(prepared.config)
        parameters = sum(p.numel() for p in prepared.run.model.parameters())
        lines = [f"no effect on a CPU or GPU: {', '.join(without)}"] if without else []
        several = f", {processes.world_size} processes ({processes.sharding})" if processes.world_size > 1 else ""
        samples = data.batch_size * prepared.plan.batches_per_step
        return [
            *lines,
            *prepared.notes,
            f"{prepared.config.init.model.name}: {parameters:,} parameters on {processes.device.type} in "
            f"{prepared.precision.name}{several}; steps {self.start + 1} to {prepared.plan.end}, {samples} samples of "
            f"{data.sequence_length} tokens each",
        ]

    def _step(self, step: int) -> None:
        began = time.perf_counter()
        done = self.prepared.steps.take(step, step - self.start, self.position.scheduled)
        self.position = TrainingProgress(step + 1, self.position.samples + done.samples, self.position.scheduled + 1)
        self.losses.append(done.loss)
        self.rates.append(done.learning_rate)
        self.norms.append(done.gradient_norm)
        self.reporter.step(step + 1, done.loss, done.learning_rate, done.tokens, time.perf_counter() - began)

    def _save(self, *, interrupted: bool = False) -> None:
        """Write a checkpoint; the records of the steps up to it are on the disk before it is."""
        prepared = self.prepared
        path = prepared.folder.new_path(self.position.step, interrupted=interrupted)
        self.reporter.flush()
        write_checkpoint(path, prepared.run, self.position, prepared.plan.begins, overwrite=interrupted)
        self.saved, self.saved_step = path, self.position.step
        self.stop.saved = f"{path} is kept"
        if prepared.processes.is_first:
            prepared.folder.put_in_order(self.position.step)
            self.reporter.log(f"checkpoint {path}")

    def _evaluate(self, step: int) -> list[Evaluation]:
        results = [self.prepared.steps.evaluate(samples) for samples in self.prepared.held_out]
        for number, result in enumerate(results):
            self.reporter.evaluation(step, number, result.loss, result.perplexity, result.accuracy)
        self.reporter.flush()
        return results
