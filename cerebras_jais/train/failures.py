"""How a run of several processes ends where something is wrong in one of them: with one line, of the first process.

A process that cannot go on leaves its line in the store of the launcher and closes its connections, so that the others
are not left waiting. The first one finds the line there and says it. The others say nothing and wait until the launcher
ends them, since torchrun ends all as soon as one has ended, the first one before it has spoken.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cerebras_jais.commandline import line_of
from cerebras_jais.errors import REFUSED, TERMINATED, UserError

_KEY = "cerebras_jais/failure"
# What gloo's errors say where a connection has ended or never came to be.
_CONNECTION = re.compile(r"gloo|connection (closed|reset)|broken pipe|socket", re.IGNORECASE)
# Seconds that the first process waits for the line of another, and the others for the end of the first.
_FOR_A_LINE, _FOR_THE_FIRST = 2.0, 30.0


class ProcessError(UserError):
    """Another process of the run has failed or died."""


def explained(error: BaseException, store: Any, rank: int, world_size: int) -> BaseException:
    """What a process raises for an error: its own, or that of the process that broke the connection.

    Args:
        error: of this process.
        store: of the group, a torch.distributed.Store.
        rank: of this process.
        world_size: how many there are.
    """
    import torch

    lost = isinstance(error, RuntimeError) and (
        isinstance(error, torch.distributed.DistError) or _CONNECTION.search(str(error)) is not None
    )
    if not lost:
        if rank and isinstance(error, Exception):
            store.set(_KEY, f"process {rank} of {world_size}: {line_of('cerebras-jais', error)[0]}")
        return error
    line = _line_of_another(store) if rank == 0 else None
    return ProcessError(
        line
        or "another process of the run has ended; if it was killed for memory use smaller batches, "
        "--activation-checkpointing or more processes; the same command continues from the last checkpoint"
    )


def _line_of_another(store: Any) -> str | None:
    end = time.monotonic() + _FOR_A_LINE
    while not store.check([_KEY]):
        if time.monotonic() > end:
            return None
        time.sleep(0.05)
    return str(store.get(_KEY).decode())


@contextmanager
def first_process_speaks() -> Iterator[None]:
    """A block whose errors only the first of several processes lets out; another one ends without a word."""
    if os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    try:
        yield
    except Exception as error:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))
        time.sleep(_FOR_THE_FIRST)
        raise SystemExit(getattr(error, "status", REFUSED)) from error
