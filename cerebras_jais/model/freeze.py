"""Freezing by name: tensors whose names match a pattern get no gradient and no optimizer state.

Works on the reference model and on the Model Zoo's alike; both name their tensors the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from cerebras_jais.model.config import DecoderConfig, ModelConfigError
from cerebras_jais.model.tensors import tensors

if TYPE_CHECKING:
    from torch import nn


def freeze_parameters(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Freeze the tensors that the regular expressions match; returns their names, in the model's order.

    An expression may match anywhere in a tensor's name. A tensor with two names (a tied head, the last norm) is matched
    by either and returned under the first.

    Raises:
        ModelConfigError: a pattern that is no regular expression or matches no name, or no tensor is left to train.
    """
    first_of: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(first_of.setdefault(id(parameter), name), []).append(name)
    parameters = dict(model.named_parameters())
    trainable = {name for name in names if parameters[name].requires_grad}
    frozen = _matched(names, trainable, patterns)
    for name in frozen:
        parameters[name].requires_grad_(False)
    return frozen


def trained_names(config: DecoderConfig) -> set[str]:
    """First names of the tensors that train: not ALiBi's slopes, and not what `frozen_parameters` matches.

    Raises:
        ModelConfigError: as `freeze_parameters`.
    """
    names: dict[str, list[str]] = {}
    for tensor in tensors(config):
        names.setdefault(tensor.same_as or tensor.name, []).append(tensor.name)
    trainable = {tensor.name for tensor in tensors(config) if tensor.same_as is None and tensor.kind != "slopes"}
    return trainable - set(_matched(names, trainable, config.frozen_parameters))


def _matched(names: Mapping[str, Sequence[str]], trainable: Collection[str], patterns: Sequence[str]) -> list[str]:
    """First names of the tensors that patterns match; `names` is every name of each tensor by its first."""
    found: set[str] = set()
    for index, pattern in enumerate(patterns):
        rule = compiled_pattern(pattern, index)
        found_here = {first for first, every in names.items() if any(rule.search(name) for name in every)}
        if not found_here:
            message = f"{pattern!r} matches no tensor name; names are like {next(iter(names))}"
            raise ModelConfigError("frozen_parameters", message)
        found |= found_here
    if patterns and not set(trainable) - found:
        raise ModelConfigError("frozen_parameters", "nothing is left to train; freeze less")
    return [first for first in names if first in found]


def compiled_pattern(pattern: str, index: int) -> re.Pattern[str]:
    """One of `frozen_parameters`; raises ModelConfigError where it is not a regular expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ModelConfigError(
            "frozen_parameters", f"{pattern!r} (number {index + 1}) is not a regular expression: {error}"
        ) from None
