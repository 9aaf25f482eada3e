"""Files and folders that appear whole or not at all: made under a hidden name, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cerebras_jais.errors import UserError
from cerebras_jais.files import StrPath, check_regular, shown_path

# Errors of flock on a file system without locks.
# NFS locks what is open for writing only, which a folder cannot be: there it is EBADF (man 2 flock, "NFS details").
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
_LONGEST_NAME = 200  # bytes of a name of at most 255 that its temporary name keeps


# ---- files ----------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(
    path: StrPath, *, overwrite: bool = False, size: int = 0, error: type[UserError] = UserError
) -> Iterator[Path]:
    """Yield a hidden path beside `path`; when the block ends well it becomes `path`, else nothing is left of it.

    The file is flushed to the disk before the rename and the directory after it, so a crash shows the old state or the
    new one.

    Args:
        path: the file to make.
        overwrite: whether one that is there is replaced.
        size: bytes about to be written; a disk without that much room is refused beforehand (HDF5 cannot be relied on
            to survive a full disk).
        error: what is raised.

    Raises `error` when `path` exists and `overwrite` is false, when its directory is missing, or when the system
    refuses the rename.
    """
    target = Path(path)
    _check_target(target, overwrite, error)
    free = shutil.disk_usage(target.parent).free if size else 0
    if size > free:
        raise error(
            f"{target}: needs {size / 2**30:.2f} GiB but {target.parent} has {free / 2**30:.2f} GiB free; make room"
        )
    kept = os.fsdecode(os.fsencode(target.name)[:_LONGEST_NAME])
    temporary = target.with_name(f".{kept}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        try:
            sync(temporary)
            _publish(temporary, target, overwrite, error)
            sync(target.parent)
        except OSError as refused:
            reason = (str(refused).strip() or type(refused).__name__).splitlines()[0]
            raise error(f"{target}: moving the finished file into place failed: {reason}") from refused
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: StrPath, text: str) -> None:
    """Write a text file, UTF-8; a regular file of that name is replaced, and nothing else is.

    Raises UserError where the name is taken by something else, and OSError where the system refuses.
    """
    target = Path(os.path.realpath(path))
    if target.exists():
        check_regular(target)
    _make_folder(target.parent, target)
    with replacing(target, overwrite=True) as temporary, _naming(target, temporary):
        temporary.write_text(text, encoding="utf-8")


def abandoned(folder: StrPath, name: str) -> list[Path]:
    """The temporary files that `replacing` left in a folder because its process was killed.

    Args:
        folder: where to look; there may be none.
        name: regular expression of the names of the files that were to be written.

    A file that another process is writing now looks the same, so the caller makes sure that there is no such process.
    """
    if not Path(folder).is_dir():
        return []
    temporary = re.compile(rf"\.?(?:{name})\.[0-9a-f]{{8}}\.tmp")  # those of earlier versions were not hidden
    return sorted(path for path in Path(folder).iterdir() if temporary.fullmatch(path.name))


def sync(path: StrPath) -> None:
    """Flush a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_target(target: Path, overwrite: bool, error: type[UserError]) -> None:
    if not target.parent.is_dir():
        raise error(f"{target}: the directory {target.parent} does not exist; create it first")
    if target.is_dir():
        raise error(f"{target}: is a directory; give the name of a file")
    if not overwrite and os.path.lexists(target):
        raise error(f"{target}: already exists; choose another name, delete it, or ask to overwrite it")


def _publish(temporary: Path, target: Path, overwrite: bool, error: type[UserError]) -> None:
    if overwrite:
        os.replace(temporary, target)
        return
    # A link never replaces, so a file that appeared meanwhile is kept; some file systems have no hard links.
    try:
        os.link(temporary, target)
    except FileExistsError:
        _check_target(target, overwrite, error)
    except OSError:
        _check_target(target, overwrite, error)
        os.rename(temporary, target)


# ---- folders --------------------------------------------------------------------------------------------------------


def partial_path(target: Path) -> Path:
    """The hidden folder beside a target in which it is made."""
    return target.parent / f".{target.name}.partial"


@contextmanager
def whole_folder(target: StrPath, *, replaces: bool = False) -> Iterator[Path]:
    """Yield a hidden folder beside `target` which becomes `target` when the block ends well, else is removed.

    The folders above it that were not there are made, and removed with it.
    One that a kill left is removed by the next use for the same target. A folder that is not empty is replaced where
    `replaces` is true; the caller has looked what is in it.

    Raises:
        UserError: another process makes the same folder, or `target` is there and may not be replaced.
    """
    target = Path(os.path.realpath(target))
    old = target.parent / f".{target.name}.replaced"
    hidden = partial_path(target)
    above = [folder for folder in target.parents if not os.path.exists(folder)]
    _make_folder(hidden, target)
    busy = UserError(f"{shown_path(target)}: another process is making it; wait, or choose another name")
    with locked(hidden, busy):
        if old.exists() and not target.exists():  # a kill came between the two renames below
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        for left in hidden.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            if target.exists() and not replaces and (not target.is_dir() or any(target.iterdir())):
                raise UserError(f"{shown_path(target)}: already exists; choose another name, or remove it")
            with _naming(target, hidden):
                yield hidden
            if target.exists():
                target.rename(old)
            hidden.rename(target)
            sync(target.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
            with suppress(OSError):  # not empty: the target is there, or what another process has made meanwhile
                for folder in above:
                    folder.rmdir()


@contextmanager
def locked(folder: Path, otherwise: UserError) -> Iterator[None]:
    """Hold the lock of a folder, or of a regular file, for the block; it ends with the process, however that ends.

    On a file system without locks a note is printed and the block runs without one.

    Raises:
        UserError: `otherwise`, where another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            _lock(descriptor, folder)
            if not folder.exists() or os.stat(folder).st_ino != os.fstat(descriptor).st_ino:
                raise BlockingIOError  # the other one has just finished and removed what was opened
        except BlockingIOError as refused:
            raise otherwise from refused
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    """Take the lock of an open folder. Raises BlockingIOError where another process has it; notes where none can be."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(
            f"note: {shown_path(folder.parent)}: this file system locks no folders; start nothing else that writes "
            "there",
            file=sys.stderr,
        )


def _make_folder(folder: Path, target: Path) -> None:
    """Make a folder and those above it; the system's error names the file or folder that it is made for."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target)) from None
    except OSError as error:
        error.filename = str(target)
        raise


@contextmanager
def _naming(target: Path, hidden: Path) -> Iterator[None]:
    """Have the system's errors that name no file, as a full disk's, or a hidden one, name the file being made."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or str(error.filename).startswith(str(hidden))):
            error.filename = str(target)
        raise
