"""One process or several: ranks, sums and sharding, by Hugging Face accelerate and PyTorch's DDP or FSDP.

`torchrun` sets WORLD_SIZE and the rest; a run without it is one process and never imports accelerate.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cerebras_jais.errors import UserError
from cerebras_jais.launch.plan import machine_memory
from cerebras_jais.model.decoder import DecoderLayer
from cerebras_jais.optimizer.adamw import AdamW


class DistributedContext:
    """This process among those of the run.

    Raises UserError for a GPU that is not there and for sharding that this PyTorch does not have.
    """

    def __init__(self, backend: str, sharding: str = "ddp"):
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.world_size > 1 else 0
        self.sharding = sharding
        self._accelerator: Any = None
        # PyTorch 2.4's gloo deadlocks on exit when its thread is the last to hold a tensor that Python made: keep some.
        self._summed: deque[Tensor] = deque(maxlen=8)
        if backend not in ("cpu", "gpu"):
            raise UserError(f"backend {backend!r} is not one of cpu, gpu")
        if backend == "gpu" and not torch.cuda.is_available():
            raise UserError("no GPU is visible to PyTorch; use --backend cpu")
        if self.world_size == 1:
            if sharding == "fsdp":
                raise UserError("--sharding fsdp divides the model among processes; start several with torchrun")
            self.device = torch.device("cuda" if backend == "gpu" else "cpu")
            return
        self._accelerator = _accelerator(backend, sharding)
        self.device = self._accelerator.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def memory(self) -> int:
        """Bytes of memory for the weights, gradients and moments of the run: of all devices where they are divided."""
        shares = self.world_size if self.sharding == "fsdp" else 1
        if self.device.type == "cuda":
            return shares * torch.cuda.get_device_properties(self.device).total_memory
        return shares * machine_memory()

    def prepare(self, model: nn.Module, optimizer: AdamW) -> tuple[nn.Module, AdamW]:
        """The model wrapped for several processes, and the optimizer over its parameters."""
        if self._accelerator is None:
            return model, optimizer
        if self.sharding == "ddp":
            return self._accelerator.prepare(model), optimizer
        _shard(model, optimizer)
        return model, optimizer

    @contextmanager
    def accumulating(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Do not synchronise gradients before the last batch of a step."""
        if self._accelerator is None or last:
            yield
        elif self.sharding == "ddp":
            with self._accelerator.no_sync(model):
                yield
        else:
            model.set_requires_gradient_sync(False)  # type: ignore[operator]  # FSDPModule
            try:
                yield
            finally:
                model.set_requires_gradient_sync(True)  # type: ignore[operator]

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self._accelerator is not None:
            torch.distributed.all_reduce(values)
            self._summed.append(values)
        return values

    def whole(self, tensor: Tensor) -> Tensor:
        """The full tensor, of which each process may hold a part; a collective call."""
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    def like(self, whole: Tensor, model_tensor: Tensor) -> Tensor:
        """A full tensor, the same in all processes, with the device, dtype and sharding of `model_tensor`."""
        whole = whole.to(device=self.device, dtype=model_tensor.dtype)
        if not hasattr(model_tensor, "full_tensor"):
            return whole
        from torch.distributed.tensor import distribute_tensor

        layout: Any = model_tensor  # a DTensor
        return distribute_tensor(whole, layout.device_mesh, layout.placements)

    def common_seed(self, seed: int | None) -> int | None:
        """The seed of the initial weights in all processes: the given one, or one that the first process draws."""
        if seed is not None or self._accelerator is None:
            return seed
        own = torch.seed() % 2**31 if self.is_first else 0
        return int(self.sum(torch.tensor([own], device=self.device)).item())

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def close(self, *, after_error: bool = False) -> None:
        """Leave the group of processes; after an error without waiting for the others, who may never come."""
        if self._accelerator is not None:
            from accelerate.state import AcceleratorState

            if torch.distributed.is_initialized():
                if not after_error:
                    torch.distributed.barrier()  # gloo lets go of what the last sum still holds
                    # A model that holds the group keeps the threads of gloo alive until Python ends; one that then
                    # frees a tensor ends the process by SIGABRT.
                    self._accelerator = None
                    gc.collect()
                torch.distributed.destroy_process_group()
            # The next phase of a YAML begins with a group of its own.
            AcceleratorState._reset_state(reset_partial_state=True)


def _accelerator(backend: str, sharding: str) -> Any:
    if sharding not in ("ddp", "fsdp"):
        raise UserError(f"sharding {sharding!r} is not one of ddp, fsdp")
    if sharding == "fsdp" and tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        raise UserError(f"--sharding fsdp needs PyTorch 2.6 or newer (this is {torch.__version__}); use ddp")
    from accelerate import Accelerator

    return Accelerator(cpu=backend == "cpu", mixed_precision="no")


def _shard(model: nn.Module, optimizer: AdamW) -> None:
    """Divide the model among the processes, layer by layer, with PyTorch's fully_shard.

    (accelerate leaves a model on CPUs whole where it is asked for FSDP.) The parameters become new ones; the optimizer,
    which has no state yet, gets them in place of the old.
    """
    from torch.distributed.fsdp import fully_shard

    old = [(name, id(parameter)) for name, parameter in model.named_parameters()]
    for module in list(model.modules()):
        if isinstance(module, DecoderLayer):
            fully_shard(module)
    fully_shard(model)
    new = dict(model.named_parameters())
    replacement = {identity: new[name] for name, identity in old}
    for group in optimizer.param_groups:
        group["params"] = [replacement[id(parameter)] for parameter in group["params"]]
