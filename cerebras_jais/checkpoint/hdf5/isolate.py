"""Ask what stands in an HDF5 file without letting the HDF5 library into this process.

The library parses files in C and trusts them; see hdf5_inspector.py, the program that faces them instead. It is started
at the first question or ahead of it (a few tenths of a second, most of it importing h5py) and makes a fork of itself
for each file (a few milliseconds), until this process ends. A fork of this process itself would not do: h5py, BLAS and
their like are in the middle of something when other threads run, and a process of a hundred GB takes seconds to fork.
"""

import atexit
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cerebras_jais.checkpoint.errors import CheckpointError, as_checkpoint_error

_PROGRAM = Path(__file__).with_name("describe.py")
_SIZES = struct.Struct("<QQ")  # of an answer, as hdf5_inspector.SIZES, whose import would bring h5py with it
# Reading the structure of 6,000 tensors (20 MB of file) takes 3 seconds; nothing honest comes near these limits.
_PROCESSOR_SECONDS = 2
_PROCESSOR_SECONDS_PER_BYTE = 1 / (1 << 20)
_MOST_PROCESSOR_SECONDS = 120
# For a file that lies on a slow network; damage costs processor time, which is limited more tightly.
_SECONDS = 300
_MEMORY = 1 << 30
_LONGEST_ANSWER = 1 << 30


class Inspection:
    """The questions about one open file; several threads may ask, one after the other."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._channel: socket.socket | None = None
        self._process = 0
        self._lock = threading.Lock()

    def ask(self, **question: Any) -> tuple[dict[str, Any], bytes]:
        """Return the facts and the numbers that answer a question.

        Without a question they are those of `hdf5_inspector.structure`, with `chunks_of=NAME, most=COUNT` those of its
        `chunk_table`. Raises CheckpointError when HDF5 refuses the file, crashes on it, or takes more than 1 GiB of
        memory or more time than a sound file of its size can take.
        """
        size = os.fstat(self._descriptor).st_size
        seconds = int(min(_PROCESSOR_SECONDS + size * _PROCESSOR_SECONDS_PER_BYTE, _MOST_PROCESSOR_SECONDS))
        limits = {"processor_seconds": seconds, "seconds": _SECONDS, "memory": _MEMORY}
        with self._lock:
            try:
                answer = self._exchange(json.dumps(limits | question).encode() + b"\n")
            except BaseException:
                self._drop_channel()
                raise
            if answer is None:
                self._drop_channel()  # the next question, about another part of the file, is for a new fork
                raise CheckpointError(
                    f"{self._path}: HDF5 crashed on it or came to no end within {seconds} seconds and 1 GiB of memory; "
                    "the file is damaged"
                )
        facts, numbers = json.loads(answer[0]), answer[1]
        if "error" in facts:
            raise CheckpointError(
                f"{self._path}: HDF5 cannot read it (a damaged or incomplete copy?): {facts['error']}"
            )
        return facts, numbers

    def close(self) -> None:
        """Let the fork end that answers; a later question starts another."""
        with self._lock:
            self._drop_channel()

    def _exchange(self, question: bytes) -> tuple[bytes, bytes] | None:
        """Send one question and receive the answer; None when the fork that had to give it was ended."""
        if self._channel is not None and self._process != os.getpid():
            self._drop_channel()  # it belongs to the process that this one was forked from
        if self._channel is None:
            self._channel, self._process = _new_channel(self._path, self._descriptor), os.getpid()
        try:
            self._channel.sendall(question)
            sizes = _receive(self._channel, _SIZES.size)
            if sizes is None:
                return None
            text_size, numbers_size = _SIZES.unpack(sizes)
            if text_size + numbers_size > _LONGEST_ANSWER:
                raise CheckpointError(f"{self._path}: has more structure than is read, above 1 GiB")
            text = _receive(self._channel, text_size)
            numbers = _receive(self._channel, numbers_size)
        except TimeoutError as error:
            raise CheckpointError(f"{self._path}: could not be read in {_SECONDS} s; is the disk there?") from error
        except (BrokenPipeError, ConnectionResetError):
            return None
        return None if text is None or numbers is None else (text, numbers)

    def _drop_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _receive(channel: socket.socket, size: int) -> bytes | None:
    """Receive exactly `size` bytes; None when they do not come because the other side has ended."""
    pieces = bytearray()
    while len(pieces) < size:
        piece = channel.recv(min(size - len(pieces), 1 << 20))
        if not piece:
            return None
        pieces += piece
    return bytes(pieces)


# ---- the inspector --------------------------------------------------------------------------------------------------


@dataclass
class _Inspector:
    process: subprocess.Popen
    control: socket.socket
    ready: bool = False

    def is_running(self) -> bool:
        try:
            if not self.ready:  # its first byte says so, or that it will never be
                self.ready = bool(self.control.recv(1))
                return self.ready
            return bool(self.control.recv(1, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False


_inspector: _Inspector | None = None
_inspector_lock = threading.Lock()


def _new_channel(path: Path, descriptor: int) -> socket.socket:
    """Have a fork made for a file and return the channel to it."""
    with _inspector_lock:
        inspector = _running_inspector(path)
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(inspector.control, [b"?"], [descriptor, theirs.fileno()])
        ours.settimeout(_SECONDS + 10)  # the fork ends by itself before that, unless the system cannot end it
        return ours


def start() -> None:
    """Start the inspector if there is none, and do not wait for it: it loads while this process does something else."""
    with _inspector_lock, contextlib.suppress(OSError):  # which the first question will meet again, and tell
        if _inspector is None:
            _new_inspector()


def _running_inspector(path: Path) -> _Inspector:
    if _inspector is not None and _inspector.is_running():
        return _inspector
    _stop()
    with as_checkpoint_error(path, f"starting {sys.executable} to look into it"):
        inspector = _new_inspector()
    if not inspector.is_running():
        _stop()
        raise CheckpointError(f"{path}: cannot be looked into: {sys.executable} does not import h5py in a new process")
    return inspector


def _new_inspector() -> _Inspector:
    global _inspector
    ours, theirs = socket.socketpair()
    # What this process can import the other must, and nothing from the program's own directory, where files have names
    # of other modules. It computes nothing, so one BLAS thread is enough, and it unpacks nothing.
    paths = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::"}
    with contextlib.ExitStack() as failed, theirs:
        failed.callback(ours.close)
        process = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        failed.pop_all()
    _inspector = _Inspector(process, ours)
    return _inspector


def _stop() -> None:
    global _inspector
    if _inspector is not None:
        _inspector.control.close()
        _inspector.process.kill()  # it has nothing to lose
        _inspector.process.wait()
        _inspector = None


def _forget() -> None:
    """In a fork of this process: the inspector belongs to the parent, and another thread may have held the lock."""
    global _inspector, _inspector_lock
    _inspector_lock = threading.Lock()
    if _inspector is not None:
        _inspector.control.close()
        _inspector.process.returncode = 0  # not a child of this process, so not to be waited for
        _inspector = None


atexit.register(_stop)
os.register_at_fork(after_in_child=_forget)
