"""The one thread that has the model, and the bounded queue of those who wait for it."""

from __future__ import annotations

import sys
import threading
import traceback
from collections import deque
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from cerebras_jais.errors import UserError
from cerebras_jais.serve.http11 import HttpError

if TYPE_CHECKING:
    from cerebras_jais.chat.engine import Engine, Piece
    from cerebras_jais.chat.sampling import Sampling
    from cerebras_jais.serve.bodies import Ids

_RETRY = {"Retry-After": "2"}


@dataclass(frozen=True)
class Written:
    """A part of the answer to the prompt of this number."""

    index: int
    piece: Piece


@dataclass(frozen=True, eq=False)
class Job:
    """Prompts that wait for their answers, which one connection reads."""

    prompts: tuple[Ids, ...]
    sampling: Sampling
    cancelled: threading.Event = field(default_factory=threading.Event)
    results: SimpleQueue[Written | HttpError | None] = field(default_factory=SimpleQueue)

    def ready(self, seconds: float) -> list[Written | HttpError | None]:
        """What has been written since the last call, waited for up to some seconds; None is the end."""
        found: list[Written | HttpError | None] = []
        try:
            found.append(self.results.get(timeout=seconds))
            while True:
                found.append(self.results.get_nowait())
        except Empty:
            return found


class Worker:
    """Answers jobs in the order in which they come.

    Args:
        engine: used by this object's thread alone.
        most_waiting: jobs that may wait beside the one under way.
    """

    def __init__(self, engine: Engine, most_waiting: int) -> None:
        self._engine, self._most = engine, most_waiting
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def stopping(self) -> bool:
        """Whether no more jobs are taken."""
        return self._stopping

    def submit(self, job: Job) -> None:
        """Take a job; raises HttpError 503 where the queue is full, or no more are taken."""
        with self._changed:
            if self._stopping:
                raise _ending()
            if len(self._waiting) >= self._most:
                raise HttpError(
                    503, f"{self._most} requests wait already; try again later", code="overloaded", fields=_RETRY
                )
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Let a job go, whether it waits or is under way."""
        job.cancelled.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def stop(self) -> None:
        """Take no more jobs; those that wait get HttpError 503, the one under way ends."""
        with self._changed:
            self._stopping = True
            while self._waiting:
                self._waiting.popleft().results.put(_ending())
            self._changed.notify()

    def end(self, seconds: float) -> None:
        """End the job under way too, and the thread; waits some seconds for that."""
        with self._changed:
            if self._running is not None:
                self._running.cancelled.set()
        self._thread.join(seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._running = None
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return
                job = self._running = self._waiting.popleft()
            job.results.put(self._answer(job))
            del job  # its answer is not kept until the next one

    def _answer(self, job: Job) -> HttpError | None:
        """Write the answers of a job; what went wrong."""
        try:
            for index, prompt in enumerate(job.prompts):
                for piece in self._engine.stream(prompt, job.sampling, job.cancelled.is_set):
                    if piece.finish_reason != "cancelled":
                        job.results.put(Written(index, piece))
                if job.cancelled.is_set():
                    return _ending()
        except UserError as error:
            return HttpError(400, str(error))
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            return HttpError(500, f"the model failed ({type(error).__name__}); the server's own output says more")
        return None


def _ending() -> HttpError:
    return HttpError(503, "the server is ending; ask again when it is back", code="stopping", fields=_RETRY)
