"""bfloat16 taken in float32 is the same arithmetic as bfloat16 instructions, forward and backward."""

import torch

from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.precision import _ProductsInFloat32, forward_precision
from tests import tolerances
from tests.cerebras_jais.model.examples import batch_of, jais_section


def test_a_product_is_the_exact_sum_rounded_once():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 64, generator=generator).bfloat16() for _ in range(2))
    with _ProductsInFloat32():
        product = a @ b.t()
    assert product.dtype == torch.bfloat16
    exact = a.double() @ b.double().t()
    assert ((product.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()  # half a unit in the last place


def train_step(mode):
    torch.manual_seed(0)
    model = LanguageModel(DecoderConfig.from_section(jais_section()))
    batch = batch_of(model.config, packed=True)
    with mode:
        with forward_precision("cpu", torch.bfloat16):
            loss = model(batch)
        loss.backward()
    return loss, [p.grad for p in model.parameters() if p.requires_grad]


def test_a_training_step_agrees_with_pytorchs_own_bfloat16():
    class Plain:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    loss, gradients = train_step(_ProductsInFloat32())
    expected, references = train_step(Plain())
    assert abs(loss.item() - expected.item()) <= tolerances.SAME_IN_BFLOAT16
    for gradient, reference in zip(gradients, references, strict=True):
        assert (gradient - reference).norm() <= tolerances.SAME_IN_BFLOAT16 * max(1.0, reference.norm().item())
