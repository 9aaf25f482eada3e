"""Contract: a release directory loads through the Auto classes and saving keeps every tensor, bit for bit."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from checkpoint_convert.hf_code.modeling_jais import JAISLMHeadModel
from checkpoint_convert.release import CODE_FILES
from tests.checkpoint_convert.hf_code.examples import CODE, random_ids, slopes_by_hand, tiny_model, write_release_code
from tests.checkpoint_convert.hf_code.test_modeling_jais import assert_same

TYING = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
HEAD, EMBEDDING, SLOPES = "lm_head.weight", "transformer.wte.weight", "transformer.relative_pe.slopes"


def assert_equal_states(result, expected):
    assert result.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(result[name], tensor), name


def save_tensors(model, directory, *, without=(), more=None):
    """A directory as another program could have written it: the configuration and any set of tensors."""
    model.config.save_pretrained(directory)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in without}
    save_file({**tensors, **(more or {})}, directory / "model.safetensors", metadata={"format": "pt"})


def load_with_report(directory, **options):
    return JAISLMHeadModel.from_pretrained(directory, output_loading_info=True, **options)


def test_a_release_carries_every_file_of_the_code():
    assert sorted(file.name for file in CODE.glob("*.py")) == ["__init__.py", *CODE_FILES]


@TYING
def test_a_release_directory_loads_through_the_auto_classes(tmp_path, tied):
    model = tiny_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    write_release_code(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(loaded).__module__.startswith("transformers_modules")
    assert_equal_states(loaded.state_dict(), model.state_dict())
    assert (loaded.lm_head.weight is loaded.transformer.wte.weight) is tied
    ids = random_ids(2, 8)
    assert_same(loaded(ids).logits, model(ids).logits)
    generated = loaded.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, pad_token_id=0)
    assert generated.shape[1] > 8


def test_the_other_auto_classes_load_it_too(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    write_release_code(tmp_path)
    base = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert_equal_states(base.state_dict(), model.transformer.state_dict())
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=True, num_labels=3)
    assert classifier(random_ids(1, 5)).logits.shape == (1, 3)


def test_what_was_loaded_as_remote_code_saves_a_directory_that_loads_again(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "first")
    write_release_code(tmp_path / "first")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "first", trust_remote_code=True)
    loaded.save_pretrained(tmp_path / "second")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "second", trust_remote_code=True)
    assert_equal_states(again.state_dict(), model.state_dict())


@TYING
def test_saving_and_loading_keeps_every_tensor(tmp_path, tied):
    model = tiny_model(tie_word_embeddings=tied)
    with torch.no_grad():
        model.transformer.relative_pe.slopes.mul_(0.75)
    model.save_pretrained(tmp_path)
    loaded, report = load_with_report(tmp_path)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_equal_states(loaded.state_dict(), model.state_dict())
    assert not loaded.transformer.relative_pe.slopes.requires_grad
    assert set(model.state_dict()) - set(load_file(tmp_path / "model.safetensors")) == ({HEAD} if tied else set())


def test_a_tied_file_may_hold_the_head_or_not(tmp_path):
    model = tiny_model()
    for name, without in (("with", ()), ("without", (HEAD,))):
        save_tensors(model, tmp_path / name, without=without)
        loaded, report = load_with_report(tmp_path / name)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert loaded.lm_head.weight is loaded.transformer.wte.weight
        assert_equal_states(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": True}, {"device_map": "cpu"}], ids=str)
def test_a_file_without_slopes_gets_the_standard_ones(tmp_path, dtype, options):
    model = tiny_model()
    save_tensors(model, tmp_path, without=(SLOPES,))
    loaded, report = load_with_report(tmp_path, dtype=dtype, **options)
    assert not report["missing_keys"]
    expected = torch.tensor(slopes_by_hand(12))
    assert torch.equal(loaded.transformer.relative_pe.slopes[:, 0].to(dtype), expected.to(dtype))
    assert torch.equal(loaded.transformer.relative_pe.exact_slopes(), expected)
    if dtype == torch.float32:
        assert_equal_states(loaded.state_dict(), model.state_dict())


def test_the_causal_masks_of_old_files_are_left_out(tmp_path):
    model = tiny_model()
    masks = {}
    for layer in range(3):
        masks[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
        masks[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e9)
    save_tensors(model, tmp_path, more=masks)
    loaded, report = load_with_report(tmp_path)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_equal_states(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_file_keeps_its_tensors_and_computes_with_exact_slopes(tmp_path, dtype):
    model = tiny_model().to(dtype)
    model.save_pretrained(tmp_path)
    loaded = JAISLMHeadModel.from_pretrained(tmp_path, dtype=dtype)
    assert_equal_states(loaded.state_dict(), model.state_dict())
    assert torch.equal(loaded.transformer.relative_pe.exact_slopes(), torch.tensor(slopes_by_hand(12)))


def test_a_missing_matrix_is_drawn_anew_and_reported_and_the_others_stay(tmp_path):
    model = tiny_model()
    lost = "transformer.h.1.mlp.c_proj.weight"
    save_tensors(model, tmp_path, without=(lost,))
    loaded, report = load_with_report(tmp_path)
    assert list(report["missing_keys"]) == [lost]
    expected = model.state_dict()
    result = loaded.state_dict()
    del expected[lost]
    assert result.pop(lost).std() > 0
    assert_equal_states(result, expected)


def test_new_rows_of_the_embedding_stay_tied(tmp_path):
    model = tiny_model()
    model.resize_token_embeddings(70, mean_resizing=False)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model(random_ids(1, 4)).logits.shape == (1, 4, 70)
