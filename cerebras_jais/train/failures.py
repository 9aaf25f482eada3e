"""How a run of several processes ends where something is wrong in one of them: with one line, of the first process.

A process that cannot go on leaves its line in the store of the launcher and ends. The connections that break with it
end the others, and the first one finds the line in the store and says it. The others say nothing. torchrun ends all as
soon as one has ended, so a process whose error the first one may have, too, leaves it time to speak. Before the
processes are together there is no store: an error that the first one does not have is then said after that time.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cerebras_jais.commandline import line_of, say
from cerebras_jais.errors import TERMINATED, UNFORESEEN, UserError
from cerebras_jais.machine import Place, place_of_process
from cerebras_jais.train.signals import Stopped

_KEY = "cerebras_jais/failure"
# What gloo's errors say where a connection has ended or never came to be.
_CONNECTION = re.compile(r"gloo|connection (closed|reset)|broken pipe|socket", re.IGNORECASE)
# Seconds: how long the first process waits for the line of another, and others for the end of the first, which begins
# its work up to as much later as its imports take longer.
_FOR_A_LINE, _FOR_THE_FIRST, _FOR_A_SLOW_FIRST = 2.0, 3.0, 30.0


class ProcessError(UserError):
    """Another process of the run has failed or died."""


class _Silent(Exception):
    """The end of a process that is not the first, with an exit status and the seconds until then."""

    def __init__(self, status: int, seconds: float):
        super().__init__(status, seconds)
        self.status, self.seconds = status, seconds


def explained(error: BaseException, store: Any, rank: int, world_size: int) -> BaseException:
    """What a process raises for an error: its own, or that of the process that broke the connection.

    Args:
        error: of this process.
        store: of the group, a torch.distributed.Store.
        rank: of this process.
        world_size: how many there are.
    """
    from cerebras_jais.launch.plan import NothingLeft

    if not isinstance(error, Exception) or isinstance(error, NothingLeft):  # that all processes find alike
        return error
    lost = _is_lost(error)
    if rank == 0:
        line = _line_of_another(store, _FOR_A_LINE if lost else 0.0) if lost or isinstance(error, Stopped) else None
        if line is not None:
            return ProcessError(line)
        if not lost:
            return error
        return ProcessError(
            "another process of the run has ended; if it was killed for memory, take smaller batches, "
            "--activation-checkpointing or more processes; the same command continues from the last checkpoint"
        )
    if lost:
        return _Silent(ProcessError.status, 0.0)
    line, status = line_of("cerebras-jais", error)
    if not isinstance(error, Stopped):
        store.set(_KEY, f"process {rank} of {world_size}: {line}")
    return _Silent(status, _FOR_THE_FIRST)


def _is_lost(error: Exception) -> bool:
    """Whether an error is that of a broken connection."""
    import torch

    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.distributed.DistError) or _CONNECTION.search(str(error)) is not None


def _line_of_another(store: Any, seconds: float) -> str | None:
    end = time.monotonic() + seconds
    while not store.check([_KEY]):
        if time.monotonic() >= end:
            return None
        time.sleep(0.05)
    return str(store.get(_KEY).decode())


@contextmanager
def first_process_speaks() -> Iterator[None]:
    """A block whose errors the first of several processes lets out; another one leaves it time for the same one."""
    try:
        place = place_of_process()
    except UserError:  # `DistributedContext` says it
        place = Place()
    if place.is_first:
        yield
        return
    try:
        yield
    except Exception as error:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))
        silent = (
            error if isinstance(error, _Silent) else _Silent(getattr(error, "status", UNFORESEEN), _FOR_A_SLOW_FIRST)
        )
        time.sleep(silent.seconds)
        if silent is not error:  # one that the first process had, too, would have ended this one by now
            say(f"error: process {place.rank} of {place.processes}: {line_of('cerebras-jais', error)[0]}")
        os._exit(silent.status)  # a group whose connections are broken can keep Python from ending
