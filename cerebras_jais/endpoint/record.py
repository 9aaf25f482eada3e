"""What was asked and answered: JSON lines in a file that is only appended to."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cerebras_jais.atomic import locked, sync
from cerebras_jais.errors import UserError
from cerebras_jais.files import MIB, check_regular, parse_json, shown_path

_LONGEST_LINE = 128 * MIB  # a response of 16 MiB, each byte of it escaped


class Record:
    """Entries by the key of what was asked, a SHA-256 in hexadecimal; about 200 bytes of memory for each.

    An entry is on its way to the disk when `add` returns: a kill of the process leaves it, or a part of the last line,
    which the next opening cuts. Threads may call `add` at the same time.
    """

    def __init__(self, path: Path, places: dict[bytes, int], end: int) -> None:
        self._path, self._places, self._end = path, places, end
        self._lock = threading.Lock()
        self._file: int | None = os.open(path, os.O_RDWR)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key) in self._places

    def __getitem__(self, key: str) -> dict[str, Any]:
        """The entry of a key, which is there."""
        found: dict[str, Any] = parse_json(self._line_at(self._places[bytes.fromhex(key)]), str(self._path))
        return found

    def add(self, key: str, entry: Mapping[str, Any]) -> None:
        """Append an entry; once the record is closed it is dropped. A full disk leaves the record as it was."""
        line = (json.dumps({"key": key, **entry}, ensure_ascii=False) + "\n").encode()
        with self._lock:
            if self._file is None:
                return
            try:
                written = 0
                while written < len(line):
                    written += os.pwrite(self._file, line[written:], self._end + written)
            except OSError as error:
                os.ftruncate(self._file, self._end)
                error.filename = str(self._path)
                raise
            self._places[bytes.fromhex(key)] = self._end
            self._end += len(line)

    def close(self) -> None:
        """Let nothing more be added."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _line_at(self, place: int) -> str:
        assert self._file is not None
        size = 16 * 1024
        while True:
            found = os.pread(self._file, size, place)
            if b"\n" in found:
                return found[: found.index(b"\n")].decode()
            if len(found) < size:
                raise UserError(f"{shown_path(self._path)}: was cut while it was in use; run the command again")
            size *= 4


@contextmanager
def open_record(path: Path) -> Iterator[Record]:
    """Open a record for a block, or begin one; a torn last line is cut.

    Raises UserError where another process has it open, and where it is damaged or something else.
    """
    if not os.path.lexists(path):
        with open(path, "xb"):
            pass
        sync(path.parent)
    check_regular(path)
    busy = UserError(f"{shown_path(path)}: another process writes it; wait for it, or choose another output")
    with locked(path, busy):
        places, end = _scan(path)
        os.truncate(path, end)
        record = Record(path, places, end)
        try:
            yield record
        finally:
            record.close()


def keys_in(path: Path) -> set[bytes]:
    """The keys of a record, 32 bytes each; it is left as it is, and there are none where there is no file."""
    return set(_scan(path)[0]) if os.path.lexists(path) else set()


def _scan(path: Path) -> tuple[dict[bytes, int], int]:
    """Where each entry begins, and where the last whole line ends."""
    check_regular(path)
    places: dict[bytes, int] = {}
    end = 0
    with open(path, "rb") as lines:
        number = 0
        while line := lines.readline(_LONGEST_LINE):
            number += 1
            if not line.endswith(b"\n"):
                break
            try:
                places.setdefault(bytes.fromhex(json.loads(line)["key"]), end)
            except (ValueError, LookupError, TypeError, RecursionError) as damage:
                raise UserError(
                    f"{shown_path(path)}:{number}: is no line of a record of answers; remove the line, or the file"
                ) from damage
            end += len(line)
    return places, end
