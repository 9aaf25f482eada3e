"""A `model:` section is read whole, or refused with the key and the remedy."""

import pytest

from cerebras_jais.model.config import DecoderConfig, ModelConfigError
from tests import published
from tests.cerebras_jais.model.examples import jais_section, llama_section


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hiden_size": 4}, "model.hiden_size: unknown key; did you mean 'hidden_size'"),
        ({"vocab_size": "many"}, "model.vocab_size: must be a whole number"),
        ({"num_heads": 7}, "model.num_heads: must divide hidden_size 48"),
        ({"nonlinearity": "gelu"}, "model.nonlinearity: 'gelu' is outside the family"),
        ({"position_embedding_type": "learned"}, "whose models have alibi or rotary"),
        ({"mup_base_filter_size": None}, "give both mup_base_"),
        ({"output_logits_scale": 0.3}, "model.output_logits_scale: is the deprecated form"),
        ({"use_sink_token": True}, "model.use_sink_token: True is outside the family"),
        ({"initializer": {"name": "xavier_uniform"}}, "model.initializer: 'xavier_uniform' is outside"),
        ({"share_embedding_weights": 1}, "model.share_embedding_weights: must be true or false"),
        ({"norm_type": 5}, "model.norm_type: must be a string (got 5)"),
        ({"norm_type": "BatchNorm"}, "model.norm_type: 'batchnorm' is outside the family"),
        ({"loss_scaling": "tokens"}, "model.loss_scaling: must be 'num_tokens' or 'batch_size' (got 'tokens')"),
        ({"extra_attention_params": [4]}, "model.extra_attention_params: must be a mapping (got [4])"),
        ({"dropout_rate": 1.5}, "model.dropout_rate: must be a number from 0 to less than 1"),
        ({"initializer": 0.02}, "model.initializer: must be a name or a mapping"),
        ({"initializer": {"name": "normal", "std": None}}, "model.initializer.std: must be a number"),
        ({"hidden_size": float("inf")}, "model.hidden_size: must be a whole number"),
        ({"rope_theta": float("nan")}, "model.rope_theta: must be a number"),
        ({"mup_base_hidden_size": 0}, "model.mup_base_hidden_size: must be a number from 1 to 1048576"),
        ({"mup_base_hidden_size": None, "mup_base_filter_size": None}, "model.output_logits_alpha: has an effect only"),
        ({"extra_attention_params": {"num_kv_groups": 4}}, "model.attention_module: must be 'multiquery_attention'"),
        (
            {"attention_module": "multiquery_attention", "extra_attention_params": {"num_kv_groups": 2.5}},
            "num_kv_groups must be a whole number",
        ),
    ],
)
def test_what_does_not_describe_the_family_is_refused_by_name(change, message):
    with pytest.raises(ModelConfigError) as caught:
        DecoderConfig.from_section(jais_section(**change))
    assert message in str(caught.value)


def test_null_is_refused_where_the_model_zoo_has_no_meaning_for_it_and_the_default_where_it_has():
    with pytest.raises(ModelConfigError, match=r"^model\.dropout_rate: must not be null; .* its default 0\.1$"):
        DecoderConfig.from_section({**jais_section(), "dropout_rate": None})
    config = DecoderConfig.from_section({**llama_section(), "embeddings_scale": None, "attention_logits_alpha": None})
    assert (config.embeddings_scale, config.attention_logits_alpha) == (1.0, 1.0)


def test_an_error_says_its_key_and_its_problem():
    with pytest.raises(ModelConfigError) as caught:
        DecoderConfig.from_section(jais_section(initializer={"name": "normal", "std": 0}))
    assert caught.value.key == "initializer.std"
    assert str(caught.value) == f"model.initializer.std: {caught.value.problem}"


def test_numbers_come_in_the_type_of_their_field_and_words_in_small_letters():
    config = DecoderConfig.from_section(jais_section(num_heads=12.0, pos_scaling_factor=2, norm_type="LayerNorm"))
    assert (type(config.num_heads), type(config.pos_scaling_factor)) == (int, float)
    assert config.norm_type == "layernorm"


def test_attention_scale_is_one_over_d_under_mup_and_its_root_otherwise():
    assert DecoderConfig.from_section(jais_section()).attention_scale == pytest.approx(1 / 4)
    assert DecoderConfig.from_section(llama_section()).attention_scale == pytest.approx(1 / 2)
    assert DecoderConfig.from_section(jais_section(scale_qk_dot_by_d=False)).attention_scale == pytest.approx(1 / 2)


def test_logits_scale_of_jais_30b_is_the_published_product():
    row = published.MODELS["jais-family-30b-8k"]  # HF writes it as mup_output_alpha * mup_width_scale
    sizes = {"hidden_size": row.hidden, "num_heads": row.heads, "mup_base_hidden_size": 256}
    config = DecoderConfig.from_section(jais_section(**sizes, output_logits_alpha=row.mup[1]))
    assert config.logits_scale == pytest.approx(row.mup[1] * 256 / row.hidden)
