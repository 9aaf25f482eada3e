"""Files that appear whole or not at all."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cerebras_jais.checkpoint.errors import CheckpointError, as_checkpoint_error


@contextmanager
def replacing(path: str | os.PathLike, *, overwrite: bool = False, size: int = 0) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it becomes `path`, else nothing is left of it.

    The file is flushed to the disk before the rename and the directory after it, so a crash shows the old state or the
    new one. `size` is the number of bytes about to be written; a disk without that much room is refused beforehand
    (HDF5 cannot be relied on to survive a full disk). Raises CheckpointError when `path` exists and `overwrite` is
    false, when its directory is missing, or when the system refuses.
    """
    target = Path(path)
    _check_target(target, overwrite)
    free = shutil.disk_usage(target.parent).free
    if size > free:
        raise CheckpointError(
            f"{target}: needs {size / 2**30:.2f} GiB but {target.parent} has {free / 2**30:.2f} GiB free; make room"
        )
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with as_checkpoint_error(target, "moving the finished file into place"):
            _sync(temporary)
            _publish(temporary, target, overwrite)
            _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def abandoned(folder: str | os.PathLike, name: str) -> list[Path]:
    """The temporary files that `replacing` left in a folder because its process was killed.

    Args:
        folder: where to look; there may be none.
        name: regular expression of the names of the files that were to be written.

    A file that another process is writing now looks the same, so the caller makes sure that there is no such process.
    """
    if not Path(folder).is_dir():
        return []
    temporary = re.compile(rf"(?:{name})\.[0-9a-f]{{8}}\.tmp")
    return sorted(path for path in Path(folder).iterdir() if temporary.fullmatch(path.name))


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.parent.is_dir():
        raise CheckpointError(f"{target}: the directory {target.parent} does not exist; create it first")
    if target.is_dir():
        raise CheckpointError(f"{target}: is a directory; give the name of a file")
    if not overwrite and os.path.lexists(target):
        raise CheckpointError(f"{target}: exists already; choose another name, delete it, or ask to overwrite it")


def _publish(temporary: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, target)
        return
    # A link never replaces, so a file that appeared meanwhile is kept; some file systems have no hard links.
    try:
        os.link(temporary, target)
    except FileExistsError:
        _check_target(target, overwrite)
    except OSError:
        _check_target(target, overwrite)
        os.rename(temporary, target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
