"""One process or several: ranks, sums and sharding, by Hugging Face accelerate and PyTorch's DDP or FSDP.

`torchrun` sets WORLD_SIZE and the rest; a run without it is one process and never imports accelerate.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from cerebras_jais.errors import UserError
from cerebras_jais.machine import Place, machine_memory, place_of_process
from cerebras_jais.model.decoder import DecoderLayer
from cerebras_jais.train.failures import explained
from cerebras_jais.train.signals import ending_at_once

# <malloc.h>; larger pieces of memory than this many bytes are mapped one by one.
_M_MMAP_THRESHOLD, _MAPPED_BYTES = -3, 1 << 20
# How long processes wait for one another: the first may flush a checkpoint of 834 GB. One that has died is noticed at
# once, by its connections or by torchrun.
_FOR_ONE_ANOTHER = timedelta(hours=2)
# What the first process says while it writes, beside the number of a tensor.
_WRITTEN, _FAILED = -1, -2


class WriteError(UserError):
    """A file that another process could not write."""


class DistributedContext:
    """This process among those of the run.

    Raises UserError for a GPU that is not there and for sharding that this PyTorch does not have.
    """

    def __init__(self, backend: str, sharding: str = "ddp"):
        self._place = place_of_process()
        self.world_size, self.rank = self._place.processes, self._place.rank
        self.sharding = sharding
        self._accelerator: Any = None
        self._exchanging = False  # whether the first process is in the middle of `gathered`
        # PyTorch 2.4's gloo deadlocks on exit when its thread is the last to hold a tensor that Python made: keep some.
        self._summed: deque[Tensor] = deque(maxlen=8)
        if backend not in ("cpu", "gpu"):
            raise UserError(f"backend {backend!r} is not one of cpu, gpu")
        if backend == "gpu" and not torch.cuda.is_available():
            raise UserError("no GPU is visible to PyTorch; use --backend cpu")
        if backend == "gpu" and self._place.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {self.rank} is the one of number {self._place.local_rank} on its machine, which has GPUs for "
                f"{torch.cuda.device_count()}; start as many processes as it has GPUs (torchrun --nproc-per-node)"
            )
        if self.world_size == 1:
            if sharding == "fsdp":
                raise UserError("--sharding fsdp divides the model among processes; start several with torchrun")
            self.device = torch.device("cuda" if backend == "gpu" else "cpu")
            return
        self._accelerator = _accelerator(backend, sharding, self._place)
        if backend == "cpu" and sharding == "fsdp":
            _give_back_freed_memory()
        self.device = self._accelerator.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self._place.is_first

    @property
    def memory(self) -> int:
        """Bytes of memory that this process may take; processes on CPUs share the memory of their machine."""
        if self.device.type == "cuda":
            return int(torch.cuda.get_device_properties(self.device).total_memory)
        return machine_memory() // self._place.local_processes

    def divide(self, trained: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Divide a model among the processes of a sharded run, layer by layer, with PyTorch's fully_shard.

        Args:
            trained: the model.
            dtype: what its matrices are multiplied in, where that is 16 bits: those of layers are gathered in it, and
                their gradients summed in float32. Autocast alone would keep a whole 16-bit copy of every layer.

        On the meta device, so that each process only ever takes memory for its own rows. (accelerate leaves a model on
        CPUs whole where it is asked for FSDP.)
        """
        if self._accelerator is None or self.sharding == "ddp":
            return
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        # What stands between the matrices stays float32, as under autocast: the norms, and embedding and head, whose
        # gradient the loss sums.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nothing is added to it in place
        policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        for module in list(trained.modules()):
            if isinstance(module, DecoderLayer):
                if dtype is not None:
                    fully_shard([module.self_attn, module.ffn], mp_policy=policy)
                fully_shard(module)
        fully_shard(trained)

    def wrap(self, trained: nn.Module) -> nn.Module:
        """The model as the processes train it: behind DDP where each has a copy."""
        if self._accelerator is None or self.sharding == "fsdp":
            return trained
        wrapped: nn.Module = self._accelerator.prepare(trained)
        return wrapped

    def accumulating(self, model: nn.Module, last: bool) -> AbstractContextManager[None]:
        """A block for a batch of a step: copies of a model sum their gradients over the processes in the last alone.

        A divided model does so in each, because a process would else keep the gradients of the whole model until then.
        """
        if self._accelerator is None or last or self.sharding == "fsdp":
            return nullcontext()
        context: AbstractContextManager[None] = self._accelerator.no_sync(model)
        return context

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self._accelerator is not None:
            torch.distributed.all_reduce(values)
            self._summed.append(values)
        return values

    def own_rows(self, tensor: Tensor) -> tuple[Tensor, int]:
        """The rows of a tensor of the model that this process keeps, in place, and the number of the first of them."""
        if not is_divided(tensor):
            return tensor, 0
        divided: Any = tensor
        return divided.to_local(), min(self.rank * self._share(tensor), len(tensor))

    def _share(self, tensor: Tensor) -> int:
        """Rows that a process keeps of a divided tensor, the last ones fewer or none, as torch.chunk cuts it."""
        return -(-len(tensor) // self.world_size)

    def write_together(self, divided: Sequence[Tensor], write: Callable[[], None]) -> None:
        """Have the first process write a file, for which the others give it their rows; a collective call.

        Args:
            divided: the tensors that it may ask for, the same list in all processes.
            write: what the first process does. It calls `gathered` with numbers of that list, in any order.

        Raises WriteError in the others where it fails in the first.
        """
        if self._accelerator is None:
            write()
        elif self.is_first:
            try:
                write()
            except BaseException:
                if not self._exchanging:  # else the others learn of it from the end of this process
                    self._say(_FAILED)
                raise
            self._say(_WRITTEN)
        else:
            while (number := self._say()) >= 0:
                self._gather(divided[number])
            if number == _FAILED:
                raise WriteError("the first process could not write the checkpoint")

    def gathered(self, number: int, tensor: Tensor) -> Tensor:
        """The whole of a divided tensor on the CPU; in the first process, within `write_together`.

        Args:
            number: of the tensor among those given to `write_together`.
            tensor: the tensor.
        """
        self._exchanging = True
        self._say(number)
        found = self._gather(tensor)
        self._exchanging = False
        assert found is not None
        return found

    def _say(self, number: int = 0) -> int:
        """The number that the first process says to all."""
        said = torch.tensor([number], device=self.device)
        torch.distributed.broadcast(said, 0)
        self._summed.append(said)
        return int(said.item())

    def _gather(self, tensor: Tensor) -> Tensor | None:
        """A divided tensor, whole in the first process and None in the others."""
        own, _ = self.own_rows(tensor)
        share = self._share(tensor)
        if len(own) < share:  # all send equally many rows
            own = torch.cat([own, own.new_zeros(share - len(own), *own.shape[1:])])
        if not self.is_first:
            torch.distributed.gather(own.contiguous(), None, 0)
            return None
        whole = own.new_empty(share * self.world_size, *own.shape[1:])
        torch.distributed.gather(own.contiguous(), list(whole.chunk(self.world_size)), 0)
        return whole[: len(tensor)].cpu()

    def agree(self, value: str) -> bool:
        """Whether a text is the same in all processes."""
        if self._accelerator is None:
            return True
        number = int.from_bytes(hashlib.sha256(value.encode()).digest()[:6], "big")
        bounds = torch.tensor([number, -number], device=self.device)
        torch.distributed.all_reduce(bounds, torch.distributed.ReduceOp.MAX)
        self._summed.append(bounds)
        return int(bounds.sum().item()) == 0

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

    def explained(self, error: BaseException) -> BaseException:
        """What to raise for an error of this process (`failures.explained`)."""
        if self._accelerator is None or not torch.distributed.is_initialized():
            return error
        from torch.distributed.distributed_c10d import _get_default_store

        return explained(error, _get_default_store(), self.rank, self.world_size)

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


def _accelerator(backend: str, sharding: str, place: Place) -> Any:
    """What brings the processes together. Raises UserError where one of them does not come."""
    if sharding not in ("ddp", "fsdp"):
        raise UserError(f"sharding {sharding!r} is not one of ddp, fsdp")
    if sharding == "fsdp" and tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        raise UserError(f"--sharding fsdp needs PyTorch 2.6 or newer (this is {torch.__version__}); use ddp")
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    patience = InitProcessGroupKwargs(timeout=_FOR_ONE_ANOTHER)
    try:
        with ending_at_once():
            return Accelerator(cpu=backend == "cpu", mixed_precision="no", kwargs_handlers=[patience])
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the {place.processes} processes do not come together ({reason}); start all of them with torchrun and one "
            "address"
        ) from error


def _give_back_freed_memory() -> None:
    """Have glibc return the memory of freed tensors to the system at once.

    By default it keeps and reuses pieces of up to 32 MiB. The gathered layers of a divided model, of other sizes than
    what is needed between them, then take up to twice the memory in use.
    """
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def is_divided(tensor: Tensor) -> bool:
    """Whether a tensor is divided among processes (a DTensor)."""
    return hasattr(tensor, "full_tensor")
