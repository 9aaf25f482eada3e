"""The parameters of a run as plain values: a trainer YAML that was read, or what a checkpoint recorded of one.

No validation here; the caller validates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cerebras_jais.errors import Keys


def trainers_of(params: Any) -> list[tuple[Keys, Any]]:
    """The value under each `trainer:` with the path of keys to it: one, or one for each phase of a list.

    Returns:
        An empty list where the params have no key `trainer`; None in place of a phase that has none.
    """
    if not isinstance(params, Mapping) or "trainer" not in params:
        return []
    trainers = params["trainer"]
    if not isinstance(trainers, list | tuple):
        return [(("trainer",), trainers)]
    return [(("trainer", index, "trainer"), section_at(phase, "trainer")) for index, phase in enumerate(trainers)]


def section_at(value: Any, *keys: str) -> Any:
    """The value at a path of keys below a mapping, None where a part of the path is absent."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
