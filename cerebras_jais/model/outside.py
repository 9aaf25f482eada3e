"""Keys of the Model Zoo's GPT-2 class that are no field of DecoderConfig, and what each of them means here.

Source: GPT2LMHeadModelConfig (models/nlp/gpt2/gpt2_model.py) and GPT2ModelConfig (models/nlp/gpt2/model.py) of Model
Zoo 2.10, with their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Any other value is another kind of model than those of the family.
ONLY_AT_DEFAULT: Mapping[str, Any] = {
    "num_extra_input_vocab_tokens": 0,
    "constant_pos_embedding": None,
    "position_embedding_offset": 0,
    "embedding_layer_norm": False,
    "num_relative_attention_buckets": 32,
    "attention_type": "scaled_dot_product",
    "attention_sliding_window_length": None,
    "sliding_window_every_other_decoder_layer": False,
    "sliding_window_every_other_decoder_layer_pattern": "full_attention_first",
    "attention_sink_tokens": None,
    "attention_vertical_column_spacing": None,
    "attention_vertical_column_width": None,
    "attention_chunk_size": None,
    "attention_qk_norm_layer": None,
    "extra_ffn_params": {},
    "attention_inner_dim": None,
    "attention_logit_softcapping": None,
    "fixed_sparse_attention": None,
    "memory_tokens_config": None,
    "memory_tokens": None,
    "use_experimental_flex_api": False,
    "use_sink_token": False,
    "alibi_trainable_slopes": False,
    "pos_scaling_type": "linear",
    "cross_attention_layers": [],
    "rel_distance_mode": "default",
    "rel_distance_extra_args": None,
    "scale_qk_dot_by_layer_idx": False,
    "norm_first_sandwich": False,
    "final_logit_softcapping": None,
    "moe_params": None,
    "moe": None,
    "dtype": None,
}

# Features that one item of their mapping switches off: key -> (item, the values that mean off).
_UNUSED_FEATURES: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    **dict.fromkeys(("moe_params", "moe"), ("num_experts", (0, 1, None))),
    **dict.fromkeys(("memory_tokens_config", "memory_tokens"), ("memory_tokens_enabled", (False, None))),
}

# These change neither a model of the family nor its training.
WITHOUT_EFFECT = (
    # Read only together with another key, and only where that key has a value outside the family.
    *("pos_scaling_extra_args", "attention_qk_norm_eps"),
    # For generation on a CS system.
    *("start_token", "loop_dim", "stop_sequences", "max_tokens", "temperature", "top_k", "top_p"),
)

# Learning-rate scales of groups of weights: a choice of the run, not of the model. Under muP the Model Zoo's model sets
# them itself, and its trainer records the values from before that.
RATE_GROUPS = "lr_adjustment_groups"
_DEFAULT_PATTERNS: Mapping[str, list[str]] = {
    "embedding": ["*embedding*weight"],
    "decoder_kernel": ["*decoder*dense*weight", "*decoder*linear*weight", "*decoder*linear*expert_weights"],
    "decoder_attention": ["*decoder*attn*dense*weight"],
    "decoder_input_ffn": ["*decoder*ffn.ffn.[!1]*weight", "*decoder*ffn.ffn.[!1]*expert_weights"],
    "decoder_output_ffn": ["*decoder*ffn.ffn.[1]*weight", "*decoder*ffn.ffn.[1]*expert_weights"],
}


def is_default(key: str, value: Any) -> bool:
    """Whether a value of one of ONLY_AT_DEFAULT, or of RATE_GROUPS, is what the Model Zoo takes where it is absent."""
    if key == RATE_GROUPS:
        return value is None or _rate_groups(value) == _DEFAULT_PATTERNS
    if key in _UNUSED_FEATURES and isinstance(value, Mapping):
        switch, off = _UNUSED_FEATURES[key]
        return value.get(switch) in off
    return bool(value == ONLY_AT_DEFAULT[key])


def _rate_groups(value: Any) -> dict[Any, Any] | None:
    """The patterns of each group, None where a group is no mapping or has a scale other than 1."""
    if not isinstance(value, Mapping):
        return None
    found = {}
    for name, group in value.items():
        if not isinstance(group, Mapping) or group.get("scale", 1.0) != 1:
            return None
        patterns = group.get("param_filter_patterns")
        found[name] = [patterns] if isinstance(patterns, str) else patterns
    return found
