"""Contract: generating with a cache, in a batch, with beams or from embeddings agrees with the whole forward pass."""

import pytest
import torch
from transformers import DynamicCache

from tests import tolerances
from tests.checkpoint_convert.hf_code.examples import random_ids, tiny_model
from tests.checkpoint_convert.hf_code.test_modeling_jais import KERNELS, assert_same, left_padded

NEW = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}


def greedy_by_hand(model, ids: torch.Tensor, count: int = 12) -> torch.Tensor:
    for _ in range(count):
        scores = model(ids, use_cache=False).logits[:, -1]
        scores[:, 0] = -torch.inf  # the end of text is not wanted before the end
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
    return ids


@KERNELS
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_greedy_generation_is_the_argmax_of_the_whole_forward_pass(attention, options):
    model = tiny_model(attention=attention)
    ids = random_ids(2, 7)
    result = model.generate(ids, attention_mask=torch.ones_like(ids), **NEW, **options)
    assert torch.equal(result, greedy_by_hand(model, ids))


@KERNELS
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}])
def test_a_left_padded_batch_generates_what_each_row_generates_alone(attention, options):
    model = tiny_model(attention=attention)
    rows = [random_ids(1, length, seed=length)[0] for length in (9, 2, 6)]
    result = model.generate(**left_padded(rows), **NEW, **options)
    for generated, row in zip(result, rows, strict=True):
        assert torch.equal(generated[9:], greedy_by_hand(model, row[None])[0, len(row) :])


def test_a_half_precision_batch_with_padding_generates_without_nan():
    model = tiny_model(attention="sdpa").half()
    rows = [random_ids(1, length, seed=length)[0] for length in (9, 2)]
    output = model.generate(**left_padded(rows), **NEW, return_dict_in_generate=True, output_logits=True)
    assert all(torch.isfinite(logits).all() for logits in output.logits)


@KERNELS
def test_beams_find_a_text_at_least_as_likely_and_their_score_is_true(attention):
    model = tiny_model(attention=attention)
    ids = random_ids(1, 6)
    greedy = model.generate(ids, attention_mask=torch.ones_like(ids), **NEW)
    beams = model.generate(ids, attention_mask=torch.ones_like(ids), **NEW, num_beams=4, length_penalty=0.0)

    def likelihood(text):
        scores = model(text).logits[0, 5:-1]
        scores[:, 0] = -torch.inf
        return scores.log_softmax(-1).gather(1, text[0, 6:, None]).sum().item()

    assert beams.shape == greedy.shape
    assert likelihood(beams) >= likelihood(greedy) - tolerances.HF_LOSS


def test_beams_with_a_cache_equal_beams_without():
    model = tiny_model()
    ids = random_ids(2, 6)
    options = {"attention_mask": torch.ones_like(ids), "num_beams": 3, **NEW}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, **options, use_cache=False))


def test_generation_from_embeddings_equals_generation_from_ids():
    model = tiny_model()
    ids = random_ids(2, 7)
    embeds = model.get_input_embeddings()(ids).detach()
    result = model.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(ids), **NEW)
    assert torch.equal(result, greedy_by_hand(model, ids)[:, 7:])


@KERNELS
def test_a_prompt_may_be_read_in_parts(attention):
    model = tiny_model(attention=attention)
    ids = random_ids(2, 12)
    cache = DynamicCache()
    parts = [model(part, past_key_values=cache).logits for part in ids.split([5, 1, 6], dim=1)]
    assert_same(torch.cat(parts, dim=1), model(ids).logits)


def test_a_static_cache_may_be_filled_by_hand_and_in_parts():
    from transformers import StaticCache

    model = tiny_model(attention="sdpa")
    ids = random_ids(2, 12)
    cache = StaticCache(config=model.config, max_cache_len=20)
    start, parts = 0, []
    for part in ids.split([5, 1, 6], dim=1):
        positions = torch.arange(start, start + part.shape[1])
        parts.append(model(part, past_key_values=cache, cache_position=positions).logits)
        start += part.shape[1]
    assert_same(torch.cat(parts, dim=1), model(ids).logits)


def test_keys_and_values_in_tuples_are_taken_for_a_cache():
    model = tiny_model()
    ids = random_ids(1, 9)
    cache = model(ids[:, :5]).past_key_values
    pairs = tuple((layer.keys, layer.values) for layer in cache.layers)
    assert_same(model(ids[:, 5:], past_key_values=pairs).logits, model(ids).logits[:, 5:])


def test_the_context_length_of_training_is_no_limit():
    model = tiny_model(n_positions=8)
    ids = random_ids(1, 20)
    assert_same(model(ids).logits, tiny_model(n_positions=64)(ids).logits)
    assert model.generate(ids, attention_mask=torch.ones_like(ids), **NEW).shape == (1, 32)
