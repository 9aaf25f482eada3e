"""Which parameters share a weight decay and a learning-rate scale, in the Model Zoo's own order.

The optimizer state of a checkpoint is numbered by this order, so it is part of the file format.
Source: Model Zoo common/optim_utils.py (configure_param_groups), common/utils/model/mup_utils.py and
models/nlp/gpt2/gpt2_model.py (the groups of learning-rate scales), all of 2.10.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cerebras_jais.config.sections import AdamW as AdamWSection
from cerebras_jais.errors import Keys, Problem, UserError, dotted
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import RMSNorm
from cerebras_jais.wording import suggestion

# Name of each learning-rate scale, and the glob patterns of its parameters.
LEARNING_RATE_GROUPS: Mapping[str, tuple[str, ...]] = {
    "embedding": ("*embedding*weight",),
    "decoder_kernel": ("*decoder*dense*weight", "*decoder*linear*weight", "*decoder*linear*expert_weights"),
    "decoder_attention": ("*decoder*attn*dense*weight",),
    "decoder_input_ffn": ("*decoder*ffn.ffn.[!1]*weight", "*decoder*ffn.ffn.[!1]*expert_weights"),
    "decoder_output_ffn": ("*decoder*ffn.ffn.[1]*weight", "*decoder*ffn.ffn.[1]*expert_weights"),
}


class OptimizerError(UserError):
    """Optimizer settings that do not fit the model."""


class OptimizerSectionError(OptimizerError):
    """A key of the optimizer or of a schedule that does not fit the model; `problem` has its path below `init`."""

    def __init__(self, keys: Keys, message: str):
        super().__init__(f"{dotted(keys)}: {message}")
        self.problem = Problem(keys, message)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters, by name and in order, with one weight decay and one learning-rate scale.

    `adjust_learning_rate` is None where the Model Zoo leaves the key out: no scale differs from 1.
    """

    names: tuple[str, ...]
    weight_decay: float
    adjust_learning_rate: float | None = None
    tags: frozenset[str] = frozenset()


def learning_rate_scales(config: DecoderConfig, overrides: Mapping[str, float] = {}) -> dict[str, float]:
    """The scale of each group of `LEARNING_RATE_GROUPS`: 1/m_d, 1/m_f under muP, `overrides` from the optimizer's keys.

    m_d is the config's `width_multiplier`, m_f its `filter_multiplier`. Raises OptimizerError for an override of an
    unknown group.
    """
    scales = dict.fromkeys(LEARNING_RATE_GROUPS, 1.0)
    scales["decoder_attention"] = scales["decoder_input_ffn"] = 1 / config.width_multiplier
    scales["decoder_output_ffn"] = 1 / config.filter_multiplier
    for name, scale in overrides.items():
        if name not in scales:
            keys = ("optimizer", "AdamW", "adjust_learning_rate", name)
            raise OptimizerSectionError(keys, f"no such group of parameters; {suggestion(name, scales)}")
        scales[name] = scale
    return scales


def groups_of(model: nn.Module, config: DecoderConfig, optimizer: AdamWSection) -> list[ParameterGroup]:
    """The groups that an optimizer section makes; raises OptimizerError as `parameter_groups` does."""
    return parameter_groups(
        model,
        config,
        weight_decay=optimizer.weight_decay,
        adjust_learning_rate=optimizer.adjust_learning_rate,
        tagged=[([p.params] if isinstance(p.params, str) else p.params, p.tag) for p in optimizer.params],
    )


def parameter_groups(
    model: nn.Module,
    config: DecoderConfig,
    *,
    weight_decay: float,
    adjust_learning_rate: Mapping[str, float] = {},
    tagged: Sequence[tuple[Sequence[str], str]] = (),
) -> list[ParameterGroup]:
    """The groups of the parameters that train; a tied parameter counts once, under its first name.

    Args:
        model: its named parameters are the Model Zoo's (a LanguageModel).
        config: decides the learning-rate scales.
        weight_decay: of all parameters but biases and norms, which have none.
        adjust_learning_rate: scales by group name, instead of muP's.
        tagged: glob patterns and the tag of the parameters they match.

    Raises OptimizerError for an unknown group and for patterns that match no parameter.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    every_name = [name for name, _ in model.named_parameters()]
    scaled = _names_by_scale(every_name, learning_rate_scales(config, adjust_learning_rate))
    norms = [
        name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm | nn.GroupNorm | RMSNorm)
    ]

    groups: list[ParameterGroup] = []
    for tags, members in _names_by_tags(names, tagged).items():
        for decays, decay in ((True, weight_decay), (False, 0.0)):
            kept = [name for name in members if _decays(name, norms) == decays]
            groups += _split_by_scale(kept, decay, tags, scaled)
    if scaled or any(group.tags for group in groups):
        groups = [group for group in groups if group.names]
    _refuse_twice(groups)
    return groups


def _decays(name: str, norms: Iterable[str]) -> bool:
    # The Model Zoo asks whether a norm's name is anywhere in the parameter's, not only at its head.
    return "bias" not in name and not any(norm in name for norm in norms)


def _refuse_twice(groups: Iterable[ParameterGroup]) -> None:
    scale_of: dict[str, float | None] = {}
    for group in groups:
        for name in group.names:
            if name in scale_of:
                raise OptimizerSectionError(
                    ("optimizer", "AdamW", "adjust_learning_rate"),
                    f"{name} is in two groups, of scale {scale_of[name]} and {group.adjust_learning_rate}; "
                    "decoder_kernel overlaps the other decoder groups",
                )
            scale_of[name] = group.adjust_learning_rate


def _names_by_tags(
    names: Sequence[str], tagged: Sequence[tuple[Sequence[str], str]]
) -> dict[frozenset[str], list[str]]:
    tags_of: dict[str, list[str]] = {name: [] for name in names}
    for patterns, tag in tagged:
        rules = [re.compile(fnmatch.translate(pattern)) for pattern in patterns]
        matches = [name for name in names if any(rule.search(name) for rule in rules)]
        if not matches:
            raise OptimizerSectionError(
                ("optimizer", "AdamW", "params"),
                f"the patterns {list(patterns)} of tag {tag!r} match no parameter of the model",
            )
        for name in matches:
            tags_of[name].append(tag)
    by_tags: dict[frozenset[str], list[str]] = {}
    for name, tags in tags_of.items():
        by_tags.setdefault(frozenset(tags), []).append(name)
    return by_tags


def _names_by_scale(names: Sequence[str], scales: Mapping[str, float]) -> list[tuple[float, list[str]]]:
    """Each scale that is not 1, in order of first use, with the names it is for; groups of equal scale are one."""
    patterns: dict[float, list[str]] = {}
    for group, scale in scales.items():
        if scale != 1.0:
            patterns.setdefault(scale, []).extend(LEARNING_RATE_GROUPS[group])
    found = []
    for scale, globs in patterns.items():
        rules = [re.compile(fnmatch.translate(glob)) for glob in globs]
        found.append((scale, [name for name in names if any(rule.fullmatch(name) for rule in rules)]))
    return found


def _split_by_scale(
    names: list[str], decay: float, tags: frozenset[str], scaled: list[tuple[float, list[str]]]
) -> list[ParameterGroup]:
    if not scaled:
        return [ParameterGroup(tuple(names), decay, None, tags)]
    rest = [name for name in names if not any(full in name for _, members in scaled for full in members)]
    parts = []
    for scale, members in [*scaled, (1.0, None)]:
        kept = rest if members is None else [name for name in names if any(full in name for full in members)]
        if kept:
            parts.append(ParameterGroup(tuple(kept), decay, scale, tags))
    return parts


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that train by name, tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
