"""The 16-bit types round float32 as their number of bits says.

Contract: cbfloat16 agrees, value by value, with rounding to a multiple of 2^(exponent - 9) in exact arithmetic, from
subnormal numbers to overflow; it has 2^16 values of which rounding keeps each; the other two are PyTorch's.
"""

import math

import pytest
import torch

from cerebras_jais.cirh.program import ProgramError, read_program
from cerebras_jais.cirh.rounding import to_bfloat16, to_cbfloat16, to_float16, types_of
from tests.cerebras_jais.cirh.text import regression


def rounded(value, exponent_bits, mantissa_bits):
    """A number rounded to nearest, ties to even, in exact arithmetic (Python's round of a quotient by a power of 2)."""
    if value == 0 or not math.isfinite(value):
        return value
    bias = 2 ** (exponent_bits - 1) - 1
    step = 2.0 ** (max(math.frexp(value)[1] - 1, 1 - bias) - mantissa_bits)
    near = round(value / step) * step
    return math.copysign(math.inf, value) if abs(near) >= 2.0 ** (bias + 1) else math.copysign(near, value)


def numbers(smallest, largest):
    """Float32 numbers of every exponent in a range, with ties of every 16-bit type among them."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(smallest, largest, (4000,), generator=generator)
    drawn = torch.ldexp(torch.randn(4000, generator=generator), exponents)
    ties = torch.ldexp(1 + (2 * torch.arange(2048) + 1) / 2**11, torch.tensor(3))
    return torch.cat([drawn, ties, -ties, torch.tensor([0.0, -0.0, math.inf, -math.inf])])


@pytest.mark.parametrize(("function", "bits"), [(to_cbfloat16, (6, 9)), (to_float16, (5, 10)), (to_bfloat16, (8, 7))])
def test_rounding_is_to_the_nearest_number_with_ties_to_even(function, bits):
    x = numbers(-46, 36)
    expected = torch.tensor([rounded(value, *bits) for value in x.double().tolist()])
    torch.testing.assert_close(function(x), expected, rtol=0, atol=0)
    assert (function(x).signbit() == x.signbit()).all()
    assert function(torch.tensor([math.nan])).isnan().all()


def test_every_cbfloat16_number_stays_as_it_is():
    mantissa = torch.arange(512, dtype=torch.float64) / 512
    normal = torch.cat([torch.ldexp(1 + mantissa, torch.tensor(exponent)) for exponent in range(-30, 32)])
    values = torch.cat([normal, torch.ldexp(mantissa, torch.tensor(-30))]).float()
    assert values.unique().numel() == 63 * 512
    assert values.max() == 2.0**32 - 2.0**22
    for sign in (1, -1):
        assert torch.equal(to_cbfloat16(sign * values), sign * values)


def test_half_of_a_step_below_the_smallest_number_is_zero_and_above_the_largest_infinite():
    edges = torch.tensor([2.0**-40, 1.0001 * 2**-40, 2.0**32 - 2.0**21, 2.0**32 - 2.0**21 - 256])
    assert to_cbfloat16(edges).tolist() == [0.0, 2.0**-39, math.inf, 2.0**32 - 2.0**22]


@pytest.mark.parametrize(("half", "third"), [("cbfloat16", 0.33349609375), ("float16", 0.333251953125)])
def test_a_program_says_which_half_type_its_f16_is(half, third):
    types = types_of(read_program(regression(half=half)))
    assert types["f16"](torch.tensor(1 / 3)).item() == third
    assert types["bf16"](torch.tensor(9.1705785388303)).item() == 9.1875


def test_an_unknown_half_type_is_named():
    with pytest.raises(ProgramError, match="'int8' is not one of cbfloat16"):
        types_of(read_program(regression(half="int8")))
