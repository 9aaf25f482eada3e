"""Freezing by name: tensors that a pattern finds get no gradient, and so no place in an optimizer.

Works on the reference model and on the Model Zoo's alike; both name their tensors the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from cerebras_jais.model.config import ModelConfigError


def freeze_parameters(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Take the tensors that the regular expressions find out of training; returns their names, in the model's order.

    An expression is searched for anywhere in a tensor's name. A tensor with two names (a tied head, the last norm) is
    found by either and returned under the first.

    Raises:
        ModelConfigError: a pattern that is no regular expression or finds nothing, or nothing that is left to train.
    """
    names_of: dict[int, list[str]] = {}
    tensors = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
        tensors[id(parameter)] = parameter
    frozen: set[int] = set()
    for index, pattern in enumerate(patterns):
        rule = compiled_pattern(pattern, index)
        found = {key for key, names in names_of.items() if any(rule.search(name) for name in names)}
        if not found:
            raise ModelConfigError(
                "frozen_parameters",
                f"{pattern!r} is found in no tensor's name; names are like {next(iter(names_of.values()))[0]}",
            )
        frozen |= found
    if patterns and not any(p.requires_grad for key, p in tensors.items() if key not in frozen):
        raise ModelConfigError("frozen_parameters", "nothing is left to train; freeze less")
    for key in frozen:
        tensors[key].requires_grad_(False)
    return [names[0] for key, names in names_of.items() if key in frozen]


def compiled_pattern(pattern: str, index: int) -> re.Pattern[str]:
    """One of `frozen_parameters`; raises ModelConfigError where it is not a regular expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ModelConfigError(
            "frozen_parameters", f"{pattern!r} (number {index + 1}) is not a regular expression: {error}"
        ) from None
