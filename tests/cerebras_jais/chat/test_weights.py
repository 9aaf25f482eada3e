"""Matrices of generation give the product of the numbers that their element type holds.

Contract: float32 and bfloat16 are those numbers; each int4 number lies within half a step of its group of 32, whose
ends are its least and largest; sizes without a kernel keep bfloat16; a torch or device without one is refused.
"""

import typing

import pytest
import torch

from cerebras_jais.chat import weights as module
from cerebras_jais.chat.engine import never
from cerebras_jais.chat.forward import Forward
from cerebras_jais.chat.weights import WEIGHTS, Weights, activation_dtype, check_weights, linear
from cerebras_jais.commands.model_options import WEIGHTS as OPTION
from cerebras_jais.errors import UserError
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from tests.cerebras_jais.model.examples import jais_section
from tests.tolerances import SAME_IN_FLOAT32

HAS_INT4 = hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
needs_int4 = pytest.mark.skipif(not HAS_INT4, reason="torch before 2.6")
ROUNDING = 2.0**-8  # of bfloat16, relative


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("tokens", [(1, 1), (8, 1), (3, 7)])
@pytest.mark.parametrize("sizes", [(96, 64), (1024, 512), (1000, 333), (1100, 1000)])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_product_is_that_of_the_matrix_and_its_bias(kind, sizes, tokens):
    weight, bias, dtype = torch.randn(*sizes) / sizes[1] ** 0.5, torch.randn(sizes[0]), activation_dtype(kind)
    x = torch.randn(*tokens, sizes[1]).to(dtype)
    wanted = x.double() @ weight.to(dtype).double().t() + bias.to(dtype).double()
    with torch.inference_mode():
        found = linear(weight, bias, kind)(x)
    assert found.dtype == dtype
    tolerance = SAME_IN_FLOAT32 if kind == "float32" else ROUNDING * wanted.abs().max().item()
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("threads", [1, 3, 16])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_blocks_of_a_matrix_for_any_number_of_threads_give_its_product_and_leave_the_last_one_be(
    kind, threads, monkeypatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    weight, x = torch.randn(500, 300).to(activation_dtype(kind)) / 300**0.5, torch.randn(2, 1, 1, 300)
    x = x.to(weight.dtype)
    wanted = x.double() @ weight.double().t()
    with torch.inference_mode():
        product = linear(weight, None, kind)
        found = torch.stack([product(one) for one in x])
    tolerance = SAME_IN_FLOAT32 if kind == "float32" else ROUNDING * wanted.abs().max().item()
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance)


@needs_int4
def test_an_int4_number_is_within_half_a_step_of_the_matrix_and_the_ends_of_a_group_are_kept(monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 64)
    weight = torch.randn(160, 96) * torch.logspace(-3, 1, 160)[:, None]
    with torch.inference_mode():
        product = linear(weight, None, "int4")
        found = torch.stack([product(row) for row in torch.eye(96).bfloat16()], dim=1).float()
    groups = weight.view(160, 3, 32)
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    # The scale, the zero (8 steps from the least) and the product are rounded to bfloat16.
    slack = ROUNDING * (groups.abs().amax(-1) + 8 * step)
    assert ((found.view(160, 3, 32) - groups).abs() <= (step / 2 + 2 * slack)[..., None]).all()
    assert (found.view(160, 3, 32).amax(-1) - groups.amax(-1)).abs().le(step / 2 + 2 * slack).all()


@needs_int4
def test_int4_of_a_matrix_of_one_number_is_that_number_and_a_bias_is_added():
    with torch.inference_mode():
        found = linear(torch.full((16, 32), 0.25), torch.ones(16), "int4")(torch.ones(2, 1, 32).bfloat16())
    assert found.shape == (2, 1, 16)
    assert (found == 9).all()


@needs_int4
def test_a_matrix_whose_sizes_int4_does_not_divide_keeps_bfloat16():
    for sizes in ((17, 32), (16, 33)):
        weight, x = torch.randn(*sizes), torch.randn(2, sizes[1]).bfloat16()
        with torch.inference_mode():
            assert torch.equal(linear(weight, None, "int4")(x), linear(weight, None, "bfloat16")(x))


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["bfloat16", pytest.param("int4", marks=needs_int4)])
def test_rounded_weights_change_the_logits_by_their_rounding(kind):
    model = LanguageModel(DecoderConfig.from_section(jais_section(vocab_size=96))).eval()
    ids = torch.randint(96, (20,)).tolist()
    wanted = model.logits(torch.tensor([ids]))[0]
    forward = Forward(model, kind)
    cache = forward.new_cache(1, 20)
    forward.prefill(ids[:-1], 0, cache, 0, 0, never)
    last = forward.step(ids[-1:], cache, [0], 19)[0]
    scale = 0.03 if kind == "bfloat16" else 0.3
    assert (last - wanted[-1]).abs().max() < scale * wanted.std()


def test_what_has_no_kernel_is_refused_in_a_line():
    with pytest.raises(UserError, match=r"'float64'.*float32, bfloat16, int4"):
        check_weights("float64", torch.device("cpu"))
    with pytest.raises(UserError, match="for a CPU, not for cuda"):
        check_weights("int4", torch.device("cuda"))
    if not HAS_INT4:
        with pytest.raises(UserError, match=r"need torch 2\.6"):
            check_weights("int4", torch.device("cpu"))


def test_the_option_offers_every_kind_of_weights():
    @OPTION
    def command(**options):
        raise AssertionError

    (option,) = command.__click_params__
    assert tuple(option.type.choices) == WEIGHTS == typing.get_args(Weights)
