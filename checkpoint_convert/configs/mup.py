"""muP's constants from one form into another, with the numbers that training computes from them unchanged.

Three forms exist. m_d is hidden_size / mup_base_hidden_size, m_f is filter_size / mup_base_filter_size, n the layers.

- Today's (Model Zoo 2.3 on): the section has `mup_base_hidden_size`, `mup_base_filter_size`, `output_logits_alpha`.
  Logits are multiplied by alpha / m_d, learning rates of matrices by 1 / m_d or 1 / m_f; the initializers given are the
  base model's, whose spread training multiplies by m_d^-1/2 and, in output projections, by (2 n m)^-1/2.
- The deprecated one (up to 2.2): `output_logits_scale` is the factor on the logits, the optimizer's
  `adjust_learning_rate.decoder_kernel` that on the learning rates; the initializers given are drawn from as they are.
- Hugging Face's: `mup_output_alpha` and `mup_width_scale` = 1 / m_d, in the first Jais code only their product.

Source: Model Zoo models/nlp/gpt2/gpt2_model.py and common/utils/model/mup_utils.py of 2.10, gpt2_model.py of 2.2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from cerebras_jais.catalog.size_rules import mup_base_filter_size
from cerebras_jais.model.config import DecoderConfig, Initializer
from checkpoint_convert.errors import ConversionError

_GROUP = "optimizer.adjust_learning_rate.decoder_kernel"


def base_hidden_size(hidden_size: int, width_scale: float) -> float:
    """The base width of which `width_scale` is the share: a whole number where it is one but for rounding."""
    base = width_scale * hidden_size
    if math.isclose(base, round(base), rel_tol=1e-12):
        return float(round(base))
    return _nearest(base, lambda near: 1 / (hidden_size / near), width_scale)


def base_filter_size(filter_size: int, hidden_size: int, base_hidden: float) -> float:
    """The base filter size of a base model of the same proportions.

    Chosen so that 1 / m_f is the same floating-point number as 1 / m_d where one gives it: matrices of one
    learning-rate scale are one group in the optimizer, as they were under `decoder_kernel`.
    """
    guess = mup_base_filter_size(hidden_size, filter_size, base_hidden)
    return _nearest(guess, lambda near: 1 / (filter_size / near), 1 / (hidden_size / base_hidden))


def output_alpha(logits_scale: float, hidden_size: int, base_hidden: float) -> float:
    """The alpha for which alpha / m_d is `logits_scale`: to the last bit where a number gives that, else nearest."""
    width = hidden_size / base_hidden
    return _nearest(logits_scale * width, lambda near: near / width, logits_scale)


def _nearest(guess: float, value_of: Callable[[float], float], wanted: float) -> float:
    """The number within a few roundings of `guess` whose value is nearest to `wanted`, of several the shortest."""
    numbers = [guess]
    below = above = guess
    for _ in range(4):
        below, above = math.nextafter(below, 0), math.nextafter(above, math.inf)
        numbers += [below, above]
    return min(numbers, key=lambda number: (abs(value_of(number) - wanted), len(repr(number))))


def migrate_mup(section: Mapping[str, Any], adjust_learning_rate: Mapping[str, Any]) -> dict[str, Any]:
    """A section of the deprecated form in today's: the same logits, initial weights and learning-rate scales.

    Any other section comes back as it is: one in today's form, one without muP, and one whose optimizer does not have
    `decoder_kernel` (its width is unknown, and it trained with one learning rate for all).

    Args:
        section: the `model:` section.
        adjust_learning_rate: the optimizer's scales by group.

    Raises:
        ConversionError: `decoder_kernel` is no scale.
        ModelConfigError: the section does not describe a model.
    """
    scale = adjust_learning_rate.get("decoder_kernel")
    if scale is None or section.get("mup_base_hidden_size") is not None:
        return dict(section)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        raise ConversionError(f"{_GROUP}: must be a number above 0 (got {scale!r})")
    if scale == 1:
        return dict(section)
    old = DecoderConfig.from_section(section)
    base = base_hidden_size(old.hidden_size, scale)
    filter_base = base_filter_size(old.filter_size, old.hidden_size, base)
    dropped = ("output_logits_scale", "scale_output_logits_by_d")
    return {
        **{key: value for key, value in section.items() if key not in dropped},
        **_base_initializers(old, old.hidden_size / base, old.filter_size / filter_base),
        # Under muP null means true; before, it meant false.
        "scale_qk_dot_by_d": bool(old.scale_qk_dot_by_d),
        "mup_base_hidden_size": base,
        "mup_base_filter_size": filter_base,
        "output_logits_alpha": output_alpha(old.logits_scale, old.hidden_size, base),
    }


def _base_initializers(old: DecoderConfig, m_d: float, m_f: float) -> dict[str, Any]:
    """The base model's initializers of which muP's scaling makes what a model without muP draws from.

    All are given by name, since the defaults of the two forms differ.
    """
    default = old.default_initializer
    depth = 2 * old.num_hidden_layers
    attention = old.initializer or default
    ffn = old.ffn_initializer or attention
    output = old.output_layer_initializer
    if output is None and old.initializer is None:
        output = default.scaled(depth**-0.5)
    # Without any, each block's output projection follows its block.
    ffn_output = old.ffn_output_layer_initializer or output or ffn
    found = {
        "initializer": attention.scaled(m_d**0.5),
        "ffn_initializer": ffn.scaled(m_d**0.5),
        "output_layer_initializer": (output or attention).scaled((m_d * depth) ** 0.5),
        "ffn_output_layer_initializer": ffn_output.scaled((m_f * depth) ** 0.5),
    }
    if ffn == attention:
        del found["ffn_initializer"]
    return {key: _as_section(initializer) for key, initializer in found.items()}


def _as_section(initializer: Initializer) -> dict[str, Any]:
    """Twelve digits: 0.073 and not 0.07300000000000001, which no draw of weights can tell apart."""
    values = {key: value for key, value in dataclasses.asdict(initializer).items() if value is not None}
    return {key: value if isinstance(value, str) else float(f"{value:.12g}") for key, value in values.items()}
