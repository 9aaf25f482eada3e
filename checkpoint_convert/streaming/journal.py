"""A conversion that can be resumed after a kill: a hidden directory beside the target, with a journal of what is done.

The directory `.NAME.partial` holds the output files, created and being filled, and `journal`: a first line that says
of which conversion it is, then a line for every step that is finished, with the digests of its tensors. The same
conversion, started again, checks what the journal says by reading it back, and goes on; any other one starts anew.
Nothing appears under the target's name before all of it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cerebras_jais.atomic import locked, partial_path, sync, write_text
from cerebras_jais.errors import UserError
from checkpoint_convert.errors import ConversionError

_JOURNAL = "journal"
_FILES = "files"
_COMPLETE = "complete"


def fingerprint(*parts: Any) -> str:
    """A hexadecimal digest of JSON values: equal for equal ones."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class Work:
    """The directory of one conversion, in use by this process alone."""

    def __init__(self, directory: Path) -> None:
        self.files = directory / _FILES
        """Where the output files are made, under their final names."""
        self.finished: dict[int, tuple[str, ...]] = {}
        """Step number -> digests, of the steps that the journal says are finished."""
        self.complete = directory / _COMPLETE
        """The same once nothing is left but to give them their final names."""
        self._directory = directory
        self._journal = directory / _JOURNAL

    def is_complete(self, identity: str) -> bool:
        """Whether the conversion of that identity was killed while its files were given their final names."""
        return self.complete.is_dir() and self._lines()[:1] == [{"conversion": identity}]

    def mark_complete(self) -> None:
        """Say that nothing is left but to give the files their final names."""
        os.rename(self.files, self.complete)
        sync(self._directory)

    def begin(self, identity: str, create_files: Callable[[Path], None], can_continue: bool = True) -> bool:
        """Resume the conversion of that identity, or create its files again; return whether it is resumed.

        Args:
            identity: from `fingerprint`, of everything that the output depends on.
            create_files: creates the output files, still to be filled, in the directory given.
            can_continue: False to start again whatever there is.
        """
        lines = self._lines()
        if can_continue and self.files.is_dir() and lines and lines[0] == {"conversion": identity}:
            self.finished = {line["step"]: tuple(line["digests"]) for line in lines[1:] if "step" in line}
            self._rewrite(identity)
            return True
        for old in self._directory.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        self.files.mkdir()
        create_files(self.files)
        sync(self.files)
        self.finished = {}
        self._rewrite(identity)
        return False

    def forget(self, number: int) -> None:
        """Take back what the journal said of a step."""
        self.finished.pop(number, None)

    def record(self, number: int, digests: tuple[str, ...]) -> None:
        """Write down that a step is finished."""
        self.finished[number] = digests
        with open(self._journal, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": number, "digests": digests}) + "\n")

    def _rewrite(self, identity: str) -> None:
        """Write the journal whole, so that a line torn by a kill does not stay in its middle."""
        lines: list[Mapping[str, Any]] = [{"conversion": identity}]
        lines += [{"step": number, "digests": digests} for number, digests in self.finished.items()]
        write_text(self._journal, "".join(json.dumps(line) + "\n" for line in lines))

    def _lines(self) -> list[dict[str, Any]]:
        try:
            texts = self._journal.read_text(encoding="utf-8").split("\n")[:-1]
            return [line for line in map(json.loads, texts) if isinstance(line, dict)]
        except FileNotFoundError:
            return []
        except ValueError:  # damaged by more than a kill, which can only tear the last line
            return []


@contextmanager
def working_beside(target: Path) -> Iterator[Work]:
    """Lock the hidden directory beside a target for a conversion; it is removed when the block ends.

    After a kill, an interruption or an error of the system, such as a full disk, it stays, and the next conversion to
    the target finds it. Whoever comes second while one is at work is refused; where the file system has no locks, a
    note says so, and nobody is.

    Raises:
        ConversionError: another process is at work on the target, its parent is missing, or the system refuses.
    """
    parent = target.absolute().parent
    if not parent.is_dir():
        raise ConversionError(f"{target}: the directory {parent} does not exist; create it first")
    directory = partial_path(target.absolute())
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise ConversionError(f"{target}: cannot be written: {error.strerror or error}") from error
    busy = ConversionError(f"{target}: another conversion is making it; wait for that one or choose another name")
    with locked(directory, busy):
        work = Work(directory)
        try:
            yield work
        except BaseException as error:
            # Nothing to go on with: nothing is finished, or the input is at fault.
            if not work.complete.exists() and (not work.finished or isinstance(error, UserError)):
                shutil.rmtree(directory, ignore_errors=True)
            raise
        if work.complete.exists():
            shutil.rmtree(work.complete)
        shutil.rmtree(directory)  # the journal last: while it is there, the same command knows that all is done
