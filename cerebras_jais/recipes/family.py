"""What makes a `model:` section one of the family, beyond being a decoder: refused for jais_family and jais_adapted.

The stock names jais and llama take anything the Model Zoo takes; under the plugin's names a section that would train
something other than the family is an error. Sources: the models' published config.json files and their model card.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cerebras_jais.model.config import DecoderConfig, ModelConfigError

JAIS_VOCABULARY = 84_992  # published: config.json of the jais-family models
ADAPTED_VOCABULARY = 64_000  # published: Llama 2's 32,000 tokens and as many Arabic ones
CONSTANT_RELATIVE = 1e-6  # published constants differ by rounding, 1.09518349815769 or 1.0951835


@dataclass(frozen=True)
class MupSet:
    """Constants that were tuned together on one proxy model, and the widths of the models trained with them."""

    models: str
    embeddings_scale: float
    output_logits_alpha: float
    hidden_sizes: tuple[int, ...]

    def holds(self, config: DecoderConfig) -> bool:
        """Whether a model has both constants of this set."""
        return _close(config.embeddings_scale, self.embeddings_scale) and _close(
            config.output_logits_alpha or 1.0, self.output_logits_alpha
        )

    def __str__(self) -> str:
        return f"embeddings_scale {self.embeddings_scale} with output_logits_alpha {self.output_logits_alpha}"


MUP_SETS = (
    MupSet("jais-family-590m to 13b", 9.1705785388303, 1.09518349815769, (1536, 2048, 2560, 4096, 5120)),
    MupSet("jais-family-30b", 14.6, 2.22, (7168,)),
)
ADAPTED_HIDDEN_SIZES = (4096, 5120, 8192)


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
    _demand(
        config.loss_scaling == "num_tokens" or _close(config.loss_weight * config.max_position_embeddings, 1, 1e-3),
        config,
        "loss_weight",
        f"with loss_scaling batch_size it must be 1/max_position_embeddings = "
        f"{1 / config.max_position_embeddings:.6g}, anew in every context phase; or use loss_scaling: num_tokens",
    )


def _check_jais(config: DecoderConfig) -> None:
    _demand(config.position_embedding_type == "alibi", config, "position_embedding_type", "jais_family has alibi")
    for key, unset in (("rotary_dim", None), ("rope_theta", 10000.0), ("fold_rope_consts", False)):
        _demand(getattr(config, key) == unset, config, key, "ALiBi has no rotary positions; remove the key")
    _demand(config.norm_type == "layernorm", config, "norm_type", "jais_family has layernorm")
    for key in ("use_projection_bias_in_attention", "use_ffn_bias_in_attention", "use_ffn_bias"):
        _demand(getattr(config, key), config, key, "jais_family has biases in every layer; set it to true")
    _demand(not config.use_bias_in_output, config, "use_bias_in_output", "jais_family's head has no bias")
    _demand(
        config.share_embedding_weights, config, "share_embedding_weights", "jais_family ties its head; set it to true"
    )
    _demand(config.num_kv_groups == config.num_heads, config, "attention_module", "jais_family has no grouped queries")
    _check_mup(config)
    if any(config.hidden_size in known.hidden_sizes for known in MUP_SETS):
        _check_vocabulary(config, JAIS_VOCABULARY, "the jais-family tokenizer")


def _check_mup(config: DecoderConfig) -> None:
    _demand(
        config.is_mup,
        config,
        "mup_base_hidden_size",
        "jais_family is parametrised by muP: give mup_base_hidden_size and mup_base_filter_size",
    )
    _demand(config.scale_qk_dot_by_d is not False, config, "scale_qk_dot_by_d", "muP divides q.k by d; set it to true")
    known = " or ".join(str(mup) for mup in MUP_SETS)
    if not any(mup.holds(config) for mup in MUP_SETS):
        wrong = "output_logits_alpha"
        if any(_close(config.output_logits_alpha or 1.0, mup.output_logits_alpha) for mup in MUP_SETS):
            wrong = "embeddings_scale"
        _demand(False, config, wrong, f"the muP constants go together: {known}")
    for mup in MUP_SETS:
        if config.hidden_size in mup.hidden_sizes:
            _demand(
                mup.holds(config),
                config,
                "embeddings_scale",
                f"hidden_size {config.hidden_size} is of {mup.models}, which has {mup}",
            )


def _check_adapted(config: DecoderConfig) -> None:
    _demand(config.position_embedding_type == "rotary", config, "position_embedding_type", "jais_adapted has rotary")
    _demand(
        config.effective_rotary_dim == config.head_dim,
        config,
        "rotary_dim",
        f"Llama rotates whole heads; set it to {config.head_dim}",
    )
    _demand(config.norm_type == "rmsnorm", config, "norm_type", "jais_adapted has rmsnorm")
    for key in ("use_projection_bias_in_attention", "use_ffn_bias_in_attention", "use_ffn_bias", "use_bias_in_output"):
        _demand(not getattr(config, key), config, key, "jais_adapted has no biases; set it to false")
    _demand(
        not config.share_embedding_weights,
        config,
        "share_embedding_weights",
        "jais_adapted's head is its own; set it to false",
    )
    for key in ("mup_base_hidden_size", "mup_base_filter_size", "output_logits_alpha", "output_logits_scale"):
        _demand(getattr(config, key) is None, config, key, "jais_adapted is not parametrised by muP; remove the key")
    _demand(config.embeddings_scale == 1, config, "embeddings_scale", "jais_adapted does not scale; remove the key")
    if config.hidden_size in ADAPTED_HIDDEN_SIZES:
        _check_vocabulary(config, ADAPTED_VOCABULARY, "the jais-adapted tokenizer")


def _check_vocabulary(config: DecoderConfig, size: int, tokenizer: str) -> None:
    _demand(config.vocab_size == size, config, "vocab_size", f"does not match {tokenizer}, which has {size}")


def _close(value: float, wanted: float, relative: float = CONSTANT_RELATIVE) -> bool:
    return math.isclose(value, wanted, rel_tol=relative)


def _demand(holds: bool, config: DecoderConfig, key: str, what: str) -> None:
    if not holds:
        raise ModelConfigError(f"model.{key}: {what} (got {getattr(config, key)!r})")
