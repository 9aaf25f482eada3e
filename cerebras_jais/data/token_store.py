"""Examples on the disk while they wait to be packed, so that their number is not bounded by memory."""

from __future__ import annotations

import os
from array import array
from pathlib import Path

import numpy as np

from cerebras_jais.ranges import VOCABULARY

_TRAINED = 1 << 31  # the bit of a stored token that is trained
_WRITTEN_AT_ONCE = 4 * 2**20  # bytes
assert VOCABULARY.high < _TRAINED


class TokenStore:
    """A file of examples in the order in which they were added: four bytes a token on the disk, eight an example here.

    A token is its id, uint32, with the highest bit set where it is trained. Used as the file is made, by one process;
    `read` may be called once `close` has been.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ends = array("q")
        self._tokens = 0
        self._out = file.open("wb", buffering=_WRITTEN_AT_ONCE)
        self._descriptor = -1

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 [n]."""
        return np.diff(np.frombuffer(self._ends, dtype=np.int64), prepend=0) if len(self) else np.empty(0, np.int64)

    def append(self, ids: np.ndarray, trained: np.ndarray) -> None:
        """Add an example: its token ids, int32 [n], and which of them are trained, bool [n]."""
        stored = ids.astype("<u4")
        stored[trained] |= _TRAINED
        self._out.write(stored.data)
        self._tokens += len(ids)
        self._ends.append(self._tokens)

    def close(self) -> None:
        """Write what waits to be written; the store is complete."""
        self._out.close()

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of an example, int32 [n], and which of them are trained, bool [n]."""
        if self._descriptor < 0:
            self._descriptor = os.open(self._file, os.O_RDONLY)
        start = self._ends[index - 1] if index else 0
        size = 4 * (self._ends[index] - start)
        stored = np.frombuffer(os.pread(self._descriptor, size, 4 * start), dtype="<u4")
        assert stored.nbytes == size, f"{self._file} was cut while it was in use"
        return (stored & (_TRAINED - 1)).astype(np.int32), stored >= _TRAINED

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
