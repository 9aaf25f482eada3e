"""The error for input that cannot be converted, and how messages list names."""

from collections.abc import Sequence

from cerebras_jais.errors import UserError

_SHOWN = 6


class ConversionError(UserError):
    """Input that cannot be converted. The message names the file, key or tensor and says what to do."""


def first_few(texts: Sequence[str], separator: str = ", ") -> str:
    """The first texts of a list, and how many more there are."""
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return separator.join(texts[:_SHOWN]) + more
