"""What the checks of a release find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from checkpoint_convert.errors import ConversionError

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """One check: what it found, or why it failed or was skipped."""

    name: str
    status: Status
    texts: tuple[str, ...]
    """Of a failed check one line for each problem: file, key or tensor, what is wrong, what to do."""


@dataclass(frozen=True)
class Report:
    """All checks of a release."""

    release: Path
    is_published: bool
    """Whether it is a layout as the hub has it, which no conversion of this package wrote."""
    checks: tuple[Check, ...]
    known: tuple[str, ...]
    """What is known not to work with such a release today."""
    repair: tuple[str, ...]
    """Commands that make a repaired copy; empty where none is needed."""

    @property
    def passed(self) -> bool:
        return all(check.status != "failed" for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "release": str(self.release),
            "passed": self.passed,
            "published_layout": self.is_published,
            "checks": [{"name": c.name, "status": c.status, "texts": list(c.texts)} for c in self.checks],
            "known": list(self.known),
            "repair": list(self.repair),
        }

    def lines(self) -> list[str]:
        """The report as lines."""
        width = max(len(check.name) for check in self.checks)
        lines = [
            f"{check.status:<8}{check.name if number == 0 else '':<{width}}  {text}"
            for check in self.checks
            for number, text in enumerate(check.texts or ("",))
        ]
        lines += [f"known   {text}" for text in self.known]
        if self.repair:
            lines += ["a repaired copy is made by", *(f"  {command}" for command in self.repair)]
        failed = [check.name for check in self.checks if check.status == "failed"]
        return [*lines, f"{self.release}: " + (f"failed: {', '.join(failed)}" if failed else "passed")]


class Skipped(Exception):
    """A check that cannot be made here; the message says why."""


class Problems(ConversionError):
    """Several problems of one check."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def require_none(problems: Sequence[str]) -> None:
    """Raise Problems where there are any."""
    if problems:
        raise Problems(problems)
