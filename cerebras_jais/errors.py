"""The one error a user can cause, and the exit statuses of both programs."""

# Exit statuses; 1 and 2 as diff(1) and cmp(1) have them, 130 and 143 as a shell says of a program that a signal ended.
GOOD, DIFFERENT, REFUSED, UNFORESEEN, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143
STATUSES = {
    GOOD: "good",
    DIFFERENT: "differs, or problems found",
    REFUSED: "refused: bad input or options",
    UNFORESEEN: "unforeseen error",
    INTERRUPTED: "interrupted",
    TERMINATED: "terminated",
}


class UserError(Exception):
    """Input that cannot be used; the message names the offending file, key or tensor and the remedy.

    The command lines print it as a single line and exit with its `status`. Rooms derive their own from it.
    """

    status: int = REFUSED
