"""The `model:` section of a trainer YAML and the config.json of a release: each from the other.

config.json has the keys that Hugging Face code computes with (the public keys) and, under `cerebras`, the whole
`model:` section. Continued training needs that section, because the public keys cannot express initializers, the base
filter size of muP, dropouts and loss scaling. On the way back the stored section is used, with the edits that were made
to the public keys after the release. A release without the section is read from its public keys alone.

The keys of each architecture are in jais.py and llama.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.modelzoo_version import VERSION
from cerebras_jais.ranges import shown
from checkpoint_convert.configs.jais import AUTO_MAP as AUTO_MAP
from checkpoint_convert.configs.jais import jais_keys, jais_section
from checkpoint_convert.configs.llama import llama_keys, llama_section
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.mapping.rules import JAIS, LLAMA, architecture_of

# The keys that decide the factor on the logits.
_LOGITS_KEYS = {
    "mup_base_hidden_size",
    "mup_base_filter_size",
    "output_logits_alpha",
    "output_logits_scale",
    "scale_output_logits_by_d",
}
_OLD_NAMES = {"embedding_dropout_rate": "embd_pdrop", "model_name": "name"}


SPECIAL_TOKENS = ("bos", "eos", "pad")
Ids = int | list[int] | None


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens; None where the tokenizer has no such token, a list where several ids end a text."""

    bos: Ids
    eos: Ids
    pad: Ids

    def keys(self) -> dict[str, Ids]:
        """The keys of config.json and generation_config.json."""
        return {f"{kind}_token_id": getattr(self, kind) for kind in SPECIAL_TOKENS}

    def __str__(self) -> str:
        return ", ".join(f"{key} {json.dumps(ids)}" for key, ids in self.keys().items())


def special_tokens_of(keys: Any) -> SpecialTokens | None:
    """The ids in config.json, or in the copy that a checkpoint stores; None where it has none.

    Raises:
        ConversionError: an id is not a whole number.
    """
    if not isinstance(keys, Mapping):
        return None
    found = [keys.get(f"{kind}_token_id") for kind in SPECIAL_TOKENS]
    for kind, ids in zip(SPECIAL_TOKENS, found, strict=True):
        several = ids if isinstance(ids, list) else [] if ids is None else [ids]
        if not all(type(number) is int for number in several):
            raise ConversionError(f"{kind}_token_id: must be a token's id, a list of ids, or null (got {shown(ids)})")
    return SpecialTokens(*found) if any(ids is not None for ids in found) else None


def default_special_tokens(config: DecoderConfig) -> SpecialTokens:
    """The ids of the published models: 0 for everything in Jais, Llama's 1 and 2 in the adapted models."""
    return SpecialTokens(0, 0, 0) if architecture_of(config) is JAIS else SpecialTokens(1, 2, None)


def to_config_json(section: Mapping[str, Any], dtype: str, tokens: SpecialTokens) -> dict[str, Any]:
    """The config.json of a release.

    Args:
        section: the `model:` section as written; `to_model_section` returns it unchanged.
        dtype: element type of the weights, such as "bfloat16".
        tokens: ids of the special tokens.

    Raises:
        ConversionError: Hugging Face's class cannot express the model, or JSON cannot express a value of the section
            (NaN, a date).
        ModelConfigError: the section does not describe a model.
    """
    config = DecoderConfig.from_section(section)
    check_convertible(config)
    found = {
        **public_keys(config),
        **tokens.keys(),
        "use_cache": True,
        "torch_dtype": dtype,
        "cerebras": {"release": VERSION, "model": dict(section)},
    }
    try:
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConversionError(f"the `model:` section cannot be written as JSON: {error}") from error
    return found


def to_model_section(config_json: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The `model:` section that the config.json of a release describes, and notes on what is assumed.

    Raises:
        ConversionError: the config describes a model outside the family, or one that the Model Zoo cannot express.
        ModelConfigError: the section stored in the config does not describe a model.
    """
    try:
        return _to_model_section(config_json)
    except OverflowError as error:
        raise ConversionError(f"config.json: has a number that is too large: {error}") from error


def _to_model_section(config_json: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    now, notes = _section_of(config_json)
    if "cerebras" not in config_json:
        notes.append(
            "config.json has no `cerebras.model`; initializers, loss scaling and similar keys have their defaults"
        )
        return now, notes
    kept = config_json["cerebras"].get("model") if isinstance(config_json["cerebras"], Mapping) else None
    if not isinstance(kept, Mapping):
        raise ConversionError("config.json: `cerebras` must have a mapping `model`; correct it, or remove `cerebras`")
    then, _ = _section_of(public_keys(DecoderConfig.from_section(kept)))
    changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if not changed:
        return dict(kept), []
    notes.append(f"config.json was edited after the release was made; these edits are used: {', '.join(changed)}")
    return _merged(kept, now, changed), notes


def _merged(kept: Mapping[str, Any], now: Mapping[str, Any], changed: list[str]) -> dict[str, Any]:
    """The stored section with the edits; ConversionError when the result does not agree with the public keys."""
    taken = set(changed)
    if taken & _LOGITS_KEYS:
        # The two forms of muP exclude each other, and alpha has another meaning without scale_output_logits_by_d. All
        # these keys are therefore replaced. A base filter size that is still valid stays: public keys do not have it.
        taken |= _LOGITS_KEYS | {"scale_qk_dot_by_d"}
        if "mup_base_filter_size" in kept and "mup_base_filter_size" in now:
            taken -= {"mup_base_filter_size"} - set(changed)
    section = _with_keys_of(kept, now, taken)
    # A default can follow from an edited key: an absent embd_pdrop follows from dropout_rate.
    section = _with_keys_of(section, now, set(_differing(section, now)))
    left = _differing(section, now)
    if left:
        raise ConversionError(
            f"config.json: {', '.join(left)} was edited, but `cerebras.model` cannot take over the edit; change "
            "`cerebras.model` in the same way, or remove `cerebras` to use the public keys alone"
        )
    return section


def _with_keys_of(section: Mapping[str, Any], now: Mapping[str, Any], taken: set[str]) -> dict[str, Any]:
    dropped = taken | {alias for alias, key in _OLD_NAMES.items() if key in taken}
    return {key: value for key, value in section.items() if key not in dropped} | {
        key: value for key, value in now.items() if key in taken
    }


def _differing(section: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys whose value in the public form of a section differs from `now` by more than rounding."""
    again, _ = _section_of(public_keys(DecoderConfig.from_section(section)))
    return [key for key in {**again, **now} if not nearly_equal(again.get(key), now.get(key), rel_tol=1e-9)]


def nearly_equal(a: Any, b: Any, *, rel_tol: float) -> bool:
    """Whether two values of a config are equal, floats within a relative tolerance."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=rel_tol)
    return bool(a == b)


def check_convertible(config: DecoderConfig) -> None:
    """Raise ConversionError when Hugging Face's Jais or Llama class cannot compute what this model computes."""
    jais = architecture_of(config) is JAIS
    target = "a Hugging Face Jais model" if jais else LLAMA.transformers_class

    def require(holds: bool, key: str, why: str) -> None:
        if not holds:
            raise ConversionError(f"model.{key} = {getattr(config, key)!r}: {target} {why}")

    require(not config.use_bias_in_output, "use_bias_in_output", "has no bias in its output head")
    require(config.pos_scaling_factor >= 1, "pos_scaling_factor", "can only scale positions by a factor of 1 or more")
    if jais:
        require(config.norm_type == "layernorm", "norm_type", "has LayerNorm only")
        require(config.num_kv_groups == config.num_heads, "extra_attention_params", "has no grouped-query attention")
        require(
            config.attention_logits_alpha == 1, "attention_logits_alpha", "has no such factor; only 1 can be converted"
        )
        for key in ("use_projection_bias_in_attention", "use_ffn_bias_in_attention", "use_ffn_bias"):
            require(getattr(config, key), key, "has biases in every layer")
        return
    require(config.norm_type == "rmsnorm", "norm_type", "has RMSNorm only")
    require(
        config.use_projection_bias_in_attention == config.use_ffn_bias_in_attention,
        "use_ffn_bias_in_attention",
        "has biases in all four attention projections or in none; use_projection_bias_in_attention differs",
    )
    require(
        config.effective_rotary_dim == config.head_dim,
        "rotary_dim",
        f"rotates whole heads ({config.head_dim} dimensions)",
    )
    require(config.embeddings_scale == 1, "embeddings_scale", "does not scale its embeddings; only 1 can be converted")
    if config.logits_scale != 1:
        raise ConversionError(f"the logits are multiplied by {config.logits_scale:.6g} (muP): {target} cannot do that")
    if not math.isclose(config.attention_scale, config.head_dim**-0.5, rel_tol=1e-12):
        raise ConversionError(
            f"q.k is multiplied by {config.attention_scale:.6g} (scale_qk_dot_by_d, attention_logits_alpha): "
            f"{target} always uses 1/sqrt({config.head_dim})"
        )


def public_keys(config: DecoderConfig) -> dict[str, Any]:
    """The keys of config.json that Hugging Face's code computes with."""
    return jais_keys(config) if architecture_of(config) is JAIS else llama_keys(config)


def _section_of(config_json: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    kind = config_json.get("model_type")
    if kind == "jais":
        return jais_section(config_json)
    if kind == "llama":
        return llama_section(config_json)
    raise ConversionError(f"config.json: model_type is {kind!r}; only 'jais' and 'llama' are supported")
