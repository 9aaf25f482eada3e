"""The reference model is the Model Zoo's model: same names, same loss, same gradients, same training.

Contract: with the same weights and batch, fp32 on the CPU, the loss of `LanguageModel` and of the Model Zoo's own
`JAISModel` or `LlamaModel` (release 2.10) agree, every gradient agrees, and 20 optimizer steps trace one loss curve;
for both families, plain and packed batches, head counts that are no power of two, grouped queries, tied and untied
heads, both loss scalings. Weights are drawn larger than at initialisation so that attention is far from uniform.
"""

import copy

import pytest
import torch

from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from tests import tolerances
from tests.cerebras_jais.model.examples import batch_of, jais_section, llama_section

pytestmark = pytest.mark.modelzoo

VARIANTS = {
    "jais-12-heads": jais_section(num_heads=12, hidden_size=48),
    "jais-20-heads": jais_section(num_heads=20, hidden_size=80),
    "jais-40-heads": jais_section(num_heads=40, hidden_size=80),
    "jais-56-heads": jais_section(num_heads=56, hidden_size=112),
    "jais-untied": jais_section(num_heads=12, hidden_size=48, share_embedding_weights=False),
    "jais-interpolated": jais_section(num_heads=12, hidden_size=48, pos_scaling_factor=4.0),
    "jais-batch-size-loss": jais_section(num_heads=12, hidden_size=48, loss_scaling="batch_size", loss_weight=1 / 24),
    "jais-deprecated-mup": jais_section(
        num_heads=12,
        hidden_size=48,
        mup_base_hidden_size=None,
        mup_base_filter_size=None,
        output_logits_alpha=None,
        output_logits_scale=0.365,
    ),
    "llama-12-heads": llama_section(num_heads=12, hidden_size=48),
    "llama-20-heads": llama_section(num_heads=20, hidden_size=80),
    "llama-40-heads": llama_section(num_heads=40, hidden_size=160),
    "llama-56-heads-grouped": llama_section(num_heads=56, hidden_size=224, kv_groups=8),
    "llama-grouped": llama_section(num_heads=12, hidden_size=48, kv_groups=4),
    "llama-one-group": llama_section(num_heads=12, hidden_size=48, kv_groups=1),
    "llama-tied": llama_section(num_heads=12, hidden_size=48, share_embedding_weights=True),
    "llama-partial-rotary": llama_section(num_heads=4, hidden_size=64, rotary_dim=8),
}


def modelzoo_model(section):
    pytest.importorskip("cerebras.modelzoo")
    if section["name"] == "jais":
        from cerebras.modelzoo.models.nlp.jais.model import JAISModel as Model
        from cerebras.modelzoo.models.nlp.jais.model import JAISModelConfig as Config
    else:
        from cerebras.modelzoo.models.nlp.llama.model import LlamaModel as Model
        from cerebras.modelzoo.models.nlp.llama.model import LlamaModelConfig as Config
    return Model(Config(**copy.deepcopy(section)))


def both_models(section, seed=0):
    torch.manual_seed(seed)
    theirs = modelzoo_model(section)
    ours = LanguageModel(DecoderConfig.from_section(section))
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad:
                spread = 0.5 if parameter.dim() == 1 else 1.5 * parameter.shape[1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape) * spread + (1.0 if "norm" in name else 0.0))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_order_and_shapes_of_parameters_are_those_of_the_model_zoo(variant):
    theirs = modelzoo_model(VARIANTS[variant])
    ours = LanguageModel(DecoderConfig.from_section(VARIANTS[variant]))
    # The order counts: optimizer state in a checkpoint is numbered by it.
    assert [(n, p.shape, p.requires_grad) for n, p in ours.named_parameters()] == [
        (n, p.shape, p.requires_grad) for n, p in theirs.named_parameters()
    ]
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_every_gradient_agree(variant, packed):
    ours, theirs = both_models(VARIANTS[variant])
    batch = batch_of(ours.config, packed=packed)
    loss, expected = ours(batch), theirs(batch)
    loss.backward()
    expected.backward()
    assert abs(loss.item() - expected.item()) <= tolerances.MODELZOO_LOSS
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if not parameter.requires_grad:
            continue
        reference = gradients[name].grad
        # The key bias shifts every score of a query alike, so its gradient is zero but for rounding.
        floor = 1e-6 if name.endswith("proj_k_dense_layer.bias") else 0.0
        difference = (parameter.grad - reference).norm().item()
        assert difference <= tolerances.MODELZOO_GRADIENT_RELATIVE * reference.norm().item() + floor, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_agree(variant):
    ours, theirs = both_models(VARIANTS[variant])
    batch = batch_of(ours.config, packed=False)
    with torch.no_grad():
        _, expected = theirs(batch, output_logits=True)
        torch.testing.assert_close(
            ours.eval().logits(batch["input_ids"]), expected, atol=tolerances.MODELZOO_LOGITS, rtol=0
        )


@pytest.mark.parametrize("variant", ["jais-12-heads", "jais-untied", "llama-grouped"])
def test_weights_are_drawn_with_the_same_spread(variant):
    section = dict(VARIANTS[variant], hidden_size=384, filter_size=1024, vocab_size=512)
    if "rotary_dim" in section:
        section["rotary_dim"] = 32
    theirs = dict(modelzoo_model(section).named_parameters())
    for name, parameter in LanguageModel(DecoderConfig.from_section(section)).named_parameters():
        other = theirs[name]
        if parameter.dim() == 2 and parameter.requires_grad:
            assert parameter.std().item() == pytest.approx(other.std().item(), rel=tolerances.DRAWN_SPREAD), name
            assert parameter.abs().max().item() == pytest.approx(
                other.abs().max().item(), rel=tolerances.DRAWN_EXTREME
            ), name
        else:
            assert torch.equal(parameter, other), name


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_twenty_steps_trace_the_same_loss_curve(variant, packed):
    pytest.importorskip("cerebras.modelzoo")
    cstorch = pytest.importorskip("cerebras.pytorch")
    from cerebras.modelzoo.common.optim_utils import configure_param_groups

    from cerebras_jais.optimizer.adamw import build_adamw
    from cerebras_jais.optimizer.groups import named_tensors, parameter_groups

    if cstorch.current_backend(raise_exception=False) is None:
        cstorch.backend("CPU")  # their optimizer asks which is active
    settings = {"betas": (0.9, 0.95), "eps": 1e-8, "correct_bias": True}
    # A rate each model learns at. At 0.02 those without muP blow up, and a change of 1e-7 in the weights, the size of a
    # rounding, moves their own curve by up to 1e-2 within 20 steps: it would say nothing about agreement.
    rate = 0.02 if "mup_base_hidden_size" in VARIANTS[variant] else 0.003
    torch.manual_seed(1)
    theirs = modelzoo_model(VARIANTS[variant])
    ours = LanguageModel(DecoderConfig.from_section(VARIANTS[variant]))
    ours.load_state_dict(theirs.state_dict())
    their_groups = configure_param_groups(theirs, {**settings, "weight_decay": 0.1})
    their_optimizer = cstorch.optim.AdamW(their_groups, lr=rate, weight_decay=0.1, **settings)
    our_groups = parameter_groups(ours, ours.config, weight_decay=0.1)
    our_optimizer = build_adamw(our_groups, named_tensors(ours), learning_rate=rate, **settings)
    for optimizer in (their_optimizer, our_optimizer):
        for group, ours_of_it in zip(optimizer.param_groups, our_groups, strict=True):
            scale = group.get("adjust_learning_rate", 1.0) if optimizer is their_optimizer else None
            group["lr"] = rate * (scale if scale is not None else ours_of_it.adjust_learning_rate or 1.0)
    curve = []
    for step in range(20):
        batch = batch_of(ours.config, packed=packed, seed=step % 4)
        losses = []
        for optimizer, model in ((their_optimizer, theirs), (our_optimizer, ours)):
            optimizer.zero_grad()
            loss = model(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        curve.append(losses)
    assert max(abs(a - b) for a, b in curve) <= tolerances.MODELZOO_LOSS_CURVE
    assert curve[-1][0] < curve[0][0] - 0.3  # it did learn something
