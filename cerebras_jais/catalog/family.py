"""What makes a `model:` section one of the family, beyond being a decoder: refused for jais_family and jais_adapted.

The stock names jais and llama take anything the Model Zoo takes; under the plugin's names a section that would train
something other than the family is an error. Sources: the models' published config.json files and their model card.
"""

from __future__ import annotations

import math

from cerebras_jais.catalog.models import MODELS, MUP_SETS
from cerebras_jais.catalog.types import Family, Model, MuP
from cerebras_jais.model.config import DecoderConfig, ModelConfigError

CONSTANT_RELATIVE = 1e-6  # published constants differ by rounding, 1.09518349815769 or 1.0951835


def check_family(config: DecoderConfig) -> None:
    """Refuse a section named jais_family or jais_adapted that would break the family; other names pass.

    Raises ModelConfigError naming the key and the remedy.
    """
    if config.name == "jais_family":
        _check_jais(config)
    elif config.name == "jais_adapted":
        _check_adapted(config)
    else:
        return
    _require(
        config.loss_scaling == "num_tokens" or _close(config.loss_weight * config.max_position_embeddings, 1, 1e-3),
        config,
        "loss_weight",
        f"with loss_scaling batch_size it must be 1/max_position_embeddings = "
        f"{1 / config.max_position_embeddings:.6g}, anew in every context phase; or use loss_scaling: num_tokens",
    )


def _check_jais(config: DecoderConfig) -> None:
    _require(config.position_embedding_type == "alibi", config, "position_embedding_type", "jais_family has alibi")
    for key, unset in (("rotary_dim", None), ("rope_theta", 10000.0), ("fold_rope_consts", False)):
        _require(getattr(config, key) == unset, config, key, "ALiBi has no rotary positions; remove the key")
    _require(config.norm_type == "layernorm", config, "norm_type", "jais_family has layernorm")
    for key in ("use_projection_bias_in_attention", "use_ffn_bias_in_attention", "use_ffn_bias"):
        _require(getattr(config, key), config, key, "jais_family has biases in every layer; set it to true")
    _require(not config.use_bias_in_output, config, "use_bias_in_output", "jais_family's head has no bias")
    _require(
        config.share_embedding_weights, config, "share_embedding_weights", "jais_family ties its head; set it to true"
    )
    _require(config.num_kv_groups == config.num_heads, config, "attention_module", "jais_family has no grouped queries")
    _check_mup(config)
    _check_vocabulary(config, "jais-family")


def _check_mup(config: DecoderConfig) -> None:
    _require(
        config.is_mup,
        config,
        "mup_base_hidden_size",
        "jais_family is parametrised by muP: give mup_base_hidden_size and mup_base_filter_size",
    )
    _require(config.scale_qk_dot_by_d is not False, config, "scale_qk_dot_by_d", "muP divides q.k by d; set it to true")
    known = _published(config, "jais-family")
    if known is not None and known.architecture.mup is not None:
        for key, constant in _constants(known.architecture.mup).items():
            _require(
                _close(getattr(config, key) or 1.0, constant),
                config,
                key,
                f"models of hidden_size {config.hidden_size} have {_words(known.architecture.mup)}; give {constant}",
            )
    elif not any(all(_holds(config, mup).values()) for mup in MUP_SETS.values()):
        nearest = max((_holds(config, mup) for mup in MUP_SETS.values()), key=lambda found: sum(found.values()))
        wrong = next(key for key, holds in reversed(nearest.items()) if not holds)
        known_sets = " or ".join(map(_words, MUP_SETS.values()))
        _require(False, config, wrong, f"the muP constants go together: {known_sets}")


def _constants(mup: MuP) -> dict[str, float]:
    return {
        "embeddings_scale": mup.embeddings_scale.value,
        "output_logits_alpha": mup.output_logits_alpha.value,
    }


def _holds(config: DecoderConfig, mup: MuP) -> dict[str, bool]:
    return {key: _close(getattr(config, key) or 1.0, constant) for key, constant in _constants(mup).items()}


def _words(mup: MuP) -> str:
    return " with ".join(f"{key} {constant}" for key, constant in _constants(mup).items())


def _published(config: DecoderConfig, family: Family) -> Model | None:
    """A published model of this family and width."""
    widths = {m.architecture.hidden_size.value: m for m in MODELS if m.family == family}
    return widths.get(config.hidden_size)


def _check_adapted(config: DecoderConfig) -> None:
    _require(config.position_embedding_type == "rotary", config, "position_embedding_type", "jais_adapted has rotary")
    _require(
        config.effective_rotary_dim == config.head_dim,
        config,
        "rotary_dim",
        f"Llama rotates whole heads; set it to {config.head_dim}",
    )
    _require(config.norm_type == "rmsnorm", config, "norm_type", "jais_adapted has rmsnorm")
    for key in ("use_projection_bias_in_attention", "use_ffn_bias_in_attention", "use_ffn_bias", "use_bias_in_output"):
        _require(not getattr(config, key), config, key, "jais_adapted has no biases; set it to false")
    _require(
        not config.share_embedding_weights,
        config,
        "share_embedding_weights",
        "jais_adapted's head is its own; set it to false",
    )
    for key in ("mup_base_hidden_size", "mup_base_filter_size", "output_logits_alpha", "output_logits_scale"):
        _require(getattr(config, key) is None, config, key, "jais_adapted is not parametrised by muP; remove the key")
    _require(config.embeddings_scale == 1, config, "embeddings_scale", "jais_adapted does not scale; remove the key")
    _check_vocabulary(config, "jais-adapted")


def _check_vocabulary(config: DecoderConfig, family: Family) -> None:
    known = _published(config, family)
    if known is not None:
        size = known.architecture.vocabulary.value
        _require(
            config.vocab_size == size, config, "vocab_size", f"the {family} tokenizer has {size} entries; give that"
        )


def _close(value: float, wanted: float, relative: float = CONSTANT_RELATIVE) -> bool:
    return math.isclose(value, wanted, rel_tol=relative)


def _require(holds: bool, config: DecoderConfig, key: str, what: str) -> None:
    if not holds:
        raise ModelConfigError(key, f"{what} (got {getattr(config, key)!r})")
