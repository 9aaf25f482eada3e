"""The error of a conversion that cannot be done as asked."""

from cerebras_jais.errors import UserError


class ConversionError(UserError):
    """Input that cannot be converted; the message names the file, key or tensor and what to do about it."""
