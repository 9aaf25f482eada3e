"""What this process holds, counted so that what earlier tests have left, and Python has not freed yet, changes nothing.

Both are empty where the system has no /proc.
"""

import os
from pathlib import Path


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
