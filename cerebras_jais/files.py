"""Files of a user: read only where they are regular and of a size that can be meant, written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from cerebras_jais.errors import UserError

MIB = 2**20
STANDARD_INPUT = "-"
# What flock says of a file system without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def shown_path(path: str | os.PathLike) -> str:
    """A path for a message: in one line, and cut where it is long."""
    text = os.fspath(path)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 300 else f"{text[:150]}…{text[-100:]}"


# ---- reading --------------------------------------------------------------------------------------------------------


def check_regular(path: str | os.PathLike, error: type[UserError] = UserError) -> os.stat_result:
    """The state of a regular file; raises `error` for anything else, without opening it.

    A pipe waits for its other end and a device never ends, so neither is opened to find out.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise error(f"{shown_path(path)}: cannot be read: no such file") from None
    except NotADirectoryError:
        raise error(f"{shown_path(path)}: cannot be read: a part of its path is itself a file") from None
    except OSError as refused:
        raise error(f"{shown_path(path)}: cannot be read: {refused.strerror}") from refused
    except ValueError as refused:  # a zero byte, or half a character
        raise error(f"{shown_path(path)}: cannot be read: no file can have this name") from refused
    if stat.S_ISDIR(found.st_mode):
        raise error(f"{shown_path(path)}: is a folder; give the name of a file")
    if not stat.S_ISREG(found.st_mode):
        raise error(f"{shown_path(path)}: is not a regular file; write what it gives to a file, and name that")
    return found


@contextmanager
def open_regular(path: str | os.PathLike, error: type[UserError] = UserError) -> Iterator[BinaryIO]:
    """Open a regular file for reading, or `-`, standard input; raises `error` for any other."""
    if os.fspath(path) == STANDARD_INPUT:
        yield sys.stdin.buffer
        return
    check_regular(path, error)
    try:
        file = open(path, "rb")  # noqa: SIM115  # closed by the next with
    except OSError as refused:
        raise error(f"{shown_path(path)}: cannot be read: {refused.strerror}") from refused
    with file:
        yield file


def read_bytes(path: str | os.PathLike, most: int, error: type[UserError] = UserError) -> bytes:
    """The content of a regular file of at most `most` bytes; raises `error` for any other."""
    with open_regular(path, error) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise error(f"{shown_path(path)}: is larger than {most // MIB} MiB, which no such file is; give another")
    return content


def read_text(path: str | os.PathLike, most: int, error: type[UserError] = UserError) -> str:
    """The UTF-8 text of a regular file of at most `most` bytes; raises `error` for any other."""
    content = read_bytes(path, most, error)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as damage:
        line = content.count(b"\n", 0, damage.start) + 1
        raise error(f"{shown_path(path)}:{line}: not UTF-8 ({damage.reason}); save the file as UTF-8") from damage


def parse_json(text: str, where: str, error: type[UserError] = UserError, *, line: int | None = None) -> Any:
    """The value of a JSON text; raises `error` for what is none.

    Refused too are what Python's reader takes beyond the standard, NaN and Infinity, and halves of surrogate pairs,
    which are no characters and which nothing can write.

    Args:
        where: the name of its file, for messages.
        line: the line of the file that the text is, where it is one line of it.
    """

    def no_number(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    place = where if line is None else f"{where}:{line}"
    try:
        value = json.loads(text, parse_constant=no_number)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as damage:
        raise error(f"{where}:{(line or 1) + damage.lineno - 1}: not valid JSON ({damage.msg})") from damage
    except UnicodeEncodeError as damage:
        half = damage.object[damage.start : damage.start + 1]
        raise error(f"{place}: has {half!r}, half of a character; write the whole character") from damage
    except ValueError as damage:
        raise error(f"{place}: not valid JSON ({str(damage).partition(';')[0]})") from damage
    except RecursionError as damage:
        raise error(f"{place}: not valid JSON (nested too deeply)") from damage
    return value


# ---- writing --------------------------------------------------------------------------------------------------------


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file whole or not at all; a regular file of that name is replaced, and nothing else is.

    Raises UserError where the name is taken by something else, and OSError where the system refuses.
    """
    target = Path(os.path.realpath(path))
    if target.exists():
        check_regular(target)
    _make_folder(target.parent, target)
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.tmp")
    try:
        with _naming(target, temporary), open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: str | os.PathLike, *, replaces: bool = False) -> Iterator[Path]:
    """Yield a hidden folder beside `target` which becomes `target` when the block ends well, else is removed.

    One that a kill left is removed by the next use for the same target. A folder that is not empty is replaced where
    `replaces` is true; the caller has looked what is in it.

    Raises:
        UserError: another process makes the same folder, or `target` is there and may not be replaced.
    """
    target = Path(os.path.realpath(target))
    old = target.parent / f".{target.name}.replaced"
    hidden = target.parent / f".{target.name}.partial"
    _make_folder(hidden, target)
    with locked(hidden, f"{shown_path(target)}: another process is making it; wait, or choose another name"):
        if old.exists() and not target.exists():  # a kill came between the two renames below
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        for left in hidden.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            if target.exists() and not replaces and (not target.is_dir() or any(target.iterdir())):
                raise UserError(f"{shown_path(target)}: is there already; choose another name, or remove it")
            with _naming(target, hidden):
                yield hidden
            if target.exists():
                target.rename(old)
            hidden.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def locked(folder: Path, otherwise: str) -> Iterator[None]:
    """Hold the lock of a folder for the block; it ends with the process, however that ends.

    A file system without locks gives none: a note says so, and the block goes on.

    Raises:
        UserError: with the message `otherwise`, where another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            lock(descriptor, folder)
            if not folder.exists() or os.stat(folder).st_ino != os.fstat(descriptor).st_ino:
                raise BlockingIOError  # the other one has just finished and removed what was opened
        except BlockingIOError as refused:
            raise UserError(otherwise) from refused
        yield
    finally:
        os.close(descriptor)


def lock(descriptor: int, folder: Path) -> None:
    """Take the lock of an open folder. Raises BlockingIOError where another process has it; notes where none can be."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(
            f"note: {shown_path(folder.parent)}: this file system has no locks; start nothing else that writes there",
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
