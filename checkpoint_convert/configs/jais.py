"""The `model:` section of a Jais model and the public keys of its config.json: each from the other.

muP: mup_embeddings_scale = embeddings_scale; mup_output_alpha = output_logits_alpha; mup_width_scale =
mup_base_hidden_size / hidden_size; mup_scale_qk_dot_by_d = scale_qk_dot_by_d. The logits are multiplied by
mup_output_alpha * mup_width_scale. The first Jais code has older names for these (see `_mup_of`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cerebras_jais.catalog.size_rules import MUP_BASE_WIDTH
from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.configs.json_keys import Keys, scaling_factor
from checkpoint_convert.configs.mup import base_filter_size, base_hidden_size, output_alpha
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.mapping.rules import JAIS

AUTO_MAP = {
    "AutoConfig": "configuration_jais.JAISConfig",
    "AutoModel": "modeling_jais.JAISModel",
    "AutoModelForCausalLM": f"modeling_jais.{JAIS.transformers_class}",
    "AutoModelForSequenceClassification": "modeling_jais.JAISForSequenceClassification",
}


def jais_keys(c: DecoderConfig) -> dict[str, Any]:
    """The public keys of a release's config.json."""
    width = 1.0 if c.mup_base_hidden_size is None else c.mup_base_hidden_size / c.hidden_size
    alpha = (c.output_logits_alpha or 1.0) if c.is_mup and c.scale_output_logits_by_d else c.logits_scale / width
    by_d = c.is_mup if c.scale_qk_dot_by_d is None else c.scale_qk_dot_by_d
    scaling = None if c.pos_scaling_factor == 1 else {"type": "linear", "factor": c.pos_scaling_factor}
    return {
        "architectures": [JAIS.transformers_class],
        "auto_map": dict(AUTO_MAP),
        "model_type": "jais",
        "vocab_size": c.vocab_size,
        "n_positions": c.max_position_embeddings,
        "n_embd": c.hidden_size,
        "n_layer": c.num_hidden_layers,
        "n_head": c.num_heads,
        "n_inner": c.filter_size,
        "activation_function": "swiglu",
        "position_embedding_type": "alibi",
        "alibi_scaling": scaling,
        "layer_norm_epsilon": c.layer_norm_epsilon,
        "resid_pdrop": c.dropout_rate,
        "embd_pdrop": c.embedding_dropout,
        "attn_pdrop": c.attention_dropout,
        "initializer_range": c.initializer.std if c.initializer else c.initializer_range,
        "scale_attn_weights": True,
        "mup_embeddings_scale": c.embeddings_scale,
        "mup_output_alpha": alpha,
        "mup_width_scale": width,
        "mup_scale_qk_dot_by_d": by_d,
        "tie_word_embeddings": c.share_embedding_weights,
    }


def jais_section(config_json: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The `model:` section that the public keys describe, and notes on what is derived or assumed.

    Raises:
        ConversionError: a key has a value that the family or the Model Zoo does not support.
    """
    keys = Keys(config_json)
    keys.require("activation_function", ("swiglu",), "the models of the family use swiglu")
    keys.require("position_embedding_type", ("alibi",), "the models of the family use alibi")
    keys.require("scale_attn_weights", (True,), "the Model Zoo always scales q.k")
    keys.require("scale_attn_by_inverse_layer_idx", (False, None), "the models of the family do not scale by layer")
    keys.require("alibi_trainable_slopes", (False, None), "the slopes of the family are fixed")
    hidden = keys.positive_int("n_embd", "hidden_size")
    filter_size = keys.positive_int("n_inner", default=4 * hidden)
    section = {
        "name": "jais",
        "vocab_size": keys.positive_int("vocab_size"),
        "max_position_embeddings": keys.positive_int("n_positions", "max_position_embeddings"),
        "hidden_size": hidden,
        "num_hidden_layers": keys.positive_int("n_layer", "num_hidden_layers"),
        "num_heads": keys.positive_int("n_head", "num_attention_heads"),
        "filter_size": filter_size,
        "position_embedding_type": "alibi",
        "nonlinearity": "swiglu",
        "norm_type": "layernorm",
        "layer_norm_epsilon": keys.number("layer_norm_epsilon", default=1e-5),
        "share_embedding_weights": keys.boolean("tie_word_embeddings", default=True),
        "use_bias_in_output": False,
        "use_ffn_bias": True,
        "use_ffn_bias_in_attention": True,
        "use_projection_bias_in_attention": True,
        "dropout_rate": keys.number("resid_pdrop", default=0.1),
        "embd_pdrop": keys.number("embd_pdrop", default=0.1),
        "attention_dropout_rate": keys.number("attn_pdrop", default=0.1),
        "initializer_range": keys.number("initializer_range", default=0.02),
        "embeddings_scale": keys.number("mup_embeddings_scale", "embeddings_scale", default=1.0),
        "scale_qk_dot_by_d": keys.boolean("mup_scale_qk_dot_by_d", "scale_qk_dot_by_d", default=False),
    }
    factor = _alibi_factor(keys.get("alibi_scaling"))
    if factor != 1:
        section["pos_scaling_factor"] = factor
    mup, notes = _mup_of(keys, hidden, filter_size)
    return section | mup, notes


def _mup_of(keys: Keys, hidden: int, filter_size: int) -> tuple[dict[str, Any], list[str]]:
    """The muP keys that follow from the factor on the logits."""
    width = keys.number("mup_width_scale", default=1.0)
    alpha = keys.number("mup_output_alpha", default=1.0)
    product = keys.number("width_scale", default=1.0)  # the first Jais code: alpha * width as one number
    if "width_scale" in keys.values and (alpha != 1 or width != 1):
        raise ConversionError(
            "config.json: width_scale is the old name of the product of mup_output_alpha and mup_width_scale; "
            "remove one of the two forms"
        )
    for name, value in (("mup_width_scale", width), ("mup_output_alpha", alpha), ("width_scale", product)):
        if value <= 0:
            raise ConversionError(f"config.json: {name} must be above 0 (got {value!r})")
    notes = []
    if product != 1 and hidden > MUP_BASE_WIDTH:
        base = float(MUP_BASE_WIDTH)
        alpha = output_alpha(product, hidden, base)
        notes.append(
            f"config.json has only the factor on the logits, {product:g}; it is split into mup_base_hidden_size "
            f"{base:g}, assumed because every published Jais model has it, and output_logits_alpha {alpha:g}"
        )
    elif width != 1:
        base = base_hidden_size(hidden, width)
    else:
        return _undivided(alpha * product)
    filter_base = base_filter_size(filter_size, hidden, base)
    notes.append(f"mup_base_filter_size = filter_size * mup_base_hidden_size / hidden_size = {filter_base:g} (derived)")
    return {
        "mup_base_hidden_size": base,
        "mup_base_filter_size": filter_base,
        "output_logits_alpha": alpha,
    }, notes


def _undivided(logits_scale: float) -> tuple[dict[str, Any], list[str]]:
    if logits_scale == 1:
        return {}, []
    note = (
        f"config.json has only the factor on the logits, {logits_scale:g}, not muP's alpha and width; it is written as "
        "output_logits_scale, which gives the same logits. To continue training with muP, set mup_base_hidden_size, "
        "mup_base_filter_size and output_logits_alpha instead"
    )
    return {"output_logits_scale": logits_scale}, [note]


def _alibi_factor(scaling: Any) -> float:
    if scaling is None:
        return 1.0
    if not isinstance(scaling, Mapping) or scaling.get("type") != "linear":
        raise ConversionError(f"config.json: alibi_scaling must be null or of the type linear (got {scaling!r})")
    if scaling.get("train_seq_len") is not None:
        raise ConversionError(
            "config.json: alibi_scaling with train_seq_len divides the slopes by a factor that follows the length of "
            "the input; the Model Zoo has only a fixed one: set alibi_scaling to null or to "
            '{"type": "linear", "factor": F} for the length to train at'
        )
    return scaling_factor(scaling, "alibi_scaling")
