"""Contract: training sees the same function, with gradient checkpointing, adapters, autocast or frozen embeddings."""

import copy

import pytest
import torch
from transformers import DynamicCache

from tests import tolerances
from tests.checkpoint_convert.hf_code.examples import CACHE, random_ids, tiny_model
from tests.checkpoint_convert.hf_code.test_modeling_jais import KERNELS


def gradients(model) -> dict[str, torch.Tensor]:
    ids = random_ids(2, 10)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    model.train()
    model.zero_grad()
    model(ids, attention_mask=mask, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@KERNELS
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_gradient(attention, reentrant):
    """The public code leaves ALiBi out of checkpointed blocks."""
    model = tiny_model(attention=attention)
    expected = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert all(block.gradient_checkpointing for block in model.transformer.h)
    if reentrant:
        model.enable_input_require_grads()
    result = gradients(model)
    assert result.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(result[name], gradient, atol=tolerances.HF_GRADIENT, rtol=0, msg=name)


def test_gradients_are_finite_with_padding_in_half_precision():
    assert all(torch.isfinite(g).all() for g in gradients(tiny_model(attention="sdpa").half()).values())


@pytest.mark.parametrize("is_filled", [True, False])
def test_checkpointing_with_a_cache_is_refused(is_filled):
    model = tiny_model()
    ids = random_ids(1, 6)
    cache = model(ids)[CACHE] if is_filled else DynamicCache()
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="past_key_values"):
        model.train()(ids, past_key_values=cache)


def test_frozen_embeddings_whose_output_requires_gradients_train():
    """What adapters with checkpointing do: the output of the embedding is a leaf, so nothing may scale it in place."""
    model = tiny_model()
    model.transformer.wte.weight.requires_grad_(False)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    assert "transformer.h.0.attn.c_attn.weight" in gradients(model)


def test_slopes_get_a_gradient_only_if_the_configuration_says_so():
    assert "transformer.relative_pe.slopes" not in gradients(tiny_model())
    assert "transformer.relative_pe.slopes" not in gradients(tiny_model().requires_grad_(True))
    trained = gradients(tiny_model(alibi_trainable_slopes=True))
    assert trained["transformer.relative_pe.slopes"].abs().min() > 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_autocast_trains_close_to_fp32(attention):
    model = tiny_model(attention=attention)
    ids = random_ids(2, 10)
    expected = model(ids, labels=ids).loss.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected, abs=tolerances.HF_HALF_LOGITS["bfloat16"])


def test_an_adapter_learns_and_leaves_the_base_alone():
    peft = pytest.importorskip("peft")
    model = tiny_model(attention="sdpa")
    before = copy.deepcopy(model.state_dict())
    model.gradient_checkpointing_enable()
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn", "c_proj", "c_fc", "c_fc2"])
    adapted = peft.get_peft_model(model, settings)
    adapted.enable_input_require_grads()
    adapted.train()
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=0.02)
    ids = random_ids(4, 12)
    losses = []
    for _ in range(12):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2
    base = adapted.unload().state_dict()
    assert all(torch.equal(base[name], tensor) for name, tensor in before.items())
