"""What this process holds, counted so that what earlier tests have left, and Python has not freed yet, changes nothing.

Both are empty where the system has no /proc. Beside them what tests of several processes wait for.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 1200  # seconds until a test gives up, on however busy a machine


def open_files(folder: Path) -> list[Path]:
    """The files below `folder` that this process has open, once for each descriptor."""
    found = []
    for descriptor in Path("/proc/self/fd").glob("*"):
        try:
            target = Path(os.readlink(descriptor))
        except FileNotFoundError:  # the descriptor of this listing
            continue
        if target.is_relative_to(folder.resolve()):
            found.append(target)
    return found


def children() -> set[str]:
    """The process ids of the children that the main thread has started and not waited for."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    return set(listed.read_text().split()) if listed.exists() else set()


def wait_until(holds: Callable[[], object], what: str) -> None:
    """Wait until something holds; `what` names it where it never does."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"waited {PATIENCE} seconds for {what}"
        time.sleep(0.02)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to ask after it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
