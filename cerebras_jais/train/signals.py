"""Signals that stop a run: after the first it saves the step that it has reached; the second ends it at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

from cerebras_jais.errors import UserError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Seconds within which one signal may come twice: a terminal that closes sends SIGHUP by two ways, and torchrun sends
# on to its processes what they have had from the terminal already.
_HANG_UP_REPEATS, _LAUNCHER_REPEATS = 1.0, 5.0


class Stopped(UserError):
    """A run that a signal ended; `status` is the exit status that shells expect, 128 and the signal's number."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum
        self.status = 128 + signum


def name_of(signum: int) -> str:
    """For people."""
    return "Ctrl-C (SIGINT)" if signum == signal.SIGINT else signal.Signals(signum).name


def ending_at_once() -> AbstractContextManager[None]:
    """A block in which the signals end the process as if Python were not there.

    For waiting in a library in C, where there is nothing to save and a handler of Python's would not be called.
    """
    return _handled_by(signal.SIG_DFL)


@contextmanager
def _handled_by(handler: Any) -> Iterator[None]:
    """A block in which the signals have a handler, but those that the process was told to ignore (nohup).

    Outside the main thread, where Python takes no signals, nothing is changed.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for signum in _SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                before[signum] = signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, signal.SIG_DFL if earlier is None else earlier)


class StopRequest:
    """A context in which SIGINT, SIGTERM and SIGHUP are noted instead of ending the process.

    Until `wait` is called there is nothing to save, and the first one raises Stopped where it comes; afterwards the
    first one is kept in `signum` for the loop to look at, and the second raises Stopped.

    Args:
        several: whether the run has several processes.
    """

    def __init__(self, several: bool = False):
        self.signum: int | None = None
        self.saved = "nothing was trained"  # what is reported as kept after a second signal
        self._several, self._waits, self._when = several, False, 0.0
        self._handled = _handled_by(self._receive)
        self._raised: Stopped | None = None

    def __enter__(self) -> StopRequest:
        self._handled.__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._handled.__exit__(None, None, None)
        if self._raised is not None and not isinstance(error, Stopped):
            raise self._raised from error  # a library in C that calls Python may have put its own error in its place

    def wait(self) -> None:
        """From now on the first signal waits for the loop."""
        self._waits = True
        if self.signum is not None:
            raise Stopped(f"stopped by {name_of(self.signum)}; {self.saved}", self.signum)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._when = signum, now
            if self._waits:
                return
        else:
            window = _LAUNCHER_REPEATS if self._several else _HANG_UP_REPEATS if signum == signal.SIGHUP else 0.0
            if now - self._when < window:
                return
        self._raised = Stopped(f"stopped at once by {name_of(signum)}; {self.saved}", signum)
        raise self._raised
