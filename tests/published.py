"""The published models of the family: the one table of their sizes in the tests.

Typed from the model card and from the config.json of each model; nothing here comes from the catalog, which is tested
against it. Four rows have no config.json that could be read: 1p3b and the two of 30b have the sizes that their kin
and their parameter counts leave, adapted-70b those of Llama 2 70B with the longer vocabulary. Parameters count a tied
head once, and ALiBi's slopes. A chat model has the sizes of its base.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """Sizes of one model, and the tokens of its training data in billions as the card rounds them."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    filter_size: int
    vocabulary: int
    context: int
    parameters: int
    mup: tuple[float, float] | None  # embeddings_scale and output_logits_alpha at a base width of 256
    tokens: tuple[int, int, int, int]  # English, Arabic, code, all


UP_TO_13B, OF_30B = (9.1705785388303, 1.09518349815769), (14.6, 2.22)
SMALL_DATA, DATA_8K, DATA_16K = (283, 141, 56, 480), (882, 441, 177, 1500), (980, 490, 196, 1666)
BASES = {
    "jais-family-590m": Published(1536, 18, 12, 12, 4096, 84992, 2048, 640_555_020, UP_TO_13B, SMALL_DATA),
    "jais-family-1p3b": Published(2048, 24, 16, 16, 5472, 84992, 2048, 1_384_305_168, UP_TO_13B, SMALL_DATA),
    "jais-family-2p7b": Published(2560, 32, 20, 20, 6832, 84992, 2048, 2_736_652_308, UP_TO_13B, SMALL_DATA),
    "jais-family-6p7b": Published(4096, 32, 32, 32, 10928, 84992, 2048, 6_794_562_592, UP_TO_13B, SMALL_DATA),
    "jais-family-13b": Published(5120, 40, 40, 40, 13664, 84992, 2048, 13_027_571_240, UP_TO_13B, SMALL_DATA),
    "jais-family-30b-8k": Published(7168, 48, 56, 56, 19114, 84992, 8192, 30_208_489_464, OF_30B, DATA_8K),
    "jais-family-30b-16k": Published(7168, 48, 56, 56, 19114, 84992, 16384, 30_208_489_464, OF_30B, DATA_16K),
    "jais-adapted-7b": Published(4096, 32, 32, 32, 11008, 64000, 4096, 7_000_559_616, None, (18, 19, 2, 39)),
    "jais-adapted-13b": Published(5120, 40, 40, 40, 13824, 64000, 4096, 13_343_544_320, None, (127, 140, 13, 280)),
    "jais-adapted-70b": Published(8192, 80, 64, 8, 28672, 64000, 4096, 69_500_936_192, None, (33, 334, 4, 371)),
}


@dataclass(frozen=True)
class PublishedRun:
    """A training run as a card gives it."""

    batch_size: int
    steps: int
    warmup_steps: int
    peak_lr: float
    final_lr: float
    context: int
    decay: str
    weight_decay: float


ADAPTED_70B_CHAT = PublishedRun(264, 13175, 380, 2.0e-5, 2.0e-6, 4096, "cosine", 0.1)
MODELS = {f"{name}{kind}": row for name, row in BASES.items() for kind in ("", "-chat")}


@dataclass(frozen=True)
class Older:
    """Sizes of a Jais model before the family, and the factor on its logits, as printed."""

    hidden: int
    layers: int
    heads: int
    filter_size: int
    logits_scale: float


OLDER = {
    "jais-13b": Older(5120, 40, 40, 13653, 0.11100000000000002),
    "jais-30b-v1": Older(7168, 48, 56, 19114, 0.07928571428571429),
}
# Files print one alpha with different last digits, and width scales as Python prints the quotient.
_ALPHA_AS_PRINTED = {"jais-family-2p7b": 1.0951834981576898, "jais-family-13b": 1.0951834981576898}


def config_json(name: str) -> dict[str, Any]:
    """The keys of a model's config.json, as published, that say what the model is."""
    row = MODELS[name]
    if row.mup is None:
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "hidden_size": row.hidden,
            "initializer_range": 0.02,
            "intermediate_size": row.filter_size,
            "max_position_embeddings": row.context,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": row.heads,
            "num_hidden_layers": row.layers,
            "num_key_value_heads": row.kv_heads,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "use_cache": True,
            "vocab_size": row.vocabulary,
        }
    embeddings_scale, alpha = row.mup
    return {
        "activation_function": "swiglu",
        "architectures": ["JAISLMHeadModel"],
        "alibi_scaling": None,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "jais",
        "mup_embeddings_scale": embeddings_scale,
        "mup_output_alpha": _ALPHA_AS_PRINTED.get(name.removesuffix("-chat"), alpha),
        "mup_scale_qk_dot_by_d": True,
        "mup_width_scale": 256 / row.hidden,
        "n_embd": row.hidden,
        "n_head": row.heads,
        "n_inner": row.filter_size,
        "n_layer": row.layers,
        "n_positions": row.context,
        "position_embedding_type": "alibi",
        "resid_pdrop": 0.0,
        "scale_attn_weights": True,
        "use_cache": True,
        "vocab_size": row.vocabulary,
    }


def older_config_json(name: str) -> dict[str, Any]:
    """The same of a model before the family, in the old names of muP's keys."""
    row = OLDER[name]
    of_family = {key: value for key, value in config_json("jais-family-13b").items() if not key.startswith("mup_")}
    return of_family | {
        "embeddings_scale": OF_30B[0],
        "n_embd": row.hidden,
        "n_head": row.heads,
        "n_inner": row.filter_size,
        "n_layer": row.layers,
        "scale_qk_dot_by_d": True,
        "width_scale": row.logits_scale,
    }


def sibling_config_json() -> dict[str, Any]:
    """The same of jais-family-256m, which is published and not one of the 20."""
    return config_json("jais-family-590m") | {
        "mup_width_scale": 0.23529411764705882,
        "n_embd": 1088,
        "n_head": 17,
        "n_inner": 2912,
        "n_layer": 14,
    }


# Keys that stand in published files and say nothing of the model.
WITHOUT_MEANING = {
    "_name_or_path": "some/where",
    "auto_map": {"AutoConfig": "inceptionai/jais-30b-v3--configuration_jais.JAISConfig"},
    "pretraining_tp": 1,
    "reorder_and_upcast_attn": False,
    "rotary_dim": None,
    "scale_attn_by_inverse_layer_idx": False,
    "torch_dtype": "float32",
    "transformers_version": "4.40.1",
}
