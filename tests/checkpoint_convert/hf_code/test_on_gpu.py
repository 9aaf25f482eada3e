"""The code of a Jais release computes on a GPU what it computes on a CPU, through its public class."""

import pytest
import torch

from tests import tolerances
from tests.checkpoint_convert.hf_code.examples import random_ids, tiny_model

pytestmark = pytest.mark.gpu
KERNELS = pytest.mark.parametrize("attention", ["eager", "sdpa"])
LENGTHS = pytest.mark.parametrize("length", [512, 2048])


@KERNELS
@LENGTHS
def test_logits_and_gradients_are_those_of_a_cpu(attention, length):
    model, ids = tiny_model(attention=attention, n_layer=2), random_ids(2, length)
    found = []
    for device in ("cpu", "cuda"):
        model = model.to(device)
        model.zero_grad()
        out = model(ids.to(device), labels=ids.to(device))
        out.loss.backward()
        found.append([out.logits.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)])
    (logits, *gradients), (expected, *expected_gradients) = found[1], found[0]
    bound = tolerances.HF_LOGITS * expected.abs().max().item()
    torch.testing.assert_close(logits, expected, atol=bound, rtol=0)
    for after, before in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(after, before, atol=tolerances.HF_GRADIENT, rtol=0)


@KERNELS
@LENGTHS
def test_bfloat16_is_finite_and_near(attention, length):
    model, ids = tiny_model(attention=attention, n_layer=2).to("cuda"), random_ids(2, length).to("cuda")
    with torch.no_grad():
        expected = model(ids).logits
        found = model.bfloat16()(ids).logits
    bound = tolerances.RELEASE_LOGITS_BFLOAT16 * expected.abs().max()
    assert (found.float() - expected).abs().max() <= bound


def test_generation_is_that_of_a_cpu():
    model, ids = tiny_model(tie_word_embeddings=False), random_ids(1, 200)
    words = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **words)
    assert torch.equal(model.to("cuda").generate(ids.to("cuda"), **words).cpu(), expected)
