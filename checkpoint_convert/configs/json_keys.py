"""The values of config.json, checked one key at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from checkpoint_convert.errors import ConversionError


class Keys:
    """A config.json; absent keys and null have the defaults of Hugging Face's class, unknown keys are ignored."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def positive_int(self, *names: str, default: int | None = None) -> int:
        value = self.get(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConversionError(f"config.json: {names[0]} must be a positive whole number (got {value!r})")
        return value

    def number(self, *names: str, default: float) -> float:
        value = self.get(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConversionError(f"config.json: {names[0]} must be a number (got {value!r})")
        return float(value)

    def boolean(self, *names: str, default: bool) -> bool:
        value = self.get(*names, default=default)
        if not isinstance(value, bool):
            raise ConversionError(f"config.json: {names[0]} must be true or false (got {value!r})")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        """The mapping under a name; empty where it is absent."""
        value = self.get(name, default={})
        if not isinstance(value, Mapping):
            raise ConversionError(f"config.json: {name} must be a mapping (got {value!r})")
        return value

    def get(self, *names: str, default: Any = None) -> Any:
        """The value of a key that has several names; different values under two of them are refused."""
        found = {name: self.values[name] for name in names if self.values.get(name) is not None}
        if len({repr(value) for value in found.values()}) > 1:
            raise ConversionError(
                f"config.json: {' and '.join(found)} are names of the same key but have different values; remove one"
            )
        return next(iter(found.values()), default)

    def require(self, name: str, allowed: tuple[Any, ...], why: str) -> None:
        """Raise ConversionError for a value that is not allowed; an absent key has the first allowed value."""
        if self.values.get(name, allowed[0]) not in allowed:
            raise ConversionError(f"config.json: {name} is {self.values[name]!r}: {why}")


def scaling_factor(scaling: Mapping[str, Any], key: str) -> float:
    """The `factor` of a fixed linear scaling of positions: by how much the context was extended, 1 or more."""
    factor = scaling.get("factor")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1 <= factor < math.inf:
        raise ConversionError(f"config.json: factor of {key} must be a number of 1 or more (got {factor!r})")
    return float(factor)
