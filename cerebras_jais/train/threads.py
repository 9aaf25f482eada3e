"""The number of threads that compute, and how they wait for each other; OpenMP reads both when PyTorch is loaded.

By default a thread that waits keeps its processor busy. Where other work is on the machine, the thread it waits for is
the one without a processor then: two threads made 1.9 steps in the time in which one made 14.2, and 13.1 where waiting
threads give their processor away (GNU OpenMP, two processors, a load of 13).
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

# Any of these is the user's own word on waiting: of OpenMP, of GNU's and of Intel's and LLVM's library.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_GROUP = Path("/sys/fs/cgroup")


def settle_threads(environment: MutableMapping[str, str] = os.environ) -> str | None:
    """Set OpenMP's variables where they are not set; a line that says which, None where nothing was set.

    Threads wait without a processor, and are no more than the processors that the process may use, of which a container
    may have fewer than the machine. Once PyTorch is loaded it is too late, and nothing is changed.
    """
    if "torch" in sys.modules:
        return None
    made = {}
    if not any(name in environment for name in _WAITING):
        made["OMP_WAIT_POLICY"] = "PASSIVE"
    seen, allowed = len(os.sched_getaffinity(0)), processors_allowed()
    if "OMP_NUM_THREADS" not in environment and allowed < seen:
        made["OMP_NUM_THREADS"] = str(allowed)
    environment.update(made)
    settings = ", ".join(f"{name}={value}" for name, value in made.items())
    return f"threads: {settings}; set these variables to override" if made else None


def processors_allowed(group: Path = _GROUP) -> int:
    """The processors that this process may use, by its affinity and the quota of its control group."""
    seen = len(os.sched_getaffinity(0))
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        share = math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # "max", or no control groups
        return seen
    return min(seen, share) if share > 0 else seen
