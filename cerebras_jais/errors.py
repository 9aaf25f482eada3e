"""The one error a user can cause: its message names what is wrong and what to do about it."""


class UserError(Exception):
    """Input that cannot be used; the message names the offending file, key or tensor and the remedy.

    The command lines print it as a single line and exit with status 1. Rooms derive their own from it.
    """
