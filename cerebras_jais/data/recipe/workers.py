"""Processes that work for this one and end with it, however it ends."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from cerebras_jais.errors import UserError

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h
_LOOKED_EVERY = 0.25  # seconds, where the kernel does not tell


class WorkerError(UserError):
    """A worker ended without an answer, or with an error that it did not foresee."""


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, the process that started it, ends; at once if it has."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOKED_EVERY)
    os._exit(1)


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    channel: Connection


class Workers:
    """A number of processes that carry out tasks; a context, at whose end they are gone.

    They are started by `spawn`, from the thread that enters the context: a forked one would share locks and threads of
    libraries with this process. One worker means this process itself.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._idle: list[_Worker] = []
        self._busy: dict[Any, tuple[_Worker, int]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *what: object) -> None:
        # A task's files are whole or hidden, so nothing is lost with a worker, and its own end takes time.
        for worker in (workers := [*self._idle, *(worker for worker, _ in self._busy.values())]):
            worker.process.kill()
            worker.channel.close()
        for worker in workers:
            worker.process.join()
        self._idle, self._busy = [], {}

    def map(self, function: Callable[[int], None], tasks: Iterable[int]) -> Iterator[int]:
        """Yield each task, a number, when `function` is done with it; the order is that in which they are done.

        Raises what `function` raises if it is a UserError or an OSError, WorkerError for everything else and for a
        worker that was killed. Tasks in progress are then ended.
        """
        waiting = list(tasks)[::-1]
        if self._number == 1:
            while waiting:
                task = waiting.pop()
                function(task)
                yield task
            return
        work = pickle.dumps(function)
        try:
            while waiting or self._busy:
                while waiting and len(self._busy) < self._number:
                    self._give(work, waiting.pop())
                for ready in wait(list(self._busy)):
                    worker, done = self._busy.pop(ready)
                    self._idle.append(worker)
                    _answer_of(worker)
                    yield done
        except BaseException:
            self.__exit__()
            raise

    def _give(self, work: bytes, task: int) -> None:
        worker = self._idle.pop() if self._idle else _start()
        worker.channel.send((work, task))
        self._busy[worker.channel] = (worker, task)


def _start() -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, os.getpid()), daemon=True)
    process.start()
    there.close()
    return _Worker(process, here)


def _serve(channel: Connection, parent: int) -> None:
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends its workers
    while True:
        try:
            work, task = channel.recv()
        except EOFError:
            return
        error: BaseException | None = None
        try:
            pickle.loads(work)(task)
        except (UserError, OSError) as refused:
            error = refused
        except BaseException as unforeseen:
            error = WorkerError("".join(traceback.format_exception(unforeseen)))
        channel.send(error)


def _answer_of(worker: _Worker) -> None:
    try:
        error = worker.channel.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        raise WorkerError(
            f"a worker was ended from outside (exit status {worker.process.exitcode}), as a system short of memory "
            "does; give fewer workers, then start the same command again: it goes on where it was"
        ) from None
    if isinstance(error, WorkerError):
        raise RuntimeError(f"in a worker:\n{error}")
    if error is not None:
        raise error
