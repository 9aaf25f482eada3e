"""What a process has around it: the memory that it may take, and its place among the processes of torchrun."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cerebras_jais.errors import UserError

_GROUP = Path("/sys/fs/cgroup")
_PORTS = 2**16


def machine_memory(group: Path = _GROUP) -> int:
    """Bytes of memory that this machine has, or that the control group of a container may take of it."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _limit(group)
    return there if limit is None else min(there, limit)


def available_memory(group: Path = _GROUP, machine: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes of memory that programs can still take, as Linux says, in a control group too; None elsewhere."""
    try:
        lines = machine.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith("MemAvailable:")), None)
    if found is None:
        return None
    free = int(found.split()[1]) * 1024
    limit, taken = _limit(group), _number_in(group / "memory.current", group / "memory" / "memory.usage_in_bytes")
    if limit is None or taken is None:
        return free
    return min(free, max(0, limit - taken + _file_cache(group)))


def _limit(group: Path) -> int | None:
    """Of a control group, by the files of Linux's second or first kind of them (cgroups(7))."""
    return _number_in(group / "memory.max", group / "memory" / "memory.limit_in_bytes")


def _file_cache(group: Path) -> int:
    """Bytes of files that a control group keeps in memory, which the system gives up where programs need it."""
    for stat, before in ((group / "memory.stat", ""), (group / "memory" / "memory.stat", "total_")):
        try:
            found = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
            return sum(int(found[f"{before}{which}_file"]) for which in ("active", "inactive"))
        except (OSError, ValueError, KeyError):
            continue
    return 0


def _number_in(*files: Path) -> int | None:
    """The number in the first of the files that has one; None without one, or where it says "max"."""
    for file in files:
        try:
            return int(file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
    return None


@dataclass(frozen=True)
class Place:
    """A process among those of a run, and among those of its machine; both are counted from 0."""

    rank: int = 0
    processes: int = 1
    local_rank: int = 0
    local_processes: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def place_of_process(environment: Mapping[str, str] = os.environ) -> Place:
    """The place that torchrun's variables give this process; without WORLD_SIZE, or with 1, it is alone.

    Raises UserError for a variable that is missing or makes no sense.
    """
    processes = _variable(environment, "WORLD_SIZE", 1, least=1)
    if processes == 1:
        return Place()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {processes}, and not set are: {', '.join(missing)}; start the processes with torchrun, or "
            "unset WORLD_SIZE"
        )
    _variable(environment, "MASTER_PORT", 0, below=_PORTS)
    return Place(
        _variable(environment, "RANK", 0, below=processes),
        processes,
        _variable(environment, "LOCAL_RANK", 0),
        _variable(environment, "LOCAL_WORLD_SIZE", 1, least=1),
    )


def _variable(environment: Mapping[str, str], name: str, default: int, least: int = 0, below: int | None = None) -> int:
    text = environment.get(name, str(default))
    if not (text.isascii() and text.isdigit()) or int(text) < least or (below is not None and int(text) >= below):
        span = f"from {least} on" if below is None else f"from {least} to {below - 1}"
        raise UserError(
            f"the environment variable {name} is {text!r}, not a whole number {span}; start the processes with "
            f"torchrun, or unset {name}"
        )
    return int(text)
