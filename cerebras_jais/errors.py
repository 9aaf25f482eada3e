"""The one error a user can cause, what a check finds, and the exit statuses of both programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Exit statuses; 1 and 2 as diff(1) and cmp(1) have them, from 129 on as a shell says of a program that a signal ended.
GOOD, DIFFERENT, REFUSED, UNFORESEEN, HUNG_UP, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 129, 130, 143
STATUSES = {
    GOOD: "good",
    DIFFERENT: "differs, or problems found",
    REFUSED: "refused: bad input or options",
    UNFORESEEN: "unforeseen error",
    HUNG_UP: "hung up",
    INTERRUPTED: "interrupted",
    TERMINATED: "terminated",
}


class UserError(Exception):
    """Input that cannot be used; the message names the offending file, key or tensor and the remedy.

    The command lines print it as a single line and exit with its `status`. Packages derive their own from it.
    """

    status: int = REFUSED


Keys = tuple[str | int, ...]
"""The path of a key in a YAML: names of mappings and numbers of items."""


@dataclass(frozen=True)
class Problem:
    """What a check found: the path of the key that it is about, and what is wrong there and what to do."""

    keys: Keys
    message: str

    def below(self, keys: Keys) -> Problem:
        """The same of a section that itself stands at `keys`."""
        return Problem((*keys, *self.keys), self.message)


def dotted(keys: Iterable[str | int]) -> str:
    """`trainer.init.schedulers[0].LinearLR` for the path of a key."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else (f".{key}" if text else str(key))
    return text
