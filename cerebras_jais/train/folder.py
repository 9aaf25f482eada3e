"""The folder of a run: its lock, its checkpoints and their index, and the files that a killed process leaves.

The index, the files to keep and those to remove are derived from the checkpoints alone, so the next process puts the
folder in order at whatever moment the one before was killed.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from cerebras_jais.atomic import abandoned, replacing
from cerebras_jais.config.trainer import TrainerConfig
from cerebras_jais.config.yaml_file import read_yaml
from cerebras_jais.errors import UserError
from cerebras_jais.launch.saved import (
    INTERRUPTED,
    SavedStep,
    checkpoint_folders,
    checkpoint_path,
    checkpoint_root,
    name_pattern,
    recorded_begin,
    saved_steps,
)
from cerebras_jais.train.progress import CURVE_FILE, LOSSES_FILE

INDEX_FILE = "checkpoints_index.yaml"
LOCK_FILE = ".fit.lock"
_LONGEST_NAME = 255  # bytes (Linux, NAME_MAX)
_TIME = "%Y%m%d_%H%M%S"


class FolderError(UserError):
    """A folder that this run cannot use."""


class RunFolder:
    """The checkpoints of a run among the files of its folder.

    Args:
        config: of the run.
        model_dir: its folder; `checkpoint.checkpoint_root` may name another one for checkpoints.
        begins: the step the run began at.
        step: the step of its own checkpoint that it continues from; None where it begins. What is there beforehand
            is not its own then, and is left alone.
    """

    def __init__(self, config: TrainerConfig, model_dir: Path, begins: int, step: int | None):
        self.config, self.model_dir = config, model_dir
        self.folders = checkpoint_folders(config, model_dir)
        self.keep: int | None = (config.callback("KeepNCheckpoints") or {}).get("n")
        there = saved_steps(config, model_dir)
        own = [saved for saved in there if step is not None and begins < saved.step <= step]
        if step is not None and config.init.checkpoint.save_initial_checkpoint:
            # The phase before may have written its last one at the same step, in the same folder.
            own += [saved for saved in there if saved.step == begins and recorded_begin(saved.path) == begins]
        self._others = {saved.path for saved in there} - {saved.path for saved in own}

    def new_path(self, step: int, *, interrupted: bool = False) -> Path:
        """The path of a new checkpoint; a name already taken gets the time appended, as in the Model Zoo."""
        if interrupted:
            return checkpoint_path(self.config, self.model_dir, f"{step}_{INTERRUPTED}")
        path = checkpoint_path(self.config, self.model_dir, step)
        if path.exists():
            now = f"{step}_{datetime.datetime.now():{_TIME}}"
            path = checkpoint_path(self.config, self.model_dir, now)
        return path

    def try_to_write(self, last: int) -> None:
        """Make the folder of the checkpoints, and in it for a moment a file without a name.

        Raises FolderError where no checkpoint could be written when the time comes.

        Args:
            last: the step of the last one.
        """
        path = checkpoint_path(self.config, self.model_dir, f"{last}_{datetime.datetime.now():{_TIME}}")
        longest = len(os.fsencode(path.name))
        if longest > _LONGEST_NAME:
            raise FolderError(
                f"{self.config.source}: checkpoint_name makes names of up to {longest} bytes, {path.name[:40]}…; a "
                f"file's may have {_LONGEST_NAME}, so shorten it"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise FolderError(
                f"{path.parent}: checkpoints cannot be written there ({reason}); give another folder"
            ) from error

    def put_in_order(self, newest: int) -> None:
        """Make files and index as a run leaves them that wrote its last checkpoint at step `newest` and never stopped.

        Of its regular checkpoints the last ones stay (KeepNCheckpoints); an interrupted one goes once a later one is
        there.
        """
        own = [saved for saved in saved_steps(self.config, self.model_dir) if saved.path not in self._others]
        regular = [saved for saved in own if not saved.interrupted]
        latest = max((saved.step for saved in regular), default=-1)
        surplus = regular[: -self.keep] if self.keep else []
        surplus += [saved for saved in own if saved.interrupted and saved.step <= max(latest, newest - 1)]
        self._write_index({saved.path for saved in surplus})
        for saved in surplus:
            saved.path.unlink(missing_ok=True)

    def _write_index(self, gone: set[Path]) -> None:
        """`checkpoints_index.yaml`: the Model Zoo's trainer takes up only checkpoints that it lists."""
        index = self.model_dir / INDEX_FILE
        found: list[SavedStep] = saved_steps(self.config, self.model_dir)
        regular = [str(saved.path.resolve()) for saved in found if not saved.interrupted and saved.path not in gone]
        ours = {str(saved.path.resolve()) for saved in found}
        listed = _listed(index)
        wanted = [path for path in listed if path not in ours and Path(path).exists()] + regular
        if wanted != listed:
            self.model_dir.mkdir(parents=True, exist_ok=True)
            with replacing(index, overwrite=True) as temporary:
                temporary.write_text(yaml.safe_dump(wanted))


def remove_abandoned(config: TrainerConfig, model_dir: Path, until_done: ExitStack) -> None:
    """Remove the temporary files of killed processes; call it under the lock of the folder.

    A folder of checkpoints elsewhere is locked too, for as long as `until_done` lasts; where other runs write there,
    their files look the same, and none is removed.
    """
    left = abandoned(model_dir, "|".join(map(re.escape, (INDEX_FILE, LOSSES_FILE, CURVE_FILE))))
    root = checkpoint_root(config, model_dir)
    try:
        if root.is_dir() and root.resolve() != model_dir.resolve():
            until_done.enter_context(only_process_in(root, lambda line: None))
        left += abandoned(root, name_pattern(config))
    except FolderError:
        pass
    for path in left:
        path.unlink(missing_ok=True)


def _listed(index: Path) -> list[str]:
    """What an index lists; nothing where it is missing or damaged, since it is rebuilt from the files themselves."""
    try:
        listed = read_yaml(index).data if index.exists() else None
    except UserError:
        return []
    return [path for path in listed if isinstance(path, str)] if isinstance(listed, list) else []


@contextmanager
def only_process_in(folder: Path, log: Callable[[str], object]) -> Iterator[None]:
    """Hold the lock of a run's folder, which exists; the system releases it when the process dies.

    Raises FolderError where another process holds it. On a file system without locks the run continues, and `log` takes
    a line about it.
    """
    path = folder / LOCK_FILE
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise FolderError(f"{folder}: cannot be written ({error.strerror}); give another --model-dir") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            os.close(descriptor)
            raise FolderError(
                f"{folder}: another process is training in this folder; wait for it, stop it, or give another "
                "--model-dir"
            ) from error
        except OSError as error:
            log(f"{folder}: its file system has no locks ({error.strerror}); make sure that no other run uses it")
        if path.exists() and os.stat(path).st_ino == os.fstat(descriptor).st_ino:
            break
        os.close(descriptor)  # the process that held the lock has just removed the file
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
