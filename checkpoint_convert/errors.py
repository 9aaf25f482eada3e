"""The error of a conversion that cannot be done as asked, and how its messages list things."""

from collections.abc import Sequence

from cerebras_jais.errors import UserError

_SHOWN = 6


class ConversionError(UserError):
    """Input that cannot be converted; the message names the file, key or tensor and what to do about it."""


def first_few(texts: Sequence[str], separator: str = ", ") -> str:
    """The first texts of a list, and how many more there are."""
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return separator.join(texts[:_SHOWN]) + more
