"""`model:` sections of earlier Model Zoo releases, migrated to the keys of release 2.10.

Releases up to 2.2 warned about unused keys; release 2.10 refuses them. Some keys moved out of the section: precision to
`trainer.init.precision`, callbacks to `trainer.init.callbacks`. These keys do not change what the weights mean. A key
that uses a feature which no model of the family has is refused.

Source: the Model Zoo's GPT-2 class and YAML files of releases 1.9 to 2.10, its config converters, and the keys that it
removes from old params (trainer/utils.py of 2.10).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cerebras_jais.model.outside import RATE_GROUPS, is_default
from checkpoint_convert.errors import ConversionError

# Keys about running and logging, not about the model.
_IGNORED = {
    "mixed_precision",
    "fp16_type",
    "use_bfloat16",
    "precision_opt_level",
    "tf_summary",
    "alibi_implementation",
    "weight_initialization_seed",
    "compression",
    "selective_grad",
    "pad_rope",
}
# Keys with one supported value, and why another value is refused.
_FIXED_VALUE: dict[str, tuple[bool, str]] = {
    "use_position_embedding": (True, "the models of the family have positions"),
    "norm_first": (True, "the models of the family normalise before each block"),
    "use_ff_layer1_dropout": (False, "the Model Zoo 2.10 has no dropout inside the feed-forward block"),
}
# Features that are off by default, with the keys and values that turn them off.
_UNUSED_FEATURES: dict[str, tuple[tuple[str, Any], ...]] = {
    "lora_params": (("r", 0),),
    "moe": (("num_experts", 1), ("num_shared_experts", None)),
    "moe_params": (("num_experts", 1), ("num_shared_experts", None)),
    "memory_tokens": (("memory_tokens_enabled", False),),
    "memory_tokens_config": (("memory_tokens_enabled", False),),
    "attn_memory_chunk_size": (),
    "num_memory_tokens_per_chunk": (),
}


def migrate_keys(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section with the keys of release 2.10; a section that has them already is unchanged.

    Raises:
        ConversionError: a key uses a feature that no model of the family has.
    """
    found: dict[str, Any] = {}
    for key, value in section.items():
        # The Model Zoo's trainer writes default learning-rate groups where the YAML has none.
        if key in _IGNORED or (key == RATE_GROUPS and is_default(key, value)):
            continue
        if key in _FIXED_VALUE:
            wanted, why = _FIXED_VALUE[key]
            if value not in (None, wanted):
                raise ConversionError(f"model.{key} = {value!r}: {why}; only {wanted} can be converted")
        elif key in _UNUSED_FEATURES:
            if not _is_off(value, _UNUSED_FEATURES[key]):
                raise ConversionError(
                    f"model.{key} is in use, which no model of the family supports; it cannot be converted"
                )
        else:
            found[key] = value
    _rename(found, "model_name", "name")
    if "use_rms_norm" in found:
        found["use_rms_norm"] = "rmsnorm" if found["use_rms_norm"] else "layernorm"
    _rename(found, "use_rms_norm", "norm_type")
    _drop_linear_scaling(found)
    if "name" not in found:  # older runs named the model on the command line
        found = {"name": "llama" if found.get("position_embedding_type") == "rotary" else "jais", **found}
    return found


def _rename(section: dict[str, Any], old: str, new: str) -> None:
    if old not in section:
        return
    value = section.pop(old)
    if section.setdefault(new, value) != value:
        raise ConversionError(
            f"model.{old} {value!r} and model.{new} {section[new]!r} are names of the same key but differ; remove one"
        )


def _is_off(value: Any, switches: tuple[tuple[str, Any], ...]) -> bool:
    if not value:
        return True
    return (
        isinstance(value, Mapping) and bool(switches) and all(value.get(key) in (off, None, 0) for key, off in switches)
    )


def _drop_linear_scaling(section: dict[str, Any]) -> None:
    """Remove the default `pos_scaling_type`, linear, and arguments that linear scaling does not use."""
    kind = section.get("pos_scaling_type")
    if kind is not None and str(kind).lower() != "linear":
        raise ConversionError(
            f"model.pos_scaling_type = {kind!r}: the models of the family scale positions linearly or not at all; only "
            "'linear' can be converted"
        )
    if kind != "linear":
        section.pop("pos_scaling_type", None)
    if section.get("pos_scaling_extra_args") is not None:
        del section["pos_scaling_extra_args"]
