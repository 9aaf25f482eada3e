"""The error of a checkpoint that cannot be read or written, and the way other libraries' errors become it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cerebras_jais.errors import UserError


class CheckpointError(UserError):
    """A checkpoint that cannot be read or written as asked; the message names the file, the tensor and the remedy."""


# What h5py, json and numpy raise on a damaged file; AttributeError and its like would be our own mistake.
_DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, OverflowError, MemoryError, RecursionError)


@contextmanager
def as_checkpoint_error(path: Path, doing: str) -> Iterator[None]:
    """Turn what the libraries raise inside the block into one CheckpointError that names the file and the act."""
    try:
        yield
    except _DAMAGE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: {doing} failed: {reason}") from error
