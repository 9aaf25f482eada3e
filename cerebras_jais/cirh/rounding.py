"""The 16-bit types of a program, as roundings of float32: cbfloat16, bfloat16 and IEEE half.

A CS system takes 16-bit inputs and accumulates in float32 (docs.cerebras.net, "Data formats": "16-bit input to
arithmetic operations, and FP32 accumulations"). So every operation is computed in float32 here, and its result is
rounded once where the program gives it a 16-bit type.

cbfloat16 has 1 sign, 6 exponent and 9 mantissa bits (published, same page). What is not published is assumed as IEEE
754 has it for other widths:
- bias 31, and the largest exponent for infinity and NaN: numbers up to 2^32 - 2^22. cerebras_pytorch agrees: the
  largest loss scale is 2^31 of cbfloat16 where it is 2^15 of float16 (amp/grad_scaler.py).
- subnormal numbers, in steps of 2^-39 below 2^-30; the page speaks of "denormals".
- to nearest, ties to even; beyond the largest number to infinity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cerebras_jais.cirh.program import Program, ProgramError
from cerebras_jais.ranges import shown

Rounding = Callable[[Tensor], Tensor]

_DROPPED_BITS = 23 - 9  # of the mantissa of float32
_SMALLEST_NORMAL = 2.0**-30
_OVERFLOW = 2.0**32
_HALF_STEP_BELOW_OVERFLOW = 2.0**21
# float32 numbers from here on are whole multiples of 2^-39, so adding it rounds to them.
_STEPS_OF_SUBNORMALS = 2.0 ** (23 - 39)


def to_cbfloat16(x: Tensor) -> Tensor:
    """Float32 values rounded to those of cbfloat16, still as float32; NaN stays."""
    x = x.contiguous()
    bits = x.view(torch.int32)
    rounded = (bits >> _DROPPED_BITS).bitwise_and_(1).add_((1 << (_DROPPED_BITS - 1)) - 1).add_(bits)
    out = rounded.bitwise_and_(-(1 << _DROPPED_BITS)).view(torch.float32)
    size = x.abs()
    small = (size > 0).logical_and_(size < _SMALLEST_NORMAL)
    if bool(small.any()):
        near = (size + _STEPS_OF_SUBNORMALS).sub_(_STEPS_OF_SUBNORMALS)
        out = torch.where(small, near.copysign_(x), out)
    # NaN compares as not below, so it is among these.
    large = (size < _OVERFLOW - _HALF_STEP_BELOW_OVERFLOW).logical_not_()
    if bool(large.any()):
        beyond = torch.where(x.isnan(), x, torch.full_like(x, float("inf")).copysign_(x))
        out = torch.where(large, beyond, out)
    return out


def to_bfloat16(x: Tensor) -> Tensor:
    """Float32 values rounded to those of bfloat16 (1 sign, 8 exponent, 7 mantissa bits), still as float32."""
    return x.to(torch.bfloat16).to(torch.float32)


def to_float16(x: Tensor) -> Tensor:
    """Float32 values rounded to those of IEEE half (1 sign, 5 exponent, 10 mantissa bits), still as float32."""
    return x.to(torch.float16).to(torch.float32)


FLOAT32: Mapping[str, Rounding] = {}
"""Element type of a program -> how its values are rounded; here none is, so all is float32."""

_HALF_TYPES = {"cbfloat16": to_cbfloat16, "float16": to_float16, "bfloat16": to_bfloat16}


def types_of(program: Program) -> Mapping[str, Rounding]:
    """Element type of a program -> how its values are rounded: bf16 is bfloat16, f16 the half type of its config."""
    half = program.attributes.get("cs.fp16_type", "float16")
    if half not in _HALF_TYPES:
        raise ProgramError(f"cs.fp16_type {shown(half)} is not one of {', '.join(_HALF_TYPES)}")
    return {"f16": _HALF_TYPES[half], "bf16": to_bfloat16}
