"""Stages of tasks, and the processes of this machine that carry them out and end with this one, however it ends.

A stage has a fixed number of tasks, each of which writes files of fixed names, whole or not at all; so it matters to no
byte who carries a task out, beside which others, or how often. Which tasks are done is kept as datatrove keeps it, so
that a run may be begun here and ended by Slurm or Ray (`executors`).
"""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any, NoReturn

from cerebras_jais.errors import UserError

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h
_LOOKED_EVERY = 0.25  # seconds, where the kernel does not tell
_ENDED = (
    "a worker was ended from outside, as a system short of memory does; give fewer workers, then start the same "
    "command again: it goes on where it was"
)
_IMPORTED = ("cerebras_jais.data.recipe.runner", "fastokens", "h5py", "tokenizers", "xxhash")


# ---- stages ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """Tasks that may run beside one another, behind those of the stage before."""

    name: str
    tasks: int
    steps: tuple[Callable[[Any, int, int], Any], ...]
    """Each is given what the one before returns, the task, and their number, as a step of datatrove is."""
    logs: Path
    """Where it is kept which of its tasks are done, and what those that failed said."""


Progress = Callable[[Stage, int], None]
"""Is told a stage and how many of its tasks are done."""


def carry_out(stage: Stage, task: int) -> None:
    """Do a task of a stage and mark it as done.

    Raises UserError and OSError for what a user can mend, and leaves a line on them in the folder of the stage.
    """
    # The second stage of MinHash has a file of each shard open.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    failure = stage.logs / "failures" / f"{task:05d}"
    try:
        data: Any = None
        for step in deepcopy(stage.steps):  # those of datatrove count in themselves
            data = step(data, task, stage.tasks)
        if data is not None:
            deque(data, maxlen=0)
    except UserError as error:
        _write(failure, str(error))
        raise
    except OSError as error:
        _write(failure, f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
        raise
    failure.unlink(missing_ok=True)
    _write(stage.logs / "completions" / f"{task:05d}", "")


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text and text + "\n", encoding="utf-8", errors="backslashreplace")


def failure_of(folder: Path) -> str | None:
    """What the first task of a stage's folder that failed said, None where none did."""
    files = sorted((folder / "failures").glob("*")) if (folder / "failures").is_dir() else []
    return files[0].read_text(encoding="utf-8").strip() if files else None


def run_locally(stages: Sequence[Stage], number: int, progress: Progress, workers: Workers) -> None:
    """Carry stages out one behind the other, each task in one of `number` processes."""
    for stage in stages:
        left = [task for task in range(stage.tasks) if not (stage.logs / "completions" / f"{task:05d}").exists()]
        done = stage.tasks - len(left)
        progress(stage, done)
        for _ in workers.map(partial(carry_out, stage), left, number):
            done += 1
            progress(stage, done)


# ---- processes ------------------------------------------------------------------------------------------------------


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


class Workers:
    """Processes that carry out tasks; a context, at whose end they are gone.

    They are forked from a process of their own, spawned by the thread that first asks for one, which has imported what
    they need and does nothing else: a fork of this process would share locks and threads of libraries with it.
    """

    def __init__(self) -> None:
        self._server: tuple[BaseProcess, Connection] | None = None
        self._idle: list[Connection] = []
        self._busy: dict[Any, int] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *what: object) -> None:
        # A task's files are whole or hidden, so nothing is lost with a worker, and its own end takes time.
        if self._server is not None:
            process, channel = self._server
            channel.close()
            if not (self._idle or self._busy):
                process.kill()  # it may be importing yet
            process.join()
        for channel in (*self._idle, *self._busy):
            channel.close()
        self._server, self._idle, self._busy = None, [], {}

    def start(self) -> None:
        """Start the process that workers are forked from, so that it imports while this one does something else."""
        if self._server is None:
            here, there = Pipe()
            process = SpawnContext().Process(target=_fork_workers, args=(there, os.getpid()), daemon=True)
            process.start()
            there.close()
            self._server = process, here

    def map(self, function: Callable[[int], None], tasks: Iterable[int], number: int) -> Iterator[int]:
        """Yield each task, a number, when `function` is done with it; the order is that in which they are done.

        `number` tasks at a time have a process each; one at a time is done by this process.

        Raises what `function` raises if it is a UserError or an OSError, WorkerError for everything else and for a
        worker that was killed. Tasks in progress are then ended.
        """
        waiting = list(tasks)[::-1]
        if number == 1:
            while waiting:
                task = waiting.pop()
                function(task)
                yield task
            return
        work = pickle.dumps(function)
        try:
            while waiting or self._busy:
                while waiting and len(self._busy) < number:
                    self._give(work, waiting.pop())
                for ready in wait(list(self._busy)):
                    assert isinstance(ready, Connection)
                    done = self._busy.pop(ready)
                    self._idle.append(ready)
                    _take_answer(ready)
                    yield done
        except BaseException:
            self.__exit__()
            raise

    def _give(self, work: bytes, task: int) -> None:
        try:
            channel = self._idle.pop() if self._idle else self._fork()
            channel.send((work, task))
        except (BrokenPipeError, ConnectionResetError):
            raise WorkerError(_ENDED) from None
        self._busy[channel] = task

    def _fork(self) -> Connection:
        self.start()
        assert self._server is not None
        process, channel = self._server
        here, there = Pipe()
        send_handle(channel, there.fileno(), process.pid)
        there.close()
        return here


def _import(names: Iterable[str]) -> None:
    """Import modules; of one that is missing or broken, whichever way it says so, the task that needs it tells."""
    for name in names:
        with suppress(Exception):
            import_module(name)


def _fork_workers(channel: Connection, parent: int) -> None:
    """Fork a worker for each channel that comes by a channel, and end them when this one is closed."""
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends its workers
    _import(_IMPORTED)
    me, workers = os.getpid(), []
    with suppress(EOFError, ConnectionResetError):
        while True:
            handle = recv_handle(channel)
            if not (worker := os.fork()):
                channel.close()
                _serve(Connection(handle), me)
            os.close(handle)
            workers.append(worker)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    for worker in workers:
        os.waitpid(worker, 0)
    os._exit(0)  # nothing is left to do, and the end of an interpreter takes a while


def _serve(channel: Connection, parent: int) -> NoReturn:
    end_with_parent(parent)
    while True:
        try:
            work, task = channel.recv()
        except EOFError:
            os._exit(0)
        error: BaseException | None = None
        try:
            pickle.loads(work)(task)
        except (UserError, OSError) as refused:
            error = refused
        except BaseException as unforeseen:
            error = WorkerError("".join(traceback.format_exception(unforeseen)))
        channel.send(error)


def _take_answer(channel: Connection) -> None:
    try:
        error = channel.recv()
    except (EOFError, ConnectionResetError):
        raise WorkerError(_ENDED) from None
    if isinstance(error, WorkerError):
        raise RuntimeError(f"in a worker:\n{error}")
    if error is not None:
        raise error
