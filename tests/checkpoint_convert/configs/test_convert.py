"""config.json and the `model:` section say the same of a model, in both directions.

Contract: the section comes back from config.json unchanged; what the public keys of a release say (published configs of
the family, old key names, edits by a user) becomes the section that means the same; what one side cannot express is
refused with the reason.
"""

import copy
import datetime
import json

import pytest

from cerebras_jais.errors import UserError
from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.configs.convert import SpecialTokens, to_config_json, to_model_section
from checkpoint_convert.errors import ConversionError
from tests import published
from tests.checkpoint_convert.examples import PUBLISHED, VARIANTS, jais_section, llama_section

TOKENS = SpecialTokens(0, 0, 0)

JAIS_590M = published.config_json("jais-family-590m") | published.WITHOUT_MEANING
JAIS_590M |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LLAMA = published.config_json("jais-adapted-70b")


def there_and_back(section):
    text = json.dumps(to_config_json(section, "float32", TOKENS))
    return to_model_section(json.loads(text))


@pytest.mark.parametrize("name", [*PUBLISHED, *VARIANTS])
def test_the_section_comes_back_unchanged(name):
    section = PUBLISHED[name][0] if name in PUBLISHED else VARIANTS[name]
    assert there_and_back(section) == (section, [])


@pytest.mark.parametrize("name", [*PUBLISHED, *VARIANTS])
def test_public_keys_alone_describe_a_model_of_the_same_logits(name):
    section = PUBLISHED[name][0] if name in PUBLISHED else VARIANTS[name]
    public = to_config_json(section, "float32", TOKENS)
    del public["cerebras"]
    before, after = DecoderConfig.from_section(section), DecoderConfig.from_section(to_model_section(public)[0])
    for key in ("hidden_size", "num_heads", "num_kv_groups", "filter_size", "pos_scaling_factor", "embeddings_scale"):
        assert getattr(after, key) == getattr(before, key)
    assert after.logits_scale == pytest.approx(before.logits_scale, rel=1e-12)
    assert after.attention_scale == before.attention_scale
    assert after.share_embedding_weights == before.share_embedding_weights
    assert after.layer_norm_epsilon == before.layer_norm_epsilon


def test_mup_is_carried_whole():
    public = to_config_json(PUBLISHED["jais-family-30b-8k"][0], "float32", TOKENS)
    row = published.MODELS["jais-family-30b-8k"]
    assert (public["mup_embeddings_scale"], public["mup_output_alpha"]) == row.mup
    assert public["mup_width_scale"] == 256 / row.hidden
    assert public["mup_scale_qk_dot_by_d"] is True


def test_a_published_jais_config_is_read():
    section, notes = to_model_section(JAIS_590M)
    assert section["mup_base_hidden_size"] == 256
    assert section["mup_base_filter_size"] == pytest.approx(4096 * 256 / 1536)
    assert section["output_logits_alpha"] == 1.09518349815769
    assert section["embeddings_scale"] == 9.1705785388303
    assert section["scale_qk_dot_by_d"] is True
    assert section["share_embedding_weights"] is True
    assert section["dropout_rate"] == section["attention_dropout_rate"] == 0.0
    assert any("mup_base_filter_size" in note for note in notes)
    config = DecoderConfig.from_section(section)
    assert config.logits_scale == pytest.approx(1.09518349815769 / 6)
    assert config.attention_scale == 1 / 128


@pytest.mark.parametrize("changes", [{"width_scale": 0.7, "n_embd": 192, "n_inner": 512}, {"mup_output_alpha": 0.2775}])
def test_a_factor_on_the_logits_that_does_not_say_its_width_is_kept_whole(changes):
    old = {k: v for k, v in JAIS_590M.items() if not k.startswith("mup_")} | changes
    section, notes = to_model_section(old)
    assert section["output_logits_scale"] == DecoderConfig.from_section(section).logits_scale
    assert "mup_base_hidden_size" not in section
    assert any("output_logits_scale" in note for note in notes)


@pytest.mark.parametrize("width_scale", [0, -0.1, "0.1", True])
def test_a_width_scale_that_is_none_is_refused(width_scale):
    old = {k: v for k, v in JAIS_590M.items() if not k.startswith("mup_")}
    with pytest.raises(ConversionError, match="width_scale"):
        to_model_section(old | {"width_scale": width_scale})


def test_a_published_llama_config_is_read():
    section, _ = to_model_section(LLAMA)
    config = DecoderConfig.from_section(section)
    assert (config.head_dim, config.num_kv_groups, config.effective_rotary_dim) == (128, 8, 128)
    assert (config.norm_type, config.use_ffn_bias, config.dropout_rate) == ("rmsnorm", False, 0.0)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}},
    ],
)
def test_rotary_scaling_is_read_in_the_keys_of_transformers_4_and_5(rope):
    without = {k: v for k, v in LLAMA.items() if not k.startswith("rope")}
    section, _ = to_model_section(without | rope)
    assert (section["rope_theta"], section["pos_scaling_factor"]) == (5e5, 2.0)


def test_an_edit_of_the_release_is_taken_over_and_the_rest_is_kept():
    public = to_config_json(jais_section(), "float32", TOKENS)
    public["alibi_scaling"] = {"type": "linear", "factor": 4.0}
    public["n_positions"] = 96
    section, notes = to_model_section(public)
    assert section == jais_section() | {"pos_scaling_factor": 4.0, "max_position_embeddings": 96}
    assert any("pos_scaling_factor" in note for note in notes)


def test_alibi_scaling_is_the_position_factor():
    section = jais_section(pos_scaling_factor=4.0)
    assert to_config_json(section, "float32", TOKENS)["alibi_scaling"] == {"type": "linear", "factor": 4.0}
    fixed = JAIS_590M | {"alibi_scaling": {"type": "linear", "factor": 4.0}}
    assert to_model_section(fixed)[0]["pos_scaling_factor"] == 4.0
    assert "pos_scaling_factor" not in to_model_section(JAIS_590M)[0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"alibi_scaling": {"type": "linear", "train_seq_len": 2048}}, "train_seq_len"),
        ({"alibi_scaling": {"type": "dynamic", "factor": 2.0}}, "alibi_scaling"),
        ({"alibi_scaling": {"type": "linear", "factor": 0.5}}, "alibi_scaling"),
        ({"alibi_scaling": {"type": "linear", "factor": 2.0, "train_seq_len": 2048}}, "train_seq_len"),
        ({"alibi_scaling": {"type": "linear"}}, "alibi_scaling"),
        ({"alibi_scaling": 4.0}, "alibi_scaling"),
        ({"alibi_trainable_slopes": True}, "alibi_trainable_slopes"),
        ({"activation_function": "gelu_new"}, "activation_function"),
        ({"position_embedding_type": "learned"}, "position_embedding_type"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"n_embd": None}, "n_embd"),
        ({"n_layer": "18"}, "n_layer"),
        ({"width_scale": 0.1}, "width_scale"),
        ({"embeddings_scale": 14.6}, "embeddings_scale"),
        ({"mup_width_scale": -1.0}, "mup_width_scale"),
        ({"model_type": "gpt2"}, "gpt2"),
        ({"cerebras": 3}, "cerebras"),
    ],
)
def test_a_jais_config_that_the_model_zoo_cannot_express_is_refused_by_name(changes, named):
    with pytest.raises(ConversionError, match=named):
        to_model_section(JAIS_590M | changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"head_dim": 64}, "head_dim"),
    ],
)
def test_a_llama_config_outside_the_family_is_refused_by_name(changes, named):
    with pytest.raises(ConversionError, match=named):
        to_model_section(LLAMA | changes)


@pytest.mark.parametrize(
    ("section", "named"),
    [
        (jais_section(use_ffn_bias=False), "use_ffn_bias"),
        (jais_section(norm_type="rmsnorm"), "norm_type"),
        (jais_section(use_bias_in_output=True), "use_bias_in_output"),
        (jais_section(attention_logits_alpha=2.0), "attention_logits_alpha"),
        (jais_section(pos_scaling_factor=0.5), "pos_scaling_factor"),
        (
            jais_section(attention_module="multiquery_attention", extra_attention_params={"num_kv_groups": 4}),
            "grouped-query attention",
        ),
        (llama_section(embeddings_scale=14.6), "embeddings_scale"),
        (llama_section(output_logits_scale=0.3), "logits"),
        (llama_section(mup_base_hidden_size=16, mup_base_filter_size=42), "muP"),
        (llama_section(scale_qk_dot_by_d=True), "scale_qk_dot_by_d"),
        (llama_section(rotary_dim=2), "rotary_dim"),
        (llama_section(norm_type="layernorm"), "norm_type"),
        (llama_section(use_ffn_bias_in_attention=True), "use_ffn_bias_in_attention"),
    ],
)
def test_a_model_that_hugging_face_cannot_express_is_refused_by_name(section, named):
    with pytest.raises(ConversionError, match=named):
        to_config_json(section, "float32", TOKENS)


def test_a_section_outside_the_family_is_a_user_error():
    with pytest.raises(UserError, match="hidden_sise"):
        to_config_json(jais_section(hidden_sise=3), "float32", TOKENS)


def test_the_section_given_is_not_changed():
    section = jais_section()
    before = copy.deepcopy(section)
    to_config_json(section, "float32", TOKENS)
    assert section == before


DEPRECATED = jais_section(
    mup_base_hidden_size=None, mup_base_filter_size=None, output_logits_alpha=None, output_logits_scale=0.365
)


@pytest.mark.parametrize(
    ("kept", "edits"),
    [
        (jais_section(scale_output_logits_by_d=False), {"mup_output_alpha": 3.0}),
        (jais_section(scale_output_logits_by_d=False), {"mup_width_scale": 0.5}),
        (DEPRECATED, {"mup_width_scale": 0.5}),
        (jais_section(), {"mup_width_scale": 1.0, "mup_output_alpha": 0.7}),
        (jais_section(embd_pdrop=None), {"resid_pdrop": 0.25}),
    ],
)
def test_an_edit_of_what_several_keys_say_together_means_what_the_public_keys_say(kept, edits):
    public = to_config_json(kept, "float32", TOKENS) | edits
    section, _ = to_model_section(json.loads(json.dumps(public)))
    again = to_config_json(section, "float32", TOKENS)
    product = public.pop("mup_output_alpha") * public.pop("mup_width_scale")
    assert again.pop("mup_output_alpha") * again.pop("mup_width_scale") == pytest.approx(product)
    del public["cerebras"], again["cerebras"]
    assert again == public


def test_an_edited_alpha_keeps_the_base_filter_size():
    public = to_config_json(jais_section(mup_base_filter_size=40), "float32", TOKENS) | {"mup_output_alpha": 3.0}
    section, _ = to_model_section(public)
    assert (section["mup_base_filter_size"], section["output_logits_alpha"]) == (40, 3.0)


def test_an_edit_that_the_kept_section_cannot_follow_is_refused():
    kept = jais_section(initializer={"name": "truncated_normal", "mean": 0.0, "std": 0.03})
    public = to_config_json(kept, "float32", TOKENS) | {"initializer_range": 0.01}
    with pytest.raises(ConversionError, match="initializer_range was edited"):
        to_model_section(public)


@pytest.mark.parametrize("value", [float("nan"), datetime.date(2026, 1, 1), "\ud800"])
def test_a_section_that_json_cannot_hold_is_refused(value):
    with pytest.raises(ConversionError, match="JSON"):
        to_config_json(jais_section(extra_attention_params={"attention_kernel": value}), "float32", TOKENS)


@pytest.mark.parametrize("key", ["mup_output_alpha", "n_embd", "n_inner", "layer_norm_epsilon"])
def test_a_number_beyond_floating_point_is_refused(key):
    with pytest.raises(ConversionError, match=r"config\.json"):
        to_model_section(JAIS_590M | {key: 10**400})


def test_two_bases_of_the_rotary_positions_are_refused_naming_both():
    two = {"rope_theta": 10000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    with pytest.raises(ConversionError, match=r"rope_theta 10000 and rope_parameters\.rope_theta 500000"):
        to_model_section(LLAMA | two)
