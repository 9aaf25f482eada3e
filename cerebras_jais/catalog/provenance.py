"""Where a value comes from: published, derived from published values by a rule, or assumed for a reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
Origin = Literal["published", "derived", "assumed"]


@dataclass(frozen=True)
class Sourced(Generic[T]):
    """A value with where it comes from: the publication, the rule it follows, or the reason it was chosen."""

    value: T
    origin: Origin
    why: str


def published(value: T, source: str) -> Sourced[T]:
    """A value that `source` states."""
    return Sourced(value, "published", source)


def derived(value: T, rule: str) -> Sourced[T]:
    """A value that follows from published ones by `rule`."""
    return Sourced(value, "derived", rule)


def assumed(value: T, reason: str) -> Sourced[T]:
    """A value nobody published, chosen for `reason`."""
    return Sourced(value, "assumed", reason)
