"""Contract: JAISConfig reads every published config.json, old and new keys, and refuses what cannot be built."""

import json

import pytest

from checkpoint_convert.hf_code.configuration_jais import JAISConfig
from checkpoint_convert.hf_code.modeling_jais import JAISModel
from tests import published
from tests.checkpoint_convert.hf_code.examples import tiny_config

FAMILY_13B = {
    **published.config_json("jais-family-13b"),
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "reorder_and_upcast_attn": False,
    "rotary_dim": None,
    "scale_attn_by_inverse_layer_idx": False,
    "torch_dtype": "float32",
    "transformers_version": "4.40.1",
}


def test_a_config_of_the_family_survives_saving_and_loading(tmp_path):
    JAISConfig(**FAMILY_13B).save_pretrained(tmp_path)
    loaded = JAISConfig.from_pretrained(tmp_path).to_dict()
    for key, value in FAMILY_13B.items():
        if key not in ("torch_dtype", "transformers_version"):
            assert loaded[key] == value, key


@pytest.mark.parametrize("tied", [True, False])
def test_tying_is_always_written_and_true_where_a_file_is_silent(tmp_path, tied):
    JAISConfig(**FAMILY_13B, tie_word_embeddings=tied).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is tied
    assert JAISConfig.from_pretrained(tmp_path).tie_word_embeddings is tied
    assert JAISConfig(**FAMILY_13B).tie_word_embeddings is True


def test_standard_names_reach_the_gpt2_names():
    config = JAISConfig(**FAMILY_13B)
    assert (config.hidden_size, config.max_position_embeddings) == (5120, 2048)
    assert (config.num_attention_heads, config.num_hidden_layers) == (40, 40)


def test_the_keys_of_the_first_jais_files_are_read():
    """core42/jais-13b: width_scale is the product 2.22 * 256 / 5120."""
    config = JAISConfig(embeddings_scale=14.6, width_scale=0.11100000000000002, scale_qk_dot_by_d=True)
    assert config.mup_embeddings_scale == 14.6
    assert config.logit_scale == 0.11100000000000002
    assert config.mup_scale_qk_dot_by_d is True
    assert not {"embeddings_scale", "width_scale", "scale_qk_dot_by_d"} & set(config.to_dict())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"embeddings_scale": 14.6}, {"mup_embeddings_scale": 9.17}),
        ({"width_scale": 0.111}, {"mup_output_alpha": 2.22}),
        ({"width_scale": 0.111}, {"mup_width_scale": 0.05}),
        ({"scale_qk_dot_by_d": True}, {"mup_scale_qk_dot_by_d": True}),
    ],
)
def test_an_old_key_beside_the_new_one_is_refused(old, new):
    with pytest.raises(ValueError, match=next(iter(old))):
        JAISConfig(**old, **new)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"type": "linear", "factor": 4.0},
        {"type": "linear", "factor": 2},
        {"type": "linear", "train_seq_len": 2048},
    ],
)
def test_alibi_scaling_of_the_published_forms_is_accepted(scaling):
    assert JAISConfig(alibi_scaling=scaling).alibi_scaling == scaling


@pytest.mark.parametrize(
    "scaling",
    [
        4.0,
        {},
        {"type": "linear"},
        {"factor": 2.0},
        {"type": "dynamic", "factor": 2.0},
        {"type": "linear", "factor": 1.0},
        {"type": "linear", "factor": "2"},
        {"type": "linear", "factor": True},
        {"type": "linear", "train_seq_len": 1},
        {"type": "linear", "train_seq_len": 2048.0},
        {"type": "linear", "factor": 2.0, "train_seq_len": 2048},
    ],
)
def test_any_other_alibi_scaling_is_refused(scaling):
    with pytest.raises(ValueError, match="alibi_scaling"):
        JAISConfig(alibi_scaling=scaling)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation_function", "gelu_new"),
        ("position_embedding_type", "learned"),
        ("n_head", 7),
        ("n_layer", 0),
        ("n_inner", 13653.3),
        ("vocab_size", None),
        ("mup_width_scale", 0.0),
        ("mup_output_alpha", "2.22"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=key):
        JAISConfig(**{key: value})


def test_a_key_spoilt_after_construction_is_refused_by_the_model():
    config = tiny_config()
    config.alibi_scaling = {"type": "linear", "factor": 0.5}
    with pytest.raises(ValueError, match="factor of alibi_scaling"):
        JAISModel(config)
