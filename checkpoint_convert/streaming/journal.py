"""Resuming an interrupted conversion: a hidden directory beside the output, with a journal of finished steps.

The directory `.NAME.partial` has the output files and `journal`. The first line of the journal identifies the
conversion; each further line is a finished step with the digests of its tensors. When the same conversion starts again,
it reads the finished tensors back, compares their digests and continues. Any other conversion starts from the
beginning. No output appears under its final name before all of it is on the disk.
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

from cerebras_jais.atomic import abandoned, locked, partial_path, sync, write_text
from cerebras_jais.errors import UserError
from checkpoint_convert.errors import ConversionError

_JOURNAL = "journal"
_FILES = "files"
_COMPLETE = "complete"


def fingerprint(*parts: Any) -> str:
    """A hexadecimal digest of JSON values: equal for equal ones."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class Work:
    """The hidden directory of one conversion, locked by this process."""

    def __init__(self, directory: Path) -> None:
        self.files = directory / _FILES
        """The directory in which the output files are written, under their final names."""
        self.finished: dict[int, tuple[str, ...]] = {}
        """Step number -> digests, of the finished steps in the journal."""
        self.complete = directory / _COMPLETE
        """The same directory after all files are complete, before they move to their final paths."""
        self._directory = directory
        self._journal = directory / _JOURNAL

    def is_complete(self, identity: str) -> bool:
        """Whether this conversion was interrupted while its complete files moved to their final paths."""
        return self.complete.is_dir() and self._lines()[:1] == [{"conversion": identity}]

    def mark_complete(self) -> None:
        """Record that all files are complete."""
        os.rename(self.files, self.complete)
        sync(self._directory)

    def begin(self, identity: str, create_files: Callable[[Path], None], can_continue: bool = True) -> bool:
        """Resume the conversion with this identity, or create its files; return whether it resumes.

        Args:
            identity: from `fingerprint`, of everything that determines the output.
            create_files: creates the output files in a directory, at full size and without tensors.
            can_continue: False to start from the beginning in any case.
        """
        lines = self._lines()
        if can_continue and self.files.is_dir() and lines and lines[0] == {"conversion": identity}:
            self.finished = {line["step"]: tuple(line["digests"]) for line in lines[1:] if "step" in line}
            for folder in (self.files, *filter(Path.is_dir, self.files.iterdir())):
                for left in abandoned(folder, ".+"):  # a kill came while a file beside the weights was written
                    left.unlink()
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
        """Treat a step as unfinished."""
        self.finished.pop(number, None)

    def record(self, number: int, digests: tuple[str, ...]) -> None:
        """Add a finished step to the journal."""
        self.finished[number] = digests
        with open(self._journal, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": number, "digests": digests}) + "\n")

    def _rewrite(self, identity: str) -> None:
        """Rewrite the whole journal, which removes a partial line that an interruption left."""
        lines: list[Mapping[str, Any]] = [{"conversion": identity}]
        lines += [{"step": number, "digests": digests} for number, digests in self.finished.items()]
        write_text(self._journal, "".join(json.dumps(line) + "\n" for line in lines))

    def _lines(self) -> list[dict[str, Any]]:
        try:
            texts = self._journal.read_text(encoding="utf-8").split("\n")[:-1]
            return [line for line in map(json.loads, texts) if isinstance(line, dict)]
        except FileNotFoundError:
            return []
        except ValueError:  # damage: an interruption leaves at most a partial last line
            return []


@contextmanager
def working_beside(target: Path) -> Iterator[Work]:
    """Create and lock the hidden directory beside an output; the end of the block removes it.

    It stays after an interruption or an error of the system, such as a full disk, and the next conversion to the same
    output finds it. A second process is refused while the first one runs. On a file system without locks a note says
    so, and no process is refused.

    Raises:
        ConversionError: another process writes the output, its parent directory is missing, or the system refuses.
    """
    parent = target.absolute().parent
    if not parent.is_dir():
        raise ConversionError(f"{target}: the directory {parent} does not exist; create it first")
    directory = partial_path(target.absolute())
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise ConversionError(f"{target}: cannot be written: {error.strerror or error}") from error
    busy = ConversionError(f"{target}: another conversion is writing it; wait until it ends or choose another name")
    with locked(directory, busy):
        work = Work(directory)
        try:
            yield work
        except BaseException as error:
            # Nothing can be resumed: no step is finished, or the input is wrong.
            if not work.complete.exists() and (not work.finished or isinstance(error, UserError)):
                shutil.rmtree(directory, ignore_errors=True)
            raise
        if work.complete.exists():
            shutil.rmtree(work.complete)
        shutil.rmtree(directory)  # removed last, so that the same command can still see that all files are complete
