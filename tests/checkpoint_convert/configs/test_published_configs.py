"""config.json of every published model, as published, is understood to the last key.

Contract: the public keys of each of the 20 models become a section whose model has the published number of parameters,
and come back from that section equal; so do those of the Jais models before the family, in their old names.
"""

import math

import pytest

from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.configs.convert import SpecialTokens, to_config_json, to_model_section
from checkpoint_convert.mapping.rules import expected_tensors, ties


def family(hidden, layers, heads, inner, context, scale, alpha, width):
    return {
        "activation_function": "swiglu",
        "architectures": ["JAISLMHeadModel"],
        "alibi_scaling": None,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "jais",
        "mup_embeddings_scale": scale,
        "mup_output_alpha": alpha,
        "mup_scale_qk_dot_by_d": True,
        "mup_width_scale": width,
        "n_embd": hidden,
        "n_head": heads,
        "n_inner": inner,
        "n_layer": layers,
        "n_positions": context,
        "position_embedding_type": "alibi",
        "resid_pdrop": 0.0,
        "scale_attn_weights": True,
        "use_cache": True,
        "vocab_size": 84992,
    }


def adapted(hidden, layers, heads, groups, inner):
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": inner,
        "max_position_embeddings": 4096,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": groups,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": 64000,
    }


# Keys that stand in published files and say nothing of the model.
IGNORED = {
    "_name_or_path": "some/where",
    "auto_map": {"AutoConfig": "inceptionai/jais-30b-v3--configuration_jais.JAISConfig"},
    "pretraining_tp": 1,
    "reorder_and_upcast_attn": False,
    "rotary_dim": None,
    "scale_attn_by_inverse_layer_idx": False,
    "torch_dtype": "float32",
    "transformers_version": "4.40.1",
}
# The two sets of muP constants: the family up to 13b, 30b. One alpha was printed with different last digits.
UP_TO_13B, OF_30B = (9.1705785388303, 1.09518349815769), (14.6, 2.22)
BASES = {
    "jais-family-590m": (family(1536, 18, 12, 4096, 2048, *UP_TO_13B, 0.16666666666666666), 640_555_020),
    "jais-family-1p3b": (family(2048, 24, 16, 5472, 2048, *UP_TO_13B, 0.125), 1_384_305_168),
    "jais-family-2p7b": (family(2560, 32, 20, 6832, 2048, 9.1705785388303, 1.0951834981576898, 0.1), 2_736_652_308),
    "jais-family-6p7b": (family(4096, 32, 32, 10928, 2048, *UP_TO_13B, 0.0625), 6_794_562_592),
    "jais-family-13b": (family(5120, 40, 40, 13664, 2048, 9.1705785388303, 1.0951834981576898, 0.05), 13_027_571_240),
    "jais-family-30b-8k": (family(7168, 48, 56, 19114, 8192, *OF_30B, 0.03571428571428571), 30_208_489_464),
    "jais-family-30b-16k": (family(7168, 48, 56, 19114, 16384, *OF_30B, 0.03571428571428571), 30_208_489_464),
    "jais-adapted-7b": (adapted(4096, 32, 32, 32, 11008), 7_000_559_616),
    "jais-adapted-13b": (adapted(5120, 40, 40, 40, 13824), 13_343_544_320),
    "jais-adapted-70b": (adapted(8192, 80, 64, 8, 28672), 69_500_936_192),
}
PUBLISHED = {f"{name}{kind}": row for name, row in BASES.items() for kind in ("", "-chat")}
SIBLINGS = {"jais-family-256m": family(1088, 14, 17, 2912, 2048, *UP_TO_13B, 0.23529411764705882)}


def there_and_back(config):
    section, notes = to_model_section(config)
    return DecoderConfig.from_section(section), to_config_json(section, "float32", SpecialTokens(0, 0, 0)), notes


def test_there_are_twenty():
    assert len(PUBLISHED) == 20


@pytest.mark.parametrize("name", [*PUBLISHED, *SIBLINGS])
def test_the_public_keys_come_back_equal(name):
    config = PUBLISHED[name][0] if name in PUBLISHED else SIBLINGS[name]
    model, again, notes = there_and_back(config | IGNORED)
    assert {key: again.get(key) for key in config} == config
    if config["model_type"] == "jais":
        assert (model.mup_base_hidden_size, again["tie_word_embeddings"]) == (256, True)
        assert not any("assumed" in note for note in notes)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("side", ["cerebras", "hugging_face"])
def test_the_number_of_parameters_is_the_published_one(name, side):
    config, expected = PUBLISHED[name]
    model, _, _ = there_and_back(config)
    second = ties(model, side)
    shapes = expected_tensors(model, side)
    assert sum(math.prod(shape) for tensor, shape in shapes.items() if tensor not in second) == expected


# Before the family: embeddings_scale, width_scale = alpha * width, scale_qk_dot_by_d.
@pytest.mark.parametrize(
    ("sizes", "width_scale", "width"),
    [
        ({"n_embd": 5120, "n_head": 40, "n_layer": 40, "n_inner": 13653}, 0.11100000000000002, 0.05),
        ({"n_embd": 7168, "n_head": 56, "n_layer": 48, "n_inner": 19114}, 0.07928571428571429, 256 / 7168),
    ],
    ids=["jais-13b", "jais-30b-v1"],
)
def test_the_old_names_give_the_same_logits_and_the_width_that_all_published_models_have(sizes, width_scale, width):
    old = {key: value for key, value in BASES["jais-family-13b"][0].items() if not key.startswith("mup_")} | sizes
    old |= {"embeddings_scale": 14.6, "width_scale": width_scale, "scale_qk_dot_by_d": True}
    model, again, notes = there_and_back(old | IGNORED)
    assert model.logits_scale == width_scale  # to the last bit
    assert again["mup_output_alpha"] * again["mup_width_scale"] == width_scale
    assert (again["mup_output_alpha"], again["mup_width_scale"], model.mup_base_hidden_size) == (2.22, width, 256)
    assert (again["mup_embeddings_scale"], again["mup_scale_qk_dot_by_d"]) == (14.6, True)
    assert any("assumed" in note and "256" in note for note in notes)
