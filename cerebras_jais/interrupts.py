"""The signals that end a program, and work that leaves nothing behind when one comes."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Seconds within which one end may be said twice: a terminal that closes sends SIGHUP by two ways, and timeout(1) sends
# SIGTERM to the process and to its group.
_REPEATS = 1.0
_came: list[tuple[int, float]] = []  # the signals that unwound the work, and when
_delayed: list[int] | None = None  # those that wait for the end of `uninterrupted`, within one


def unwind_on_signals() -> None:
    """Have SIGINT, SIGTERM and SIGHUP raise in the main thread: KeyboardInterrupt, or SystemExit with 128 + the number.

    So nothing half made is left. One that comes more than a second after the first ends the process at once. A signal
    that whoever started the process had it ignore (nohup) stays ignored.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _unwind)


def interrupted_by() -> int | None:
    """The exit status of the signal that unwinds the work; None where none has come."""
    return 128 + _came[0][0] if _came else None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A block, which must be short, at whose end a signal that comes within it raises.

    Outside the main thread, where Python handles no signals, it is a block like any other.
    """
    global _delayed
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outermost = _delayed is None
    _delayed = [] if _delayed is None else _delayed
    try:
        yield
    finally:
        if outermost:
            waiting, _delayed = _delayed, None
            for number in waiting[:1]:
                _unwind(number, None)


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder that is gone after the block, whatever ends it."""
    path = None
    try:
        with uninterrupted():
            path = tempfile.mkdtemp(prefix=prefix)
        yield Path(path)
    finally:
        if path is not None:
            with uninterrupted():
                shutil.rmtree(path, ignore_errors=True)


def _unwind(number: int, frame: Any) -> None:
    if _delayed is not None:
        _delayed.append(number)
        return
    now = time.monotonic()
    if _came and now - _came[0][1] < _REPEATS:
        return
    if _came:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _came.append((number, now))
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)
