"""`fit`: run a Model Zoo trainer YAML on a CPU or GPU, step by step as the Model Zoo's trainer does.

Source: Model Zoo trainer/trainer.py, trainer/callbacks/{loop,run_schedule,grad_accum,loss,checkpoint}.py of 2.10.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cerebras_jais.checkpoint import Checkpoint
from cerebras_jais.data.hdf5 import HDF5Samples
from cerebras_jais.errors import UserError
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.freeze import freeze_parameters
from cerebras_jais.recipes.aside import not_done_here
from cerebras_jais.recipes.phases import Start, first_work, lay_out
from cerebras_jais.recipes.schema import TrainerConfig
from cerebras_jais.recipes.yaml_source import dotted
from cerebras_jais.train.evaluation import Evaluation, TrainedModel, evaluation_of
from cerebras_jais.train.groups import ParameterGroup, groups_of, named_tensors
from cerebras_jais.train.optimizer import AdamW, build_adamw
from cerebras_jais.train.parallel import Processes
from cerebras_jais.train.plan import (
    TrainingPlan,
    check_data,
    check_memory,
    missing_sections,
    plan_training,
    refuse_finished,
    say_to,
)
from cerebras_jais.train.precision import plan_precision
from cerebras_jais.train.progress import Reporter
from cerebras_jais.train.schedule import check_schedules, learning_rates
from cerebras_jais.train.state import (
    Position,
    Run,
    check_checkpoint,
    checkpoint_path,
    load_position,
    load_weights,
    note_in_index,
    open_for_resume,
    write_checkpoint,
)

_REMEDIES = "A lower learning rate, a longer warm-up, max_gradient_norm or another precision may help"


class TrainingError(UserError):
    """A run that cannot go on."""


@dataclass(frozen=True)
class FitResult:
    """What a run did. Losses in nats, the largest learning rate and the norm of all gradients before clipping are of
    each step from `start_step` on, evaluations of the end of the run."""

    start_step: int
    steps: int
    losses: list[float] = field(repr=False)
    learning_rates: list[float] = field(repr=False)
    gradient_norms: list[float] = field(repr=False)
    evaluations: list[Evaluation]
    checkpoint_path: Path | None
    model_dir: Path
    tokens: int
    tokens_per_second: float
    seconds: float

    @property
    def first_loss(self) -> float:
        return self.losses[0]

    @property
    def last_loss(self) -> float:
        return self.losses[-1]

    @property
    def eval_loss(self) -> float | None:
        """Held-out loss on the first data set, None without one."""
        return self.evaluations[0].loss if self.evaluations else None


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

    Everything that can be wrong with the input is found before the first file is written. A run that is killed and
    started again gives, from its last checkpoint on, the losses of a run that was not.

    Raises:
        UserError: (one of its kinds) data, checkpoint and config that do not fit, a loss that is not finite.
    """
    processes = Processes(backend, sharding)
    try:
        options = _Options(model_dir, max_steps, checkpoint, start, activation_checkpointing, compile_layers)
        result = _Trainer(config, processes, options).run(progress)
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

    def __init__(self, config: TrainerConfig, processes: Processes, options: _Options):
        self.config, self.processes, self.options = config, processes, options
        init = config.init
        for keys, missing in [*not_done_here(config), *missing_sections(config)]:
            raise TrainingError(f"{config.source}: {dotted(('trainer', *keys))}: {missing}")
        assert config.fit is not None and init.optimizer is not None
        self.model_dir = Path(options.model_dir or init.model_dir)
        self.notes: list[str] = []
        self.precision = plan_precision(init.precision, processes.device.type, self.notes.append)

        start = options.start
        if start is None:
            phases = lay_out(
                [config], model_dir=self.model_dir, max_steps=options.max_steps, checkpoint=options.checkpoint
            )
            finished, start = first_work(phases, options.checkpoint)
            if finished and options.checkpoint is None:  # one that is named is looked at before its step
                refuse_finished(phases[0], start)

        self.data = HDF5Samples(**config.fit.train_dataloader.reader_keys())
        self.held_out = [HDF5Samples(**section.reader_keys()) for section in config.fit.val_dataloader]
        for samples, key in [(self.data, "train_dataloader"), *((v, "val_dataloader") for v in self.held_out)]:
            check_data(samples, init.model, f"{config.source}: trainer.fit.{key}", processes.world_size)

        check_memory(init.model, processes.memory, config.source)
        seed = processes.common_seed(init.seed)
        if seed is not None:
            torch.manual_seed(seed)
        with processes.device:
            model = LanguageModel(init.model)
        model.model.activation_checkpointing = options.activation_checkpointing
        frozen = freeze_parameters(model, init.model.frozen_parameters)
        if frozen:
            self.notes.append(f"frozen: {len(frozen)} of {len(dict(model.named_parameters()))} tensors do not train")
        optimizer_section = init.optimizer
        groups = groups_of(model, init.model, optimizer_section)
        check_schedules(init.schedulers, groups)
        if not init.schedulers and any(g.adjust_learning_rate not in (None, 1.0) for g in groups):
            self.notes.append(
                "no schedulers: the learning rate is the same for all parameters, as in the Model Zoo, which applies "
                "muP's scales to schedules only; a ConstantLR would have them"
            )
        optimizer = build_adamw(
            groups,
            named_tensors(model),
            learning_rate=optimizer_section.learning_rate or 0.0,
            betas=optimizer_section.betas,
            eps=optimizer_section.eps,
            correct_bias=optimizer_section.correct_bias,
            # Loss scaling leaves steps out, which a fused kernel would only notice after the fact.
            fused=self.precision.scaler is None,
        )
        if start.checkpoint is None:
            self._assemble(model, optimizer, groups)
            self.position = Position()
        else:
            with open_for_resume(start.checkpoint) as opened:
                self._resume(opened, start.states, model, optimizer, groups)
        self.start_sample = self.position.samples
        self.plan = plan_training(
            init.loop, init.checkpoint, self.data, self.position.step, options.max_steps, config.source
        )

    def _assemble(self, model: LanguageModel, optimizer: AdamW, groups: Sequence[ParameterGroup]) -> None:
        if self.options.compile_layers:
            for layer in model.model.transformer_decoder.layers:
                layer.compile()
        self.trained: nn.Module
        self.trained, optimizer = self.processes.prepare(TrainedModel(model), optimizer)
        self.run_state = Run(self.config, model, optimizer, groups, self.data, self.precision.scaler, self.processes)

    def _resume(
        self,
        opened: Checkpoint,
        wanted: Sequence[str] | None,
        model: LanguageModel,
        optimizer: AdamW,
        groups: Sequence[ParameterGroup],
    ) -> None:
        states = check_checkpoint(opened, self.config, wanted)
        strict = not self.config.init.checkpoint.disable_strict_checkpoint_loading
        load_weights(opened, model, states, strict=strict)
        self._assemble(model, optimizer, groups)
        self.position = load_position(opened, self.run_state, states)
        self.notes.append(f"continuing from {opened.path}: {', '.join(sorted(states))} at step {self.position.step}")

    # ---- the run ---------------------------------------------------------------------------------------------------

    def run(self, progress: bool) -> FitResult:
        init, plan, first = self.config.init, self.plan, self.processes.is_first
        began = time.perf_counter()
        say = say_to(progress and first)
        for line in self._opening(plan):
            say(line)
        self.kept: list[Path] = []
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.norms: list[float] = []
        self.reporter = Reporter(
            self.model_dir,
            plan.start,
            plan.end,
            log_steps=init.logging.log_steps,
            tensorboard=not self.config.switched_off("TensorBoardLogger"),
            events_dir=self.config.logger("TensorBoardLogger").get("summary_dir"),
            quiet=not (progress and first),
            writes=first,
        )
        evaluations: list[Evaluation] = []
        saved: Path | None = None
        try:
            if init.checkpoint.save_initial_checkpoint:
                saved = self._save()
            for step in range(plan.start, plan.end):
                self._step(step)
                if step + 1 in plan.checkpoint_steps:
                    saved = self._save()
                if self.held_out and step + 1 in plan.evaluation_steps:
                    evaluations = self._evaluate(step + 1)
        finally:
            self.reporter.close()
        return FitResult(
            start_step=plan.start,
            steps=self.position.step,
            losses=self.losses,
            learning_rates=self.rates,
            gradient_norms=self.norms,
            evaluations=evaluations,
            checkpoint_path=saved,
            model_dir=self.model_dir,
            tokens=self.reporter.tokens,
            tokens_per_second=self.reporter.tokens_per_second,
            seconds=time.perf_counter() - began,
        )

    def _opening(self, plan: TrainingPlan) -> list[str]:
        without = self.config.without_effect_here()
        parameters = sum(p.numel() for p in self.run_state.model.parameters())
        lines = [f"without effect here (they concern CS systems): {', '.join(without)}"] if without else []
        several = f", {self.processes.world_size} processes ({self.processes.sharding})"
        samples = self.data.batch_size * plan.batches_per_step
        return [
            *lines,
            *self.notes,
            f"{self.config.init.model.name}: {parameters:,} parameters on {self.processes.device.type} in "
            f"{self.precision.name}{several if self.processes.world_size > 1 else ''}; steps {plan.start + 1} to "
            f"{plan.end}, {samples} samples of {self.data.sequence_length} tokens each",
        ]

    def _step(self, step: int) -> None:
        began = time.perf_counter()
        plan, run, optimizer = self.plan, self.run_state, self.run_state.optimizer
        assert self.config.init.optimizer is not None
        constant = self.config.init.optimizer.learning_rate
        rates = learning_rates(self.config.init.schedulers, run.groups, constant, self.position.scheduled)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.trained.train()
        total, tokens, samples = torch.zeros((), dtype=torch.float64), 0, 0
        for part in range(plan.batches_per_step):
            index = (step - plan.start) * plan.batches_per_step + part
            with self.precision.whole_step():
                loss, part_tokens, part_samples = self._forward_backward(step, index, part)
            total += loss
            tokens, samples = tokens + part_tokens, samples + part_samples
        mean = float(total) / plan.batches_per_step
        if not math.isfinite(mean) and not self.config.switched_off("CheckLoss"):
            raise TrainingError(f"loss is {mean} at step {step + 1}; nothing of this step was kept. {self._why(step)}")
        norm = self._clip(optimizer)
        # An update with such gradients would make every weight NaN. A loss scale leaves the update out by itself.
        if not math.isfinite(norm) and self.precision.scaler is None and not self.config.switched_off("CheckLoss"):
            raise TrainingError(
                f"the norm of the gradients is {norm} at step {step + 1} (its loss is {mean:.6g}); nothing of this "
                f"step was kept. {_REMEDIES}"
            )
        self._update(optimizer)
        self.norms.append(norm)
        self.position = Position(step + 1, self.position.samples + samples, self.position.scheduled + 1)
        self.losses.append(mean)
        self.rates.append(max(rates))
        self.reporter.step(step + 1, mean, max(rates), tokens, time.perf_counter() - began)

    def _why(self, step: int) -> str:
        """What may have made the loss of a step infinite or NaN, and what to do."""
        plan = self.plan
        for part in range(plan.batches_per_step):
            index = (step - plan.start) * plan.batches_per_step + part
            batch = self.data.batch(index, start_sample=self.start_sample)
            if self.config.init.model.loss_scaling == "num_tokens" and not batch["attention_mask"].any():
                assert self.config.fit is not None
                loader = self.config.fit.train_dataloader
                where = loader.data_dir or "the mixture"
                return (
                    f"The loss mask of a whole batch of {where} is empty, so there is nothing to take a mean over; "
                    "leave out samples without a trained token, or use a larger batch_size"
                )
        return _REMEDIES

    def _forward_backward(self, step: int, index: int, part: int) -> tuple[float, int, int]:
        """Gradients of one batch are added up; returns its loss, tokens and samples, all of them over all processes."""
        processes, plan = self.processes, self.plan
        # Dropout draws from the step, not from a generator that a resumed run would have to restore.
        model = self.config.init.model
        if model.dropout_rate or model.attention_dropout or model.embedding_dropout:
            seed = [self.config.init.seed or 0, step, part, processes.rank]
            torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        batch = self._tensors(self.data, index, self.start_sample)
        weight = 1.0
        if processes.world_size > 1:
            weight = self._weight_among_processes(batch, index)
        with processes.accumulating(self.trained, last=part + 1 == plan.batches_per_step):
            with self.precision.autocast():
                loss = self.trained(batch)
            # DDP and FSDP average gradients over processes.
            scaled = loss * (weight / plan.batches_per_step) if weight != 1 or plan.batches_per_step > 1 else loss
            if self.precision.scaler is not None:
                scaled = self.precision.scaler.scale(scaled)
            scaled.backward()
        sums = torch.tensor(
            [float(loss.detach()) * weight / processes.world_size, self._own_rows(index) * self.data.sequence_length],
            dtype=torch.float64,
            device=processes.device,
        )
        value, tokens = processes.sum(sums).tolist()
        # Counted from the order, not from the rows at hand, which padding may have added.
        return value, int(tokens), len(self.data.order.batch_indices(index, self.start_sample))

    def _own_rows(self, index: int) -> int:
        """How many samples of a batch are this process's, without the rows of padding that its tensors may have."""
        world_size, rank = self.processes.world_size, self.processes.rank
        real = len(self.data.order.batch_indices(index, self.start_sample))
        shared_out = self.data.batch_size if self.data.pad_last else real
        first, last = rank * shared_out // world_size, (rank + 1) * shared_out // world_size
        return max(0, min(last, real) - first)

    def _weight_among_processes(self, batch: dict[str, Tensor], index: int) -> float:
        """What this process's loss counts, so that the mean over processes is the loss of the whole batch."""
        world_size, rank = self.processes.world_size, self.processes.rank
        if self.config.init.model.loss_scaling == "num_tokens":
            own = batch["attention_mask"].sum(dtype=torch.float64)
            every = self.processes.sum(own.clone())
            if own == 0 and every > 0:
                batch["attention_mask"] = batch["attention_mask"].clone()
                batch["attention_mask"][0, 0] = 1  # 0 / 0 otherwise; its weight is zero
            return float(own / every) * world_size
        rows = len(self.data.order.batch_indices(index, self.start_sample))
        rows = self.data.batch_size if self.data.pad_last else rows
        share = (rank + 1) * rows // world_size - rank * rows // world_size
        return share / rows * world_size

    def _clip(self, optimizer: AdamW) -> float:
        """Unscale and clip the gradients; returns the norm of all of them before clipping."""
        if self.precision.scaler is not None:
            self.precision.scaler.unscale_(optimizer)
        return self.precision.clip([p for group in optimizer.param_groups for p in group["params"]])

    def _update(self, optimizer: AdamW) -> None:
        scaler = self.precision.scaler
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _save(self) -> Path:
        path = checkpoint_path(self.config, self.model_dir, self.position.step)
        write_checkpoint(path, self.run_state, self.position)
        if self.processes.is_first:
            keep = (self.config.callback("KeepNCheckpoints") or {}).get("n")
            self.kept.append(path)
            removed = self.kept.pop(0) if keep and len(self.kept) > keep else None
            if removed is not None:
                removed.unlink(missing_ok=True)
            note_in_index(self.model_dir, path, removed)
            self.reporter.flush()
            self.reporter.say(f"checkpoint {path}")
        return path

    @torch.no_grad()
    def _evaluate(self, step: int) -> list[Evaluation]:
        self.trained.eval()
        results = []
        for number, samples in enumerate(self.held_out):
            total = torch.zeros(3, dtype=torch.float64, device=self.processes.device)
            batches = min(samples.batches_per_epoch, self.config.init.loop.eval_steps or samples.batches_per_epoch)
            for index in range(batches):
                with self.precision.whole_step(), self.precision.autocast():
                    total += self.trained(self._tensors(samples, index, 0), measure=True)
            result = evaluation_of(self.processes.sum(total))
            self.reporter.evaluation(step, number, result.loss, result.perplexity, result.accuracy)
            results.append(result)
        return results

    def _tensors(self, samples: HDF5Samples, index: int, start_sample: int) -> dict[str, Tensor]:
        """This process's share of a batch, int32 [B, L] by feature, on the device."""
        arrays: Mapping[str, np.ndarray] = samples.batch(
            index, rank=self.processes.rank, world_size=self.processes.world_size, start_sample=start_sample
        )
        if not len(arrays["input_ids"]):  # a short last batch may leave a process without a share
            arrays = {name: np.zeros((1, samples.sequence_length), dtype=np.int32) for name in arrays}
        return {name: torch.from_numpy(array).to(self.processes.device) for name, array in arrays.items()}
