"""The rules of the family, each once: what makes a `model:` section one of its models, and what goes together.

`check_family` refuses what is not of the family under the plugin's names jais_family and jais_adapted. The stock names
jais and llama take anything the Model Zoo takes; of them `mup_problems` and `loss_weight_problem` say what cannot be
meant. Sources: the models' published config.json files and their model card.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from cerebras_jais.catalog.models import MODELS, MUP_SETS
from cerebras_jais.catalog.size_rules import ADAPTED_FORM, JAIS_FORM, MUP_BASE_WIDTH, loss_weight, mup_base_filter_size
from cerebras_jais.catalog.types import Family, Model, MuP
from cerebras_jais.model.config import DecoderConfig, ModelConfigError
from cerebras_jais.modelzoo_version import JAIS_ADAPTED, JAIS_FAMILY, PLUGIN_NAMES

CONSTANT_RELATIVE = 1e-6  # published constants differ by rounding, 1.09518349815769 or 1.0951835
# Of loss_weight: 1/2048 written with three digits, 0.000488, is off by 6e-4; the weight of any other length by a half.
LOSS_WEIGHT_RELATIVE = 1e-3
_WIDTH_RELATIVE = 1e-5  # of muP's two width multipliers: a base filter size written with six digits, 682.667
_BIASES = ("use_projection_bias_in_attention", "use_ffn_bias_in_attention", "use_ffn_bias")
_JAIS_WORDS = {
    "share_embedding_weights": "jais_family ties its head; set it to true",
    "use_bias_in_output": "jais_family's head has no bias; set it to false",
    **dict.fromkeys(_BIASES, "jais_family has biases in every layer; set it to true"),
}
_ADAPTED_WORDS = {
    "share_embedding_weights": "jais_adapted's head is its own; set it to false",
    **dict.fromkeys((*_BIASES, "use_bias_in_output"), "jais_adapted has no biases; set it to false"),
}
_LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)


def check_family(config: DecoderConfig) -> None:
    """Refuse a section named jais_family or jais_adapted that would break the family; other names pass.

    Raises ModelConfigError naming the key and the remedy.
    """
    if config.name == JAIS_FAMILY:
        _check_jais(config)
    elif config.name == JAIS_ADAPTED:
        _check_adapted(config)
    else:
        return
    problem = loss_weight_problem(config)
    if problem is not None:
        raise ModelConfigError("loss_weight", problem)


def loss_weight_problem(config: DecoderConfig) -> str | None:
    """What is wrong with `loss_weight`, None where nothing is.

    With `loss_scaling: batch_size` the Model Zoo sums the loss over the tokens of a sequence, so the weight of a model
    of the family is 1/max_position_embeddings. Under the stock names any weight from that to 1 passes which is not that
    of another context: of sequences that are mostly padding it makes a mean too.
    """
    length, weight = config.max_position_embeddings, config.loss_weight
    if config.loss_scaling == "num_tokens" or _close(weight, loss_weight(length), LOSS_WEIGHT_RELATIVE):
        return None
    if config.name in PLUGIN_NAMES:
        return (
            f"with loss_scaling batch_size it must be 1/max_position_embeddings = {loss_weight(length):.6g}, anew in "
            f"every context phase; or use loss_scaling: num_tokens (got {weight!r})"
        )
    remedy = f"give 1/max_position_embeddings = {loss_weight(length)!r}, or loss_scaling: num_tokens"
    others = [n for n in _LENGTHS if _close(weight, loss_weight(n), LOSS_WEIGHT_RELATIVE)]
    if others:
        return f"is 1/{others[0]}, the weight of another context; {remedy}"
    if not loss_weight(length) <= weight <= 1:
        return f"scales the loss by {weight * length:.4g} where every token counts; {remedy}"
    return None


def mup_problems(config: DecoderConfig) -> Iterator[tuple[str, str]]:
    """Keys of muP that do not go together, under any name, and what is wrong with each."""
    if not config.is_mup:
        return
    assert config.mup_base_hidden_size is not None
    hidden, base = config.hidden_size, config.mup_base_hidden_size
    widths = config.width_multiplier, config.filter_multiplier
    if not _close(*widths, _WIDTH_RELATIVE):
        yield (
            "mup_base_filter_size",
            f"the filter is {widths[1]:.4g} times the base's, but the hidden size {widths[0]:.4g} times; "
            f"give {mup_base_filter_size(hidden, config.filter_size, base)!r}",
        )
    known = next((m for m in MODELS if _sizes(m) == (hidden, config.filter_size)), None)
    if known is not None and known.architecture.mup is not None and base != MUP_BASE_WIDTH:
        yield "mup_base_hidden_size", f"every jais-family model has {MUP_BASE_WIDTH}; give that"
    for name, mup in MUP_SETS.items():
        scale, alpha = _constants(mup).values()
        has_scale = _close(config.embeddings_scale, scale)
        has_alpha = config.output_logits_alpha is not None and _close(config.output_logits_alpha, alpha)
        if has_scale and not has_alpha:
            yield (
                "output_logits_alpha",
                f"embeddings_scale {scale} belongs to the {name} muP set, whose alpha is {alpha}; give that",
            )
        if has_alpha and not has_scale:
            yield (
                "embeddings_scale",
                f"output_logits_alpha {alpha} belongs to the {name} muP set, whose scale is {scale}; give that",
            )
        std = config.initializer.std if config.initializer is not None else math.nan
        others = [other for other, s in MUP_SETS.items() if other != name and _close(std, s.init_std.value)]
        if has_scale and others:
            yield (
                "initializer",
                f"std {std} belongs to the {others[0]} muP set, embeddings_scale {scale} to the {name} set; "
                f"give {mup.init_std.value}",
            )


def _sizes(model: Model) -> tuple[int, int]:
    return model.architecture.hidden_size.value, model.architecture.filter_size.value


def _check_form(config: DecoderConfig, form: Mapping[str, object], words: Mapping[str, str]) -> None:
    for key, value in form.items():
        problem = words.get(key, f"{config.name} uses {value}; set it to {value}")
        _require(getattr(config, key) == value, config, key, problem)


def _check_jais(config: DecoderConfig) -> None:
    _check_form(config, JAIS_FORM, _JAIS_WORDS)
    for key, unset in (("rotary_dim", None), ("rope_theta", 10000.0), ("fold_rope_consts", False)):
        _require(getattr(config, key) == unset, config, key, "ALiBi has no rotary positions; remove the key")
    _require(
        config.num_kv_groups == config.num_heads,
        config,
        "attention_module",
        "jais_family has no grouped-query attention; remove the key",
    )
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
    _check_form(config, ADAPTED_FORM, _ADAPTED_WORDS)
    _require(
        config.effective_rotary_dim == config.head_dim,
        config,
        "rotary_dim",
        f"Llama rotates whole heads; set it to {config.head_dim}",
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
