"""Mixed precision and gradient clipping as the Model Zoo does them on a CPU or GPU.

Source: Model Zoo trainer/callbacks/precision.py of 2.10. Weights stay float32; autocast computes in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from cerebras_jais.config.sections import Precision
from cerebras_jais.model.precision import forward_precision, step_precision


@dataclass(frozen=True)
class PrecisionPlan:
    """The precision of a run: `dtype` None is float32; a scaler is used for float16 on a GPU only."""

    device_type: str
    dtype: torch.dtype | None
    scaler: torch.amp.GradScaler | None
    max_gradient_norm: float | None
    max_gradient_value: float | None

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        return forward_precision(self.device_type, self.dtype)

    def whole_step(self) -> AbstractContextManager[object]:
        """The context of forward and backward pass together."""
        return step_precision(self.device_type, self.dtype)

    def clip(self, parameters: Sequence[Tensor]) -> float:
        """Clip the gradients in place, by the norm of all together or each value; the norm before, NaN or infinite
        where a gradient is."""
        if self.max_gradient_norm is not None:
            return _number(torch.nn.utils.clip_grad_norm_(parameters, self.max_gradient_norm))
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = _number(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))) if gradients else 0.0
        if self.max_gradient_value is not None:
            torch.nn.utils.clip_grad_value_(parameters, self.max_gradient_value)
        return norm

    @property
    def name(self) -> str:
        """The dtype for people."""
        return str(self.dtype or torch.float32).removeprefix("torch.")


def _number(norm: Tensor) -> float:
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def plan_precision(section: Precision | None, device_type: str, log: Callable[[str], None]) -> PrecisionPlan:
    """The plan for the YAML's `precision` section; float32 without one, as in the Model Zoo.

    Args:
        device_type: "cpu" or "cuda".
        log: takes one line wherever another dtype is used than the YAML names.
    """
    if section is None:
        return PrecisionPlan(device_type, None, None, None, None)
    dtype, scaler = None, None
    if section.enabled:
        dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16, "cbfloat16": torch.bfloat16}[section.fp16_type]
        if section.fp16_type == "cbfloat16":
            log("precision: cbfloat16 exists on CS systems only; computing in bfloat16")
        elif device_type == "cpu" and dtype is torch.float16:
            log("precision: float16 is not computed on a CPU; computing in bfloat16")
            dtype = torch.bfloat16
    if dtype is torch.float16:
        dynamic = section.loss_scaling_factor == "dynamic"
        factor = section.initial_loss_scale or 65536.0 if dynamic else float(section.loss_scaling_factor)
        interval = section.steps_per_increase if dynamic else 2**63 - 1
        scaler = torch.amp.GradScaler(device_type, init_scale=factor, growth_interval=interval)
    return PrecisionPlan(device_type, dtype, scaler, section.max_gradient_norm, section.max_gradient_value)
