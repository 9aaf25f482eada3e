"""The `model:` section of a trainer YAML and the config.json of a release: each from the other.

config.json carries what Hugging Face code computes with (the public keys) and, under `cerebras`, the whole `model:`
section, because a continued training needs what the public keys cannot say: initializers, the base filter size of muP,
dropouts, loss scaling. Coming back, the kept section counts, except for what was changed in the public keys since.
A release that does not carry the section is read from its public keys alone.

muP: mup_embeddings_scale = embeddings_scale; mup_output_alpha = output_logits_alpha; mup_width_scale =
mup_base_hidden_size / hidden_size; mup_scale_qk_dot_by_d = scale_qk_dot_by_d. The logits are multiplied by
mup_output_alpha * mup_width_scale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.rules import JAIS, architecture_of

RELEASE = "2.10.0"
# What the factor on the logits comes from.
_LOGITS_KEYS = {
    "mup_base_hidden_size",
    "mup_base_filter_size",
    "output_logits_alpha",
    "output_logits_scale",
    "scale_output_logits_by_d",
}
_OLD_NAMES = {"embedding_dropout_rate": "embd_pdrop", "model_name": "name"}
AUTO_MAP = {
    "AutoConfig": "configuration_jais.JAISConfig",
    "AutoModel": "modeling_jais.JAISModel",
    "AutoModelForCausalLM": "modeling_jais.JAISLMHeadModel",
    "AutoModelForSequenceClassification": "modeling_jais.JAISForSequenceClassification",
}


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens; None where the tokenizer has no such token."""

    bos: int | None
    eos: int | None
    pad: int | None

    def keys(self) -> dict[str, int | None]:
        return {"bos_token_id": self.bos, "eos_token_id": self.eos, "pad_token_id": self.pad}


def default_special_tokens(config: DecoderConfig) -> SpecialTokens:
    """The ids of the published models: 0 for everything in Jais, Llama's 1 and 2 in the adapted models."""
    return SpecialTokens(0, 0, 0) if architecture_of(config) is JAIS else SpecialTokens(1, 2, None)


def to_config_json(section: Mapping[str, Any], dtype: str, tokens: SpecialTokens) -> dict[str, Any]:
    """The config.json of a release.

    Args:
        section: the `model:` section as it was written; it comes back from the release unchanged.
        dtype: element type of the weights, such as "bfloat16".
        tokens: ids of the special tokens.

    Raises:
        ConversionError: the model has something that Hugging Face's class cannot express, or the section holds a value
            that JSON cannot (NaN, a date).
        ModelConfigError: the section does not describe a model.
    """
    config = DecoderConfig.from_section(section)
    refuse_inexpressible(config)
    found = {
        **_public_keys(config),
        **tokens.keys(),
        "use_cache": True,
        "torch_dtype": dtype,
        "cerebras": {"release": RELEASE, "model": dict(section)},
    }
    try:
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConversionError(f"the `model:` section cannot be written as JSON: {error}") from error
    return found


def to_model_section(config_json: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The `model:` section that a release's config.json describes, and notes on what had to be assumed.

    Raises:
        ConversionError: the config describes a model outside the family, or one that the Model Zoo cannot express.
        ModelConfigError: the section kept in the config does not describe a model.
    """
    try:
        return _to_model_section(config_json)
    except OverflowError as error:
        raise ConversionError(f"config.json: has a number beyond any size: {error}") from error


def _to_model_section(config_json: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    now, notes = _section_of(config_json)
    if "cerebras" not in config_json:
        notes.append("config.json carries no `model:` section; initializers, loss scaling and the like are defaults")
        return now, notes
    kept = config_json["cerebras"].get("model") if isinstance(config_json["cerebras"], Mapping) else None
    if not isinstance(kept, Mapping):
        raise ConversionError("config.json: `cerebras` must hold a mapping `model`; remove the key to do without it")
    then, _ = _section_of(_public_keys(DecoderConfig.from_section(kept)))
    changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if not changed:
        return dict(kept), []
    notes.append(f"config.json was edited since the release was made; taken over: {', '.join(changed)}")
    return _merged(kept, now, changed), notes


def _merged(kept: Mapping[str, Any], now: Mapping[str, Any], changed: list[str]) -> dict[str, Any]:
    """The kept section with what changed; ConversionError when the result does not say what the public keys say."""
    taken = set(changed)
    if taken & _LOGITS_KEYS:
        # The two forms of muP exclude one another, and alpha means something else without scale_output_logits_by_d; so
        # all of it is taken anew, but for a base filter size that still holds (a public config does not carry it).
        taken |= _LOGITS_KEYS | {"scale_qk_dot_by_d"}
        if "mup_base_filter_size" in kept and "mup_base_filter_size" in now:
            taken -= {"mup_base_filter_size"} - set(changed)
    section = _with_keys_of(kept, now, taken)
    # What followed from a default that has changed meanwhile, such as an absent embd_pdrop from dropout_rate.
    section = _with_keys_of(section, now, set(_differing(section, now)))
    left = _differing(section, now)
    if left:
        raise ConversionError(
            f"config.json: {', '.join(left)} was edited, but the section under `cerebras` cannot follow; change "
            "`cerebras.model` in the same way, or remove `cerebras` to go by the public keys alone"
        )
    return section


def _with_keys_of(section: Mapping[str, Any], now: Mapping[str, Any], taken: set[str]) -> dict[str, Any]:
    dropped = taken | {alias for alias, key in _OLD_NAMES.items() if key in taken}
    return {key: value for key, value in section.items() if key not in dropped} | {
        key: value for key, value in now.items() if key in taken
    }


def _differing(section: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys in which the public form of a section is not what `now` says, rounding aside."""
    again, _ = _section_of(_public_keys(DecoderConfig.from_section(section)))

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, float) and isinstance(b, float):
            return math.isclose(a, b, rel_tol=1e-9)
        return a == b

    return [key for key in {**again, **now} if not same(again.get(key), now.get(key))]


def refuse_inexpressible(config: DecoderConfig) -> None:
    """Raise ConversionError when Hugging Face's Jais or Llama class cannot compute what this model computes."""
    jais = architecture_of(config) is JAIS
    target = "a Hugging Face Jais model" if jais else "LlamaForCausalLM"

    def demand(holds: bool, key: str, why: str) -> None:
        if not holds:
            raise ConversionError(f"model.{key} = {getattr(config, key)!r}: {target} {why}")

    demand(not config.use_bias_in_output, "use_bias_in_output", "has no bias in its head")
    demand(config.pos_scaling_factor >= 1, "pos_scaling_factor", "can only stretch positions, by a factor of 1 or more")
    if jais:
        demand(config.norm_type == "layernorm", "norm_type", "has LayerNorm only")
        demand(config.num_kv_groups == config.num_heads, "extra_attention_params", "has no grouped queries")
        demand(
            config.attention_logits_alpha == 1, "attention_logits_alpha", "has no such factor; only 1 can be released"
        )
        for key in ("use_projection_bias_in_attention", "use_ffn_bias_in_attention", "use_ffn_bias"):
            demand(getattr(config, key), key, "has biases in every layer")
        return
    demand(config.norm_type == "rmsnorm", "norm_type", "has RMSNorm only")
    demand(
        config.use_projection_bias_in_attention == config.use_ffn_bias_in_attention,
        "use_ffn_bias_in_attention",
        "has biases in all four attention projections or in none; use_projection_bias_in_attention differs",
    )
    demand(
        config.effective_rotary_dim == config.head_dim,
        "rotary_dim",
        f"rotates whole heads ({config.head_dim} dimensions)",
    )
    demand(config.embeddings_scale == 1, "embeddings_scale", "does not scale its embeddings; only 1 can be released")
    if config.logits_scale != 1:
        raise ConversionError(f"the logits are multiplied by {config.logits_scale:.6g} (muP): {target} cannot do that")
    if not math.isclose(config.attention_scale, config.head_dim**-0.5, rel_tol=1e-12):
        raise ConversionError(
            f"q.k is multiplied by {config.attention_scale:.6g} (scale_qk_dot_by_d, attention_logits_alpha): "
            f"{target} always uses 1/sqrt({config.head_dim})"
        )


# ---- section -> public keys -----------------------------------------------------------------------------------------


def _public_keys(config: DecoderConfig) -> dict[str, Any]:
    return _jais_keys(config) if architecture_of(config) is JAIS else _llama_keys(config)


def _jais_keys(c: DecoderConfig) -> dict[str, Any]:
    width = 1.0 if c.mup_base_hidden_size is None else c.mup_base_hidden_size / c.hidden_size
    alpha = (c.output_logits_alpha or 1.0) if c.is_mup and c.scale_output_logits_by_d else c.logits_scale / width
    by_d = c.is_mup if c.scale_qk_dot_by_d is None else c.scale_qk_dot_by_d
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
        "alibi_scaling": _linear_scaling(c.pos_scaling_factor),
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


def _llama_keys(c: DecoderConfig) -> dict[str, Any]:
    scaling = None if c.pos_scaling_factor == 1 else {"rope_type": "linear", "factor": c.pos_scaling_factor}
    return {
        "architectures": ["LlamaForCausalLM"],
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


def _linear_scaling(factor: float) -> dict[str, Any] | None:
    return None if factor == 1 else {"type": "linear", "factor": factor}


# ---- public keys -> section -----------------------------------------------------------------------------------------


def _section_of(config_json: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    kind = config_json.get("model_type")
    if kind == "jais":
        return _jais_section(_Keys(config_json))
    if kind == "llama":
        return _llama_section(_Keys(config_json))
    raise ConversionError(f"config.json: model_type is {kind!r}; only 'jais' and 'llama' are of the family")


class _Keys:
    """config.json with errors that name the key; absent keys have the defaults of Hugging Face's class."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def size(self, *names: str, default: int | None = None) -> int:
        value = self.get(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConversionError(f"config.json: {names[0]} must be a positive whole number (got {value!r})")
        return value

    def number(self, *names: str, default: float) -> float:
        value = self.get(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConversionError(f"config.json: {names[0]} must be a number (got {value!r})")
        return float(value)

    def truth(self, *names: str, default: bool) -> bool:
        value = self.get(*names, default=default)
        if not isinstance(value, bool):
            raise ConversionError(f"config.json: {names[0]} must be true or false (got {value!r})")
        return value

    def get(self, *names: str, default: Any = None) -> Any:
        """The value under the first of several names of one thing; different values under two names are refused."""
        found = {name: self.values[name] for name in names if self.values.get(name) is not None}
        if len({repr(value) for value in found.values()}) > 1:
            raise ConversionError(f"config.json: {' and '.join(found)} are names of one thing but differ; remove one")
        return next(iter(found.values()), default)

    def demand(self, name: str, allowed: tuple, why: str) -> None:
        if self.values.get(name, allowed[0]) not in allowed:
            raise ConversionError(f"config.json: {name} is {self.values[name]!r}: {why}")


def _jais_section(keys: _Keys) -> tuple[dict[str, Any], list[str]]:
    keys.demand("activation_function", ("swiglu",), "the models of the family use swiglu")
    keys.demand("position_embedding_type", ("alibi",), "the models of the family use alibi")
    keys.demand("scale_attn_weights", (True,), "the Model Zoo always scales q.k")
    keys.demand("scale_attn_by_inverse_layer_idx", (False, None), "the Model Zoo's Jais does not scale by layer")
    hidden = keys.size("n_embd", "hidden_size")
    filter_size = keys.size("n_inner", default=4 * hidden)
    section = {
        "name": "jais",
        "vocab_size": keys.size("vocab_size"),
        "max_position_embeddings": keys.size("n_positions", "max_position_embeddings"),
        "hidden_size": hidden,
        "num_hidden_layers": keys.size("n_layer", "num_hidden_layers"),
        "num_heads": keys.size("n_head", "num_attention_heads"),
        "filter_size": filter_size,
        "position_embedding_type": "alibi",
        "nonlinearity": "swiglu",
        "norm_type": "layernorm",
        "layer_norm_epsilon": keys.number("layer_norm_epsilon", default=1e-5),
        "share_embedding_weights": keys.truth("tie_word_embeddings", default=True),
        "use_bias_in_output": False,
        "use_ffn_bias": True,
        "use_ffn_bias_in_attention": True,
        "use_projection_bias_in_attention": True,
        "dropout_rate": keys.number("resid_pdrop", default=0.1),
        "embd_pdrop": keys.number("embd_pdrop", default=0.1),
        "attention_dropout_rate": keys.number("attn_pdrop", default=0.1),
        "initializer_range": keys.number("initializer_range", default=0.02),
        "embeddings_scale": keys.number("mup_embeddings_scale", "embeddings_scale", default=1.0),
        "scale_qk_dot_by_d": keys.truth("mup_scale_qk_dot_by_d", "scale_qk_dot_by_d", default=False),
    }
    factor = _alibi_factor(keys.get("alibi_scaling"))
    if factor != 1:
        section["pos_scaling_factor"] = factor
    mup, notes = _mup_of(keys, hidden, filter_size)
    return section | mup, notes


def _mup_of(keys: _Keys, hidden: int, filter_size: int) -> tuple[dict[str, Any], list[str]]:
    """The muP keys that follow from the factor on the logits."""
    width = keys.number("mup_width_scale", default=1.0)
    alpha = keys.number("mup_output_alpha", default=1.0)
    if "width_scale" in keys.values:  # the first Jais code: the product under the name of one of its factors
        if alpha != 1 or width != 1:
            raise ConversionError(
                "config.json: width_scale is the old name of what mup_output_alpha and mup_width_scale say; "
                "remove one of the two forms"
            )
        alpha = keys.number("width_scale", default=1.0)
    for name, value in (("mup_width_scale", width), ("mup_output_alpha", alpha)):
        if value <= 0:
            raise ConversionError(f"config.json: {name} must be above 0 (got {value!r})")
    if width != 1:
        base = _whole(width * hidden)
        filter_base = _whole(filter_size * base / hidden)
        note = f"mup_base_filter_size = filter_size * mup_base_hidden_size / hidden_size = {filter_base:g} (derived)"
        found = {"mup_base_hidden_size": base, "mup_base_filter_size": filter_base, "output_logits_alpha": alpha}
        return found, [note]
    if alpha == 1:
        return {}, []
    note = (
        f"config.json says only that the logits are multiplied by {alpha:g}, not how that splits into muP's alpha and "
        "width: written as output_logits_scale, which is right for the logits; to train on under muP, set "
        "mup_base_hidden_size, mup_base_filter_size and output_logits_alpha instead"
    )
    return {"output_logits_scale": alpha}, [note]


def _whole(value: float) -> float:
    """`value`, or the whole number that it is but for rounding."""
    return float(round(value)) if math.isclose(value, round(value), rel_tol=1e-9) else value


def _alibi_factor(scaling: Any) -> float:
    if scaling is None:
        return 1.0
    if not isinstance(scaling, Mapping) or scaling.get("type") != "linear":
        raise ConversionError(f"config.json: alibi_scaling must be null or of the type linear (got {scaling!r})")
    if scaling.get("factor") is None and "train_seq_len" in scaling:
        raise ConversionError(
            "config.json: alibi_scaling with train_seq_len divides the slopes by a factor that follows the length of "
            "the input; the Model Zoo has only a fixed one: set alibi_scaling to null or to "
            '{"type": "linear", "factor": F} for the length to train at'
        )
    return _factor(scaling, "alibi_scaling")


def _factor(scaling: Mapping[str, Any], key: str) -> float:
    factor = scaling.get("factor")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1 <= factor < math.inf:
        raise ConversionError(f"config.json: factor of {key} must be a number of 1 or more (got {factor!r})")
    return float(factor)


def _llama_section(keys: _Keys) -> tuple[dict[str, Any], list[str]]:
    keys.demand("hidden_act", ("silu",), "the models of the family use silu")
    hidden, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    head_dim = keys.size("head_dim", default=hidden // heads)
    if head_dim * heads != hidden:
        raise ConversionError(f"config.json: head_dim {head_dim} times {heads} heads is not hidden_size {hidden}")
    theta, factor = _rope_of(keys)
    biases = keys.truth("attention_bias", default=False)
    section: dict[str, Any] = {
        "name": "llama",
        "vocab_size": keys.size("vocab_size"),
        "max_position_embeddings": keys.size("max_position_embeddings", default=2048),
        "hidden_size": hidden,
        "num_hidden_layers": keys.size("num_hidden_layers"),
        "num_heads": heads,
        "filter_size": keys.size("intermediate_size"),
        "position_embedding_type": "rotary",
        "rotary_dim": head_dim,
        "rope_theta": theta,
        "nonlinearity": "swiglu",
        "norm_type": "rmsnorm",
        "layer_norm_epsilon": keys.number("rms_norm_eps", default=1e-6),
        "share_embedding_weights": keys.truth("tie_word_embeddings", default=False),
        "use_bias_in_output": False,
        "use_ffn_bias": keys.truth("mlp_bias", default=False),
        "use_ffn_bias_in_attention": biases,
        "use_projection_bias_in_attention": biases,
        "dropout_rate": 0.0,
        "attention_dropout_rate": keys.number("attention_dropout", default=0.0),
        "initializer_range": keys.number("initializer_range", default=0.02),
    }
    if factor != 1:
        section["pos_scaling_factor"] = factor
    groups = keys.size("num_key_value_heads", default=heads)
    if groups != heads:
        section["attention_module"] = "multiquery_attention"
        section["extra_attention_params"] = {"num_kv_groups": groups}
    return section, []


def _rope_of(keys: _Keys) -> tuple[float, float]:
    """(theta, factor) of the rotary positions, from the keys of transformers 4 or 5."""
    parameters = keys.get("rope_parameters", default={})
    scaling = keys.get("rope_scaling", default={}) or parameters
    for key, value in (("rope_parameters", parameters), ("rope_scaling", scaling)):
        if not isinstance(value, Mapping):
            raise ConversionError(f"config.json: {key} must be a mapping (got {value!r})")
    places = {
        "rope_theta": keys.values,
        "rope_parameters.rope_theta": parameters,
        "rope_scaling.rope_theta": keys.get("rope_scaling", default={}),
    }
    thetas = {
        place: _Keys(values).number("rope_theta", default=10000.0)
        for place, values in places.items()
        if values.get("rope_theta") is not None
    }
    if len(set(thetas.values())) > 1:
        raise ConversionError(
            f"config.json: {' and '.join(f'{place} {value:g}' for place, value in thetas.items())} are one thing but "
            "differ; make them equal or remove one"
        )
    theta = next(iter(thetas.values()), 10000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ConversionError(
            f"config.json: rotary scaling of the type {kind!r} is not in the Model Zoo's Llama of the family"
        )
    return theta, 1.0 if kind == "default" else _factor(scaling, "rope_scaling")
