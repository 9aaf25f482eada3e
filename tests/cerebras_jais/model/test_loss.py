"""The sliced loss is cross entropy, and its gradient is that of autograd, however it is sliced."""

import pytest
import torch

from cerebras_jais.model import loss as loss_module
from tests import tolerances


@pytest.mark.parametrize("rows_at_once", [1, 7, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradients_are_those_of_cross_entropy(monkeypatch, rows_at_once, bias):
    monkeypatch.setattr(loss_module, "LOGITS_AT_ONCE", rows_at_once * 50)
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(3, 20, 16, generator=generator), torch.randn(50, 16, generator=generator)
    b = torch.randn(50, generator=generator) if bias else None
    labels = torch.randint(0, 50, (3, 20), generator=generator)
    weights = torch.rand(3, 20, generator=generator) * (torch.rand(3, 20, generator=generator) > 0.3)
    ours = [t.double().requires_grad_() for t in (x, w) + ((b,) if bias else ())]
    theirs = [t.detach().clone().requires_grad_() for t in ours]

    value = loss_module.weighted_token_loss(
        ours[0], ours[1], ours[2] if bias else None, labels, weights, logits_scale=0.3
    )
    logits = (torch.nn.functional.linear(theirs[0], theirs[1], theirs[2] if bias else None)) * 0.3
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    expected = (each * weights.flatten()).sum()
    torch.testing.assert_close(value.double(), expected, atol=tolerances.SAME_IN_FLOAT32, rtol=1e-6)

    (2.5 * value).backward()
    (2.5 * expected).backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=tolerances.SAME_IN_FLOAT32, rtol=1e-5)


def test_nothing_of_the_size_of_all_logits_is_held(monkeypatch):
    monkeypatch.setattr(loss_module, "LOGITS_AT_ONCE", 4 * 1000)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    x = torch.randn(1, 256, 8, requires_grad=True)
    w = torch.randn(1000, 8, requires_grad=True)
    labels = torch.randint(0, 1000, (1, 256))
    with Watch():
        loss_module.weighted_token_loss(x, w, None, labels, torch.ones(1, 256), logits_scale=1.0).backward()
    assert largest == 1000 * 8  # the gradient of the head; all logits would be 256,000
