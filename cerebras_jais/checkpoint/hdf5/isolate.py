"""Describe HDF5 files without loading the HDF5 library into this process.

The library parses files in C and trusts them, so `describe` runs in one child process for all files of a command, with
limits on its memory and time: damage cannot crash, block or bloat this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cerebras_jais.files import Identity, StrPath, identity_of

_PROGRAM = Path(__file__).with_name("describe.py")
_SIZES = struct.Struct("<QQ")  # describe.SIZES, whose import would bring h5py with it
# Reading the structure of 6,000 tensors (20 MB of file) takes 3 seconds; valid files stay far below these limits.
_PROCESSOR_SECONDS = 2
_PROCESSOR_SECONDS_PER_BYTE = 1 / (1 << 20)
_MOST_PROCESSOR_SECONDS = 120
# For a file on a slow network; damage costs processor time, which is limited more tightly.
_SECONDS = 300
_MEMORY = 1 << 30
_LONGEST_ANSWER = 1 << 30


class _EndedError(ValueError):
    """The child has no more answers to give."""


@dataclass(frozen=True)
class Description:
    """The child's description of a file; `dataset.headers_of` validates it."""

    identity: Identity
    """Of the file that was described."""
    attributes: Mapping[str, Any]
    """Of the root: name -> [value] or {"error": reason}."""
    datasets: Mapping[str, Mapping[str, Any]]
    """Name -> facts, as `describe.header` gives them, or {"error": reason}."""
    tables: bytes
    """The chunk tables of the datasets, one after another."""


_CLOCK_STEP = 50_000_000  # ns; Linux has steps of 1 to 10 ms
_own: dict[str, Identity] = {}


def note_own(path: StrPath) -> None:
    """Note that this process has written a whole file: while that is unchanged, it is described without a child.

    The file's time goes back by a moment, because clocks of file systems move in steps: a change within the same step
    would not show.
    """
    found = os.stat(path)
    earlier = found.st_mtime_ns - _CLOCK_STEP
    with contextlib.suppress(OSError):  # a file system without such times: the file is like any other
        os.utime(path, ns=(found.st_atime_ns, earlier))
    _own[os.path.abspath(path)] = (found.st_size, earlier)


def describe_own(path: StrPath, descriptor: int) -> Description | None:
    """Describe a file that this process itself has written, open for reading; None for any other.

    None too where the library refuses the file: something else was written to it, and the child finds what is wrong.
    """
    identity = identity_of(descriptor)
    if _own.get(os.path.abspath(path)) != identity:
        return None
    import h5py

    from cerebras_jais.checkpoint.hdf5.describe import OpenFile, describe

    try:
        with h5py.File(OpenFile(descriptor), "r") as file:
            facts, tables = describe(file, identity[0], None)
    except (OSError, RuntimeError, KeyError, ValueError):
        return None
    facts = json.loads(json.dumps(facts))
    return Description(identity, facts["attributes"], facts["datasets"], b"".join(tables))


class Descriptions:
    """Descriptions of files, made by one child process, or by another from the file on that ended it.

    Several threads may ask; a description is kept for the next who asks.
    """

    def __init__(self, files: Sequence[StrPath], datasets: Sequence[str] | None = None) -> None:
        """Start the child, and do not wait for it.

        Args:
            files: what to describe.
            datasets: the datasets to look at; None for those of a checkpoint, and its attributes.
        """
        self._child: subprocess.Popen[bytes] | None = None
        self._waiting = list(dict.fromkeys(os.path.abspath(file) for file in files))
        self._datasets = datasets
        self._known: dict[str, Description | ValueError] = {}
        self._lock = threading.Lock()
        self._is_ready = False
        self._start()

    def _start(self) -> None:
        """Start a child for the files that are left, unless there is none."""
        if not self._waiting:
            return
        self._is_ready = False
        question = {
            "files": self._waiting,
            "datasets": self._datasets,
            "memory": _MEMORY,
            "seconds": _SECONDS,
            "processor_seconds": (_PROCESSOR_SECONDS, _PROCESSOR_SECONDS_PER_BYTE, _MOST_PROCESSOR_SECONDS),
        }
        # The child imports what this process can import, and nothing from the program's own directory (-P), where files
        # have names of other modules. It computes nothing, so one BLAS thread is enough, and it unpacks nothing.
        paths = os.pathsep.join(filter(None, sys.path))
        environment = os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::"}
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-S", str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process
            )
            assert self._child.stdin is not None
            with self._child.stdin as pipe:
                pipe.write(json.dumps(question).encode())
        except BrokenPipeError:
            pass  # it ended before it read; waiting for the first answer reports that
        except OSError as error:
            reason = ValueError(f"cannot be described: {sys.executable}: {error.strerror or error}")
            self._known |= dict.fromkeys(self._waiting, reason)

    def of(self, file: StrPath) -> Description:
        """Return the description of one of the files; raises ValueError, with the reason, for one that is damaged."""
        path = os.path.abspath(file)
        with self._lock:
            while path not in self._known:
                waiting = self._waiting.pop(0)  # a file that was not named is a mistake of the caller
                self._known[waiting] = self._next_answer()
            answer = self._known[path]
        if isinstance(answer, ValueError):
            raise answer
        return answer

    def __contains__(self, file: StrPath) -> bool:
        path = os.path.abspath(file)
        return path in self._known or path in self._waiting

    def _next_answer(self) -> Description | ValueError:
        """Receive the child's description of the next file."""
        try:
            if not self._is_ready and not self._receive(1):
                raise _EndedError(f"cannot be described: {sys.executable} does not import h5py in a new process")
            self._is_ready = True
            sizes = self._receive(_SIZES.size)
            text_size, tables_size = _SIZES.unpack(sizes) if sizes else (0, 0)
            if text_size + tables_size > _LONGEST_ANSWER:
                raise _EndedError("has more structure than is read, above 1 GiB")
            text, tables = self._receive(text_size), self._receive(tables_size)
            if not text or tables is None:
                raise _EndedError("reading it crashed or timed out; the file is damaged")
            facts = json.loads(text)
            if "error" in facts:
                return ValueError(f"HDF5 cannot read it (a damaged or incomplete copy?): {facts['error']}")
            size, modified = facts["identity"]
            return Description((size, modified), facts["attributes"], facts["datasets"], tables)
        except (LookupError, TypeError, json.JSONDecodeError):
            return ValueError("reading it crashed or timed out; the file is damaged")
        except _EndedError as error:
            self.close()
            self._start()
            return error

    def _receive(self, size: int) -> bytes | None:
        """Receive exactly `size` bytes; None when they do not come because the child has ended."""
        assert self._child is not None and self._child.stdout is not None
        pipe = self._child.stdout.fileno()
        deadline = time.monotonic() + _SECONDS + 10  # the child ends by itself before that, unless the system hangs
        pieces = bytearray()
        with selectors.DefaultSelector() as ready:
            ready.register(pipe, selectors.EVENT_READ)
            while len(pieces) < size:
                if not ready.select(max(0.0, deadline - time.monotonic())):
                    raise _EndedError(f"reading it took longer than {_SECONDS} s; check the disk or network")
                piece = os.read(pipe, min(size - len(pieces), 1 << 20))
                if not piece:
                    return None
                pieces += piece
        return bytes(pieces)

    def close(self) -> None:
        """End the child, if it still runs."""
        if self._child is not None:
            self._child.kill()
            assert self._child.stdout is not None
            self._child.stdout.close()
            self._child.wait()
            self._child = None

    def __enter__(self) -> Descriptions:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    __del__ = close
