"""Mixed precision: which operations run in 16 bits, and bfloat16 on processors that cannot multiply it.

PyTorch's autocast decides what runs in 16 bits, as it does in the Model Zoo on a CPU or GPU. A CPU without bfloat16
instructions (AVX512-BF16 or AMX) takes 50 to 100 times longer for a bfloat16 matrix product than for a float32 one;
there the product is taken in float32 from operands rounded to bfloat16, which is what the instructions compute:
products of bfloat16 are exact in float32 and summed in float32, and the sum is rounded once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_aten = torch.ops.aten
# Operations taken in float32, and how many of their results are bfloat16 (None: all; the rest stay float32).
_PRODUCTS = {
    _aten.mm.default: None,
    _aten.addmm.default: None,
    _aten.bmm.default: None,
    _aten.baddbmm.default: None,
    _aten._scaled_dot_product_flash_attention_for_cpu.default: 1,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: None,
}


def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products, as Linux lists them (elsewhere: yes)."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))


class _ProductsInFloat32(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes bfloat16 products in float32 and rounds the result."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        if func not in _PRODUCTS or not any(t.dtype == torch.bfloat16 for t in tensors):
            return func(*args, **kwargs)
        wide = tree_map_only(torch.Tensor, lambda t: t.float() if t.dtype == torch.bfloat16 else t, (args, kwargs))
        out = func(*wide[0], **wide[1])
        if isinstance(out, torch.Tensor):
            return out.bfloat16()
        count = _PRODUCTS[func] or len(out)
        return tuple(o.bfloat16() if i < count and o is not None else o for i, o in enumerate(out))


@contextlib.contextmanager
def step_precision(device_type: str, dtype: torch.dtype | None) -> Iterator[None]:
    """Around a whole step, backward pass included: makes 16-bit products quick where the processor has none.

    Args:
        device_type: "cpu" or "cuda".
        dtype: torch.bfloat16, torch.float16, or None for float32, which changes nothing.
    """
    if device_type == "cpu" and dtype == torch.bfloat16 and not cpu_multiplies_bfloat16():
        with _ProductsInFloat32():  # type: ignore[no-untyped-call]
            yield
    else:
        yield


def forward_precision(device_type: str, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """Around the forward pass alone: PyTorch's autocast to `dtype`, or nothing for None."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device_type, dtype=dtype)
