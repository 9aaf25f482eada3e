"""Files of a user: only regular files of limited size are read; `atomic` writes them."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from cerebras_jais.errors import UserError

StrPath = str | os.PathLike[str]
Identity = tuple[int, int]
"""Bytes and time of modification (ns) of a file."""

MIB = 2**20
STANDARD_INPUT = "-"


def shown_path(path: StrPath) -> str:
    """A path for a message: in one line, and cut where it is long."""
    text = os.fspath(path)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 300 else f"{text[:150]}…{text[-100:]}"


def identity_of(file: StrPath | int) -> Identity:
    """What changes when a file, given by its path or open descriptor, is written to; raises OSError.

    Its inode is no part of this: some network file systems renumber inodes at each call.
    """
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


def is_in_object_storage(path: StrPath) -> bool:
    """Whether a path names an object of S3 and no file; pathlib folds the two slashes into one."""
    return os.fspath(path).startswith("s3:/")


def check_regular(path: StrPath, error: type[UserError] = UserError) -> os.stat_result:
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
        raise error(f"{shown_path(path)}: is not a regular file; save its output as a file and give that path")
    return found


@contextmanager
def open_regular(path: StrPath, error: type[UserError] = UserError) -> Iterator[BinaryIO]:
    """Open a regular file for reading, or `-`, standard input; raises `error` for any other."""
    if os.fspath(path) == STANDARD_INPUT:
        if sys.stdin is None:  # the process began with it closed
            raise error(f"{STANDARD_INPUT}: standard input is closed; give it something to read, or name a file")
        yield sys.stdin.buffer
        return
    check_regular(path, error)
    try:
        file = open(path, "rb")  # noqa: SIM115  # closed by the next with
    except OSError as refused:
        raise error(f"{shown_path(path)}: cannot be read: {refused.strerror}") from refused
    with file:
        yield file


def read_bytes(path: StrPath, most: int, error: type[UserError] = UserError) -> bytes:
    """The content of a regular file of at most `most` bytes; raises `error` for any other."""
    with open_regular(path, error) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise error(
            f"{shown_path(path)}: is larger than the limit of {most // MIB} MiB; check that it is the right file"
        )
    return content


def read_text(path: StrPath, most: int, error: type[UserError] = UserError) -> str:
    """The UTF-8 text of a regular file of at most `most` bytes; raises `error` for any other."""
    content = read_bytes(path, most, error)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as damage:
        line = content.count(b"\n", 0, damage.start) + 1
        raise error(f"{shown_path(path)}:{line}: not UTF-8 ({damage.reason}); save the file as UTF-8") from damage


class _TwiceError(ValueError):
    """A key twice in one object; the text is the key, cut."""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise _TwiceError(twice[:100])
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


_JSON = json.JSONDecoder(parse_constant=_no_number, object_pairs_hook=_each_key_once)


def parse_json(text: str, where: str, error: type[UserError] = UserError, *, line: int | None = None) -> Any:
    """Parse JSON; raises `error` for invalid text.

    Refused too are what Python's reader takes beyond the standard, NaN and Infinity, halves of surrogate pairs, which
    are no characters and which nothing can write, and a key twice in one object, of which it would take the last.

    Args:
        where: the name of its file, for messages.
        line: the line of the file that the text is, where it is one line of it.
    """

    place = where if line is None else f"{where}:{line}"
    try:
        value = _JSON.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except _TwiceError as damage:
        raise error(f"{place}: has the key {str(damage)!r} twice in one object; remove one") from damage
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
