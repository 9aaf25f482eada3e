"""The `model:` section of a Llama model and the public keys of its config.json: each from the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.configs.json_keys import Keys, scaling_factor
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.mapping.rules import LLAMA


def llama_keys(c: DecoderConfig) -> dict[str, Any]:
    """The public keys of a release's config.json."""
    scaling = None if c.pos_scaling_factor == 1 else {"rope_type": "linear", "factor": c.pos_scaling_factor}
    return {
        "architectures": [LLAMA.transformers_class],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.max_position_embeddings,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.filter_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_groups,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": c.layer_norm_epsilon,
        "attention_bias": c.use_projection_bias_in_attention,
        "mlp_bias": c.use_ffn_bias,
        "attention_dropout": c.attention_dropout,
        "initializer_range": c.initializer.std if c.initializer else c.initializer_range,
        # transformers 4 reads the first two, transformers 5 the third.
        "rope_theta": c.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": c.rope_theta},
        "tie_word_embeddings": c.share_embedding_weights,
    }


def llama_section(config_json: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The `model:` section that the public keys describe, and notes on what is assumed.

    Raises:
        ConversionError: a key has a value that the family or the Model Zoo does not support.
    """
    keys = Keys(config_json)
    keys.require("hidden_act", ("silu",), "the models of the family use silu")
    hidden, heads = keys.positive_int("hidden_size"), keys.positive_int("num_attention_heads")
    head_dim = keys.positive_int("head_dim", default=hidden // heads)
    if head_dim * heads != hidden:
        raise ConversionError(f"config.json: head_dim {head_dim} times {heads} heads is not hidden_size {hidden}")
    theta, factor = _rope_of(keys)
    biases = keys.boolean("attention_bias", default=False)
    section: dict[str, Any] = {
        "name": "llama",
        "vocab_size": keys.positive_int("vocab_size"),
        "max_position_embeddings": keys.positive_int("max_position_embeddings", default=2048),
        "hidden_size": hidden,
        "num_hidden_layers": keys.positive_int("num_hidden_layers"),
        "num_heads": heads,
        "filter_size": keys.positive_int("intermediate_size"),
        "position_embedding_type": "rotary",
        "rotary_dim": head_dim,
        "rope_theta": theta,
        "nonlinearity": "swiglu",
        "norm_type": "rmsnorm",
        "layer_norm_epsilon": keys.number("rms_norm_eps", default=1e-6),
        "share_embedding_weights": keys.boolean("tie_word_embeddings", default=False),
        "use_bias_in_output": False,
        "use_ffn_bias": keys.boolean("mlp_bias", default=False),
        "use_ffn_bias_in_attention": biases,
        "use_projection_bias_in_attention": biases,
        "dropout_rate": 0.0,
        "attention_dropout_rate": keys.number("attention_dropout", default=0.0),
        "initializer_range": keys.number("initializer_range", default=0.02),
    }
    if factor != 1:
        section["pos_scaling_factor"] = factor
    groups = keys.positive_int("num_key_value_heads", default=heads)
    if groups != heads:
        section["attention_module"] = "multiquery_attention"
        section["extra_attention_params"] = {"num_kv_groups": groups}
    return section, []


def _rope_of(keys: Keys) -> tuple[float, float]:
    """(theta, factor) of the rotary positions, from the keys of transformers 4 or 5."""
    parameters, scaling = keys.mapping("rope_parameters"), keys.mapping("rope_scaling")
    mappings = {"": keys.values, "rope_parameters.": parameters, "rope_scaling.": scaling}
    theta = _one_number(mappings, "rope_theta", 10000.0)
    if _one_number(mappings, "partial_rotary_factor", 1.0) != 1:
        raise ConversionError(
            "config.json: partial_rotary_factor is not 1: the models of the family rotate whole heads"
        )
    scaling = scaling or parameters
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ConversionError(
            f"config.json: rotary scaling of the type {kind!r} is used by no model of the family and is not supported; "
            'use null or {"rope_type": "linear", "factor": F}'
        )
    return theta, 1.0 if kind == "default" else scaling_factor(scaling, "rope_scaling")


def _one_number(mappings: Mapping[str, Mapping[str, Any]], name: str, default: float) -> float:
    """The number under a name in those mappings that have it; they must all be equal."""
    found = {
        f"{prefix}{name}": Keys(values).number(name, default=default)
        for prefix, values in mappings.items()
        if values.get(name) is not None
    }
    if len(set(found.values())) > 1:
        raise ConversionError(
            f"config.json: {' and '.join(f'{name} {value:g}' for name, value in found.items())} must be "
            "equal; correct or remove one"
        )
    return next(iter(found.values()), default)
