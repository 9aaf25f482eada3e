"""Contract: no argument that could change the result is passed over; what the code does not do is refused by name."""

import inspect

import pytest
import torch
from transformers import DynamicCache, StaticCache

from checkpoint_convert.hf_code.configuration_jais import JAISConfig
from checkpoint_convert.hf_code.modeling_jais import JAISForSequenceClassification, JAISLMHeadModel, JAISModel
from tests.checkpoint_convert.hf_code.examples import CACHE, random_ids, tiny_config, tiny_model
from tests.checkpoint_convert.hf_code.test_modeling_jais import assert_same

CLASSES = pytest.mark.parametrize("model_class", [JAISModel, JAISLMHeadModel, JAISForSequenceClassification])


def first_output(model, *args, **keywords) -> torch.Tensor:
    return model(*args, use_cache=False, return_dict=False, **keywords)[0]


@CLASSES
@pytest.mark.parametrize("name", ["head_mask", "encoder_hidden_states", "is_causal", "output_router_logits", "cach"])
def test_an_unknown_keyword_is_a_type_error_that_names_it(model_class, name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        tiny_model(model_class=model_class)(random_ids(1, 4), **{name: torch.ones(1)})


def test_a_loss_keyword_reaches_no_model_without_a_loss():
    with pytest.raises(TypeError, match="num_items_in_batch"):
        tiny_model(model_class=JAISModel)(random_ids(1, 4), num_items_in_batch=4)
    with pytest.raises(TypeError, match="shift_labels"):
        tiny_model(model_class=JAISForSequenceClassification)(random_ids(1, 4), shift_labels=random_ids(1, 4))


@CLASSES
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_has_two_names(model_class, name):
    model = tiny_model(model_class=model_class)
    ids = random_ids(2, 9)
    cache = model(ids[:, :5])[CACHE]
    assert cache.get_seq_length() == 5
    result = model(ids[:, 5:], return_dict=False, **{name: cache})[0]
    expected = first_output(model, ids)
    assert_same(result, expected[:, 5:] if expected.dim() == 3 and result.dim() == 3 else expected)


@CLASSES
def test_two_caches_under_two_names_are_refused(model_class):
    model = tiny_model(model_class=model_class)
    ids = random_ids(1, 4)
    cache = DynamicCache()
    with pytest.raises(ValueError, match="cache and past_key_values"):
        model(ids, cache=cache, past_key_values=DynamicCache())
    model(ids, cache=cache, past_key_values=cache)


@CLASSES
def test_no_signature_makes_generate_warn_or_trainer_look_for_other_labels(model_class):
    names = inspect.signature(model_class.forward).parameters
    assert "cache_position" not in names
    assert {"cache", "past_key_values", "position_ids", "token_type_ids"} <= set(names)
    assert [name for name in names if "label" in name] == (["labels"] if model_class is not JAISModel else [])


@CLASSES
def test_token_types_are_zeros_or_refused(model_class):
    model = tiny_model(model_class=model_class)
    ids = random_ids(1, 4)
    assert_same(first_output(model, ids, token_type_ids=torch.zeros_like(ids)), first_output(model, ids))
    with pytest.raises(ValueError, match="token_type_ids"):
        model(ids, token_type_ids=torch.ones_like(ids))


def test_generate_takes_what_a_tokenizer_gives():
    model = tiny_model()
    ids = random_ids(1, 4)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    assert model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, pad_token_id=0).shape == (1, 6)


@pytest.mark.parametrize("length", [3, 6, 8, 12])
def test_a_mask_must_cover_the_cache_and_the_new_tokens(length):
    model = tiny_model()
    ids = random_ids(1, 9)
    cache = model(ids[:, :6])[CACHE]
    with pytest.raises(ValueError, match=f"{length} columns.* 9 "):
        model(ids[:, 6:], cache=cache, attention_mask=torch.ones(1, length))


def read_on(model, ids: torch.Tensor, cache, length: int) -> torch.Tensor:
    """The logits of the last three of nine tokens, under a mask of so many columns that hides the first token."""
    model(ids[:, :6], cache=cache, attention_mask=torch.ones(2, 6), cache_position=torch.arange(6))
    mask = torch.ones(2, length)
    mask[:, 0] = 0
    return model(ids[:, 6:], cache=cache, attention_mask=mask, cache_position=torch.arange(6, 9)).logits


@pytest.mark.parametrize("length", [9, 12, 20])
def test_a_mask_need_not_cover_the_free_slots_of_a_static_cache(length):
    model = tiny_model()
    ids = random_ids(2, 9)
    result = read_on(model, ids, StaticCache(config=model.config, max_cache_len=20), length)
    assert_same(result, read_on(model, ids, DynamicCache(), 9))


@pytest.mark.parametrize("length", [5, 8, 21])
def test_a_mask_must_cover_the_tokens_of_a_static_cache_and_no_more_than_its_slots(length):
    model = tiny_model()
    with pytest.raises(ValueError, match=f"{length} columns"):
        read_on(model, random_ids(2, 9), StaticCache(config=model.config, max_cache_len=20), length)


@pytest.mark.parametrize("shape", [(5,), (1, 5, 5), (1, 4), (1, 6), (1, 1, 5, 4), (1, 1, 4, 5), (3, 1, 5, 5)])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="attention_mask"):
        tiny_model()(random_ids(1, 5), attention_mask=torch.ones(shape))


@pytest.mark.parametrize("positions", [[3, 4, 5], [0, 1], [0, 1, 2, 3]])
def test_positions_that_are_not_those_of_the_cache_are_refused(positions):
    model = tiny_model()
    ids = random_ids(1, 3)
    with pytest.raises(ValueError, match="cache_position"):
        model(ids, cache_position=torch.tensor(positions))
    assert_same(model(ids, cache_position=torch.arange(3)).logits, model(ids).logits)


@pytest.mark.parametrize("shape", [(3,), (1, 4), (2, 3), (3, 1, 3)])
def test_position_ids_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="position_ids must have shape"):
        tiny_model()(random_ids(1, 3), position_ids=torch.zeros(shape, dtype=torch.long))


def test_shifted_labels_give_the_loss_of_labels():
    model = tiny_model()
    ids = random_ids(2, 9)
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    expected = model(ids, labels=ids).loss
    assert torch.equal(model(ids, shift_labels=shifted).loss, expected)
    assert torch.equal(model(ids, labels=ids, shift_labels=shifted, num_items_in_batch=16).loss, expected)


@pytest.mark.parametrize("kernel", ["flash_attention_2", "flash_attention_3", "flex_attention", "nonsense"])
def test_a_kernel_that_takes_no_bias_is_refused(kernel):
    with pytest.raises(ValueError, match=r"does not support|is not supported"):
        tiny_model(attention=kernel)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("add_cross_attention", True),
        ("is_encoder_decoder", True),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("rotary_dim", 64),
        ("sliding_window", 128),
        ("pruned_heads", {0: [1]}),
    ],
)
def test_what_other_models_do_and_jais_does_not_is_refused(key, value):
    config = tiny_config()
    setattr(config, key, value)
    with pytest.raises(ValueError, match=key.replace("rope_scaling", "rope_(scaling|parameters)")):
        JAISModel(config)


@pytest.mark.parametrize(
    ("misspelt", "key"),
    [("mup_width_scal", "mup_width_scale"), ("layer_norm_eps", "layer_norm_epsilon"), ("n_heads", "n_head")],
)
def test_a_key_that_is_nearly_one_of_jais_is_refused(misspelt, key):
    with pytest.raises(ValueError, match=f"{misspelt} is not a key of Jais: {key} is"):
        JAISConfig(**{misspelt: 4})


def test_standard_names_are_checked_as_well():
    assert JAISConfig(hidden_size=96, num_attention_heads=12).n_embd == 96
    with pytest.raises(ValueError, match="n_head must divide n_embd"):
        JAISConfig(hidden_size=100, num_attention_heads=12)


def test_an_unknown_problem_type_is_refused():
    model = tiny_model(model_class=JAISForSequenceClassification, num_labels=3)
    model.config.problem_type = "single_label"
    with pytest.raises(ValueError, match="problem_type"):
        model(random_ids(1, 4), labels=torch.tensor([1]))


@pytest.mark.parametrize("number", [61, -1])
def test_ids_and_labels_outside_the_vocabulary_are_refused(number):
    model = tiny_model()
    ids = random_ids(1, 5)
    wrong = ids.clone()
    wrong[0, 2] = number
    with pytest.raises(IndexError):
        model(wrong)
    with pytest.raises(IndexError):
        model(ids, labels=wrong)
