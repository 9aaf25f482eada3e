"""One optimizer step of a run, and one evaluation, in all its processes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cerebras_jais.data.dataset import HDF5Samples
from cerebras_jais.errors import UserError
from cerebras_jais.optimizer.adamw import AdamW
from cerebras_jais.optimizer.precision import PrecisionPlan
from cerebras_jais.optimizer.schedule import learning_rates
from cerebras_jais.train.evaluation import Evaluation, evaluation_of
from cerebras_jais.train.signals import StopRequest
from cerebras_jais.train.state import Run

_REMEDIES = "A lower learning rate, a longer warm-up, max_gradient_norm or another precision may help"


class TrainingError(UserError):
    """A run that cannot continue."""


class Interrupted(Exception):
    """A step or an evaluation that is abandoned because of a signal."""


@dataclass(frozen=True)
class StepResult:
    """Of one step: mean loss in nats, largest learning rate, norm of the gradients before clipping, what it read."""

    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    samples: int


class Steps:
    """The steps of a run from where it begins or continues.

    Args:
        run: model, optimizer and data.
        trained: its model behind what keeps several processes in step.
        precision: what it computes in.
        stop: where signals are noted; between two batches a step or an evaluation is abandoned for one.
        batches: how many make a step.
        start_sample: samples consumed before the first of these steps.
    """

    def __init__(
        self,
        run: Run,
        trained: nn.Module,
        precision: PrecisionPlan,
        stop: StopRequest,
        batches: int,
        start_sample: int,
    ):
        self.run, self.trained, self.precision, self.stop = run, trained, precision, stop
        self.batches, self.start_sample = batches, start_sample
        self.config, self.processes, self.data = run.config, run.processes, run.data

    def take(self, step: int, number: int, scheduled: int) -> StepResult:
        """The step that follows `step` finished ones, the one of that number since the run went on, from 0.

        Args:
            scheduled: steps that the schedules have done.

        Raises:
            TrainingError: a loss or gradients that are not finite.
            Interrupted: a signal came; weights and optimizer are as before.
        """
        run, optimizer = self.run, self.run.optimizer
        assert self.config.init.optimizer is not None
        constant = self.config.init.optimizer.learning_rate
        rates = learning_rates(self.config.init.schedulers, run.groups, constant, scheduled)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.trained.train()
        total, tokens, samples = torch.zeros((), dtype=torch.float64), 0, 0
        for part in range(self.batches):
            index = number * self.batches + part
            with self.precision.whole_step():
                loss, part_tokens, part_samples = self._forward_backward(step, index, part)
            total += loss
            tokens, samples = tokens + part_tokens, samples + part_samples
        mean = float(total) / self.batches
        if not math.isfinite(mean) and not self.config.switched_off("CheckLoss"):
            raise TrainingError(
                f"loss is {mean} at step {step + 1}; nothing of this step was kept. {self._why(number)}"
            )
        norm = self._clip(optimizer)
        # An update with such gradients would make every weight NaN. A loss scale leaves the update out by itself.
        if not math.isfinite(norm) and self.precision.scaler is None and not self.config.switched_off("CheckLoss"):
            raise TrainingError(
                f"the norm of the gradients is {norm} at step {step + 1} (its loss is {mean:.6g}); nothing of this "
                f"step was kept. {_REMEDIES}"
            )
        self._update(optimizer)
        return StepResult(mean, max(rates), norm, tokens, samples)

    def _why(self, number: int) -> str:
        """What may have made the loss of a step infinite or NaN, and what to do."""
        for part in range(self.batches):
            index = number * self.batches + part
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
        processes = self.processes
        if processes.world_size == 1:
            self._abandon_if(self.stop.signum is not None)
        # Dropout draws from the step, not from a generator that a resumed run would have to restore.
        model = self.config.init.model
        if model.dropout_rate or model.attention_dropout or model.embedding_dropout:
            seed = [self.config.init.seed or 0, step, part, processes.rank]
            torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        batch = self._tensors(self.data, index, self.start_sample)
        weight = 1.0
        if processes.world_size > 1:
            weight = self._weight_among_processes(batch, index)
        with processes.accumulating(self.trained, last=part + 1 == self.batches):
            with self.precision.autocast():
                loss = self.trained(batch)
            # DDP and FSDP average gradients over processes.
            scaled = loss * (weight / self.batches) if weight != 1 or self.batches > 1 else loss
            if self.precision.scaler is not None:
                scaled = self.precision.scaler.scale(scaled)
            scaled.backward()
        sums = torch.tensor(
            [
                float(loss.detach()) * weight / processes.world_size,
                self._own_rows(index) * self.data.sequence_length,
                self.stop.signum is not None,
            ],
            dtype=torch.float64,
            device=processes.device,
        )
        value, tokens, stops = processes.sum(sums).tolist()
        self._abandon_if(stops > 0)  # in all processes at the same place
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

    def _abandon_if(self, stops: bool) -> None:
        if stops:
            raise Interrupted

    @torch.no_grad()
    def evaluate(self, samples: HDF5Samples) -> Evaluation:
        """Loss and accuracy on held-out data, of the first `eval_steps` batches. Raises Interrupted."""
        self.trained.eval()
        total = torch.zeros(3, dtype=torch.float64, device=self.processes.device)
        batches = min(samples.batches_per_epoch, self.config.init.loop.eval_steps or samples.batches_per_epoch)
        for index in range(batches):
            if self.processes.world_size == 1:
                self._abandon_if(self.stop.signum is not None)
            with self.precision.whole_step(), self.precision.autocast():
                total += self.trained(self._tensors(samples, index, 0), evaluate=True)
        return evaluation_of(self.processes.sum(total))

    def _tensors(self, samples: HDF5Samples, index: int, start_sample: int) -> dict[str, Tensor]:
        """This process's share of a batch, int32 [B, L] by feature, on the device."""
        arrays: Mapping[str, np.ndarray] = samples.batch(
            index, rank=self.processes.rank, world_size=self.processes.world_size, start_sample=start_sample
        )
        if not len(arrays["input_ids"]):  # a short last batch may leave a process without a share
            arrays = {name: np.zeros((1, samples.sequence_length), dtype=np.int32) for name in arrays}
        return {name: torch.from_numpy(array).to(self.processes.device) for name, array in arrays.items()}
