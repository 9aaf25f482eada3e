"""Contract: generating with a cache, in a batch, with beams or from embeddings agrees with the whole forward pass."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests import tolerances
from tests.checkpoint_convert.hf_code.examples import CACHE, random_ids, talkative_jais, talkative_llama, tiny_model
from tests.checkpoint_convert.hf_code.test_modeling_jais import KERNELS, assert_same, left_padded

pytestmark = pytest.mark.slow

NEW = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}


def greedy_by_hand(model, ids: torch.Tensor, count: int = 12) -> torch.Tensor:
    for _ in range(count):
        scores = model(ids, use_cache=False).logits[:, -1]
        scores[:, 0] = -torch.inf  # the end of text is not wanted before the end
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
    return ids


FAMILIES = pytest.mark.parametrize("talkative", [talkative_jais, talkative_llama], ids=["jais", "llama"])
CACHES = pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])


@FAMILIES
def test_these_models_notice_a_lost_cache(talkative):
    """A model that repeats itself would generate the same without the tokens before the last."""
    model = talkative()
    ids = random_ids(2, 7)
    text = greedy_by_hand(model, ids)
    forgetful = ids
    for _ in range(12):
        scores = model(forgetful[:, -1:], use_cache=False).logits[:, -1]
        scores[:, 0] = -torch.inf
        forgetful = torch.cat([forgetful, scores.argmax(-1, keepdim=True)], dim=1)
    for row, other in zip(text[:, 7:], forgetful[:, 7:], strict=True):
        assert len(row.unique()) >= 5
        assert (row != other).sum() >= 6


@FAMILIES
@KERNELS
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_greedy_generation_is_the_argmax_of_the_whole_forward_pass(talkative, attention, options):
    model = talkative(attention)
    ids = random_ids(2, 7)
    result = model.generate(ids, attention_mask=torch.ones_like(ids), **NEW, **options)
    assert torch.equal(result, greedy_by_hand(model, ids))


@FAMILIES
@KERNELS
@CACHES
def test_a_left_padded_batch_generates_what_each_row_generates_alone(talkative, attention, options):
    model = talkative(attention)
    rows = [random_ids(1, length, seed=length)[0] for length in (9, 2, 6)]
    result = model.generate(**left_padded(rows), **NEW, **options)
    for generated, row in zip(result, rows, strict=True):
        assert torch.equal(generated[9:], greedy_by_hand(model, row[None])[0, len(row) :])


def test_padding_in_the_middle_of_a_row_is_passed_over():
    model = talkative_jais()
    ids = random_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[0, 4] = mask[1, 2] = mask[1, 6] = 0
    expected = model.generate(ids, attention_mask=mask, **NEW, use_cache=False)
    changed = torch.where(mask == 1, ids, ids % 60 + 1)
    for options in ({}, {"cache_implementation": "static"}):
        assert torch.equal(model.generate(changed, attention_mask=mask, **NEW, **options)[:, 9:], expected[:, 9:])


@FAMILIES
def test_a_text_may_go_on_from_a_filled_cache(talkative):
    model = talkative()
    ids = random_ids(2, 7)
    first = model.generate(ids, attention_mask=torch.ones_like(ids), **NEW, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, random_ids(2, 4, seed=3)], dim=1)
    result = model.generate(ids, attention_mask=torch.ones_like(ids), **NEW, **{CACHE: getattr(first, CACHE)})
    assert torch.equal(result, greedy_by_hand(model, ids))


def test_a_model_in_training_that_checkpoints_generates_the_same():
    """Checkpointing drops the cache, and generate goes on with the last token alone all the same."""
    model = talkative_jais()
    ids = random_ids(2, 7)
    expected = greedy_by_hand(model, ids)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert torch.equal(model.train().generate(ids, attention_mask=torch.ones_like(ids), **NEW), expected)


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


@FAMILIES
@CACHES
def test_beams_with_a_cache_equal_beams_without(talkative, options):
    model = talkative()
    ids = random_ids(2, 6)
    common = {"attention_mask": torch.ones_like(ids), "num_beams": 3, **NEW}
    assert torch.equal(model.generate(ids, **common, **options), model.generate(ids, **common, use_cache=False))


def test_generation_from_embeddings_equals_generation_from_ids():
    model = tiny_model()
    ids = random_ids(2, 7)
    embeds = model.get_input_embeddings()(ids).detach()
    result = model.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(ids), **NEW)
    assert torch.equal(result, greedy_by_hand(model, ids)[:, 7:])


@KERNELS
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_prompt_may_be_read_in_parts_with_the_cache_under_either_name(attention, name):
    model = talkative_jais(attention)
    ids = random_ids(2, 12)
    filled = DynamicCache()
    parts = [model(part, **{name: filled}).logits for part in ids.split([5, 1, 6], dim=1)]
    assert_same(torch.cat(parts, dim=1), model(ids).logits)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("counted", [True, False], ids=["with_cache_position", "without"])
def test_a_static_cache_may_be_filled_by_hand_and_in_parts(name, counted):
    model = talkative_jais("sdpa")
    ids = random_ids(2, 12)
    filled = StaticCache(config=model.config, max_cache_len=20)
    start, parts = 0, []
    for part in ids.split([5, 1, 6], dim=1):
        positions = {"cache_position": torch.arange(start, start + part.shape[1])} if counted else {}
        parts.append(model(part, **{name: filled}, **positions).logits)
        start += part.shape[1]
    assert_same(torch.cat(parts, dim=1), model(ids).logits)


def test_keys_and_values_in_tuples_are_taken_for_a_cache():
    model = tiny_model()
    ids = random_ids(1, 9)
    pairs = tuple((layer.keys, layer.values) for layer in model(ids[:, :5])[CACHE].layers)
    assert_same(model(ids[:, 5:], past_key_values=pairs).logits, model(ids).logits[:, 5:])
    assert_same(model(ids[:, 5:], cache=pairs).logits, model(ids).logits[:, 5:])


def test_the_context_length_of_training_is_no_limit():
    model = tiny_model(n_positions=8)
    ids = random_ids(1, 20)
    assert_same(model(ids).logits, tiny_model(n_positions=64)(ids).logits)
    assert model.generate(ids, attention_mask=torch.ones_like(ids), **NEW).shape == (1, 32)
