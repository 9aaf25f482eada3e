"""The decoder keeps the promises that need no Model Zoo to check.

Contract: attention looks back only; packed documents do not see one another; activation checkpointing changes no
gradient; scales stand where muP puts them.
"""

import pytest
import torch

from cerebras_jais.errors import UserError
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.precision import forward_precision
from tests import tolerances
from tests.cerebras_jais.model.examples import batch_of, jais_section, llama_section, sharp_model

SECTIONS = {
    "jais": jais_section(),
    "jais-untied": jais_section(share_embedding_weights=False),
    "llama": llama_section(),
    "llama-grouped": llama_section(kv_groups=4),
}


@pytest.fixture(params=SECTIONS)
def model(request):
    return sharp_model(SECTIONS[request.param])


def test_a_token_does_not_see_what_comes_after_it(model):
    ids = batch_of(model.config, packed=False)["input_ids"]
    changed = ids.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % model.config.vocab_size
    before, after = model.logits(ids), model.logits(changed)
    torch.testing.assert_close(before[:, :10], after[:, :10], atol=tolerances.SAME_IN_FLOAT32, rtol=0)
    assert not torch.allclose(before[:, 10:], after[:, 10:])


def test_packed_documents_give_the_logits_they_give_alone(model):
    batch = batch_of(model.config, packed=True)
    packed = model.logits(batch["input_ids"], batch["attention_span"], batch["position_ids"])
    for start, size in ((0, 9), (9, 8), (17, 5)):
        alone = model.logits(batch["input_ids"][:1, start : start + size])
        torch.testing.assert_close(packed[:1, start : start + size], alone, atol=tolerances.SAME_IN_FLOAT32, rtol=0)


def test_a_span_that_goes_beyond_its_row_is_as_long_as_the_row(model):
    batch = batch_of(model.config, packed=True)
    ids, span, positions = (batch[name] for name in ("input_ids", "attention_span", "position_ids"))
    longer = span.clone()
    longer[0, -1] += 1
    longer[-1] = 2**31 - 1  # a single document
    assert model.model._positions(ids, longer, positions).bias is None  # no mask of every pair
    assert torch.equal(model.logits(ids, longer, positions), model.logits(ids, span, positions))


def test_activation_checkpointing_gives_the_same_gradients(model):
    batch = batch_of(model.config, packed=True)
    gradients = []
    for checkpointing in (False, True):
        model.train().zero_grad()
        model.model.activation_checkpointing = checkpointing
        model(batch).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("packed", [False, True])
def test_no_layer_keeps_a_mask_for_the_backward_pass(model, dtype, packed):
    length, kept = model.config.max_position_embeddings, []

    def note(tensor):
        if tensor.shape[-2:] == (length, length):
            kept.append(tensor)
        return tensor

    batch = batch_of(model.config, packed=packed)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), forward_precision("cpu", dtype):
        model.train()(batch)
    assert kept == []


def test_loss_is_the_masked_mean_of_cross_entropy(model):
    batch = batch_of(model.config, packed=False)
    logits = model.logits(batch["input_ids"])
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten().long(), reduction="none")
    mask = batch["attention_mask"].flatten()
    expected = (each * mask).sum() / mask.sum()
    torch.testing.assert_close(model(batch), expected, atol=tolerances.SAME_IN_FLOAT32, rtol=0)


def test_batch_size_scaling_divides_by_rows_and_multiplies_by_the_weight():
    section = jais_section(loss_scaling="batch_size", loss_weight=1 / 24)
    torch.manual_seed(0)
    by_rows = LanguageModel(DecoderConfig.from_section(section))
    torch.manual_seed(0)
    by_tokens = LanguageModel(DecoderConfig.from_section(jais_section()))
    batch = batch_of(by_rows.config, packed=False)
    tokens, rows = batch["attention_mask"].sum(), batch["attention_mask"].shape[0]
    torch.testing.assert_close(
        by_rows(batch), by_tokens(batch) * tokens / rows / 24, atol=tolerances.SAME_IN_FLOAT32, rtol=0
    )


def test_a_prompt_outside_the_vocabulary_is_refused(model):
    with pytest.raises(UserError, match="token id 97"):
        model.check_token_ids(torch.tensor([[97]]))


def test_embedding_and_logit_scales_multiply_where_mup_puts_them():
    torch.manual_seed(0)
    scaled = LanguageModel(DecoderConfig.from_section(jais_section()))
    plain = LanguageModel(
        DecoderConfig.from_section(
            jais_section(
                embeddings_scale=None, output_logits_alpha=None, mup_base_hidden_size=None, mup_base_filter_size=None
            )
        )
    )
    plain.load_state_dict(scaled.state_dict())
    with torch.no_grad():
        embedding = plain.model.embedding_layer.word_embeddings
        plain.model.lm_head.weight = torch.nn.Parameter(embedding.weight * (1.0951835 * 16 / 48))
        embedding.weight.mul_(9.1705785)
    ids = batch_of(scaled.config, packed=False)["input_ids"]
    torch.testing.assert_close(plain.logits(ids), scaled.logits(ids), atol=tolerances.SAME_IN_FLOAT32, rtol=1e-5)
