"""Fill the packed tensors of a checkpoint that `create_empty_checkpoint` made: by rectangles, from several threads."""

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cerebras_jais.checkpoint.errors import CheckpointError, as_checkpoint_error
from cerebras_jais.checkpoint.hdf5.lz4 import pack_chunk
from cerebras_jais.checkpoint.hdf5.write import writing

if TYPE_CHECKING:
    import h5py

TILE = 256
"""Rows and columns of a chunk of a matrix."""
_VECTOR_CHUNK = 65_536

Packing = Callable[[Callable[[np.ndarray], bytes], Iterable[np.ndarray]], Iterable[bytes]]


def chunk_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the chunk of a packed tensor: tiles of 256 x 256 of its last two axes, 65,536 elements of a vector."""
    tile = (_VECTOR_CHUNK,) if len(shape) == 1 else (*(1 for _ in shape[2:]), TILE, TILE)
    return tuple(min(size, most) for size, most in zip(shape, tile, strict=True))


class PackedTensorWriter:
    """A checkpoint whose packed tensors are being filled."""

    def __init__(self, path: Path, file: "h5py.File", packing: Packing) -> None:
        self._path = path
        self._file = file
        self._packing = packing
        self._lock = threading.Lock()
        self._datasets: dict[str, h5py.Dataset] = {}

    def write(self, key: str, at: tuple[int, ...], values: np.ndarray) -> None:
        """Write the rectangle `values` of the tensor `key`, its first corner at `at`.

        Each entry of `at` is a multiple of the chunk's size on its axis, and the rectangle ends at such a multiple or
        at the edge of the tensor; every part of a tensor is to be written once. `values` has the tensor's dtype (or its
        bit pattern, int16 for bfloat16). Several threads may write at once: packing is done in the calling thread, and
        only the writing itself waits for the others. Raises CheckpointError for a key, place or type that does not fit.
        """
        with as_checkpoint_error(self._path, f"writing tensor '{key}'"):
            dataset, chunks = self._find(key)
            values = self._checked(key, at, values, dataset, chunks)
            corners = list(_corners(values.shape, chunks))
            tiles = (_tile(values, corner, chunks) for corner in corners)
            for corner, packed in zip(corners, self._packing(pack_chunk, tiles), strict=True):
                place = tuple(a + c for a, c in zip(at, corner, strict=True))
                with self._lock:
                    dataset.id.write_direct_chunk(place, packed)

    def _find(self, key: str) -> "tuple[h5py.Dataset, tuple[int, ...]]":
        with self._lock:
            if key not in self._datasets:
                if key not in self._file:
                    raise CheckpointError(f"{self._path}: has no tensor '{key}' to fill")
                self._datasets[key] = self._file[key]
            dataset = self._datasets[key]
            chunks = dataset.chunks
        if chunks is None:
            raise CheckpointError(f"{self._path}: '{key}' is not packed; write its bytes at its offset")
        return dataset, chunks

    def _checked(
        self, key: str, at: tuple[int, ...], values: np.ndarray, dataset: "h5py.Dataset", chunks: tuple[int, ...]
    ) -> np.ndarray:
        shape, dtype = dataset.shape, dataset.dtype
        if values.dtype.name == "bfloat16":
            values = values.view(np.int16)
        elif values.dtype.kind == "u" and values.dtype.itemsize == dtype.itemsize:
            values = values.view(dtype)  # the bits of the elements, as operations move them
        axes = list(zip(at, values.shape, chunks, shape, strict=False))
        sound = len(at) == values.ndim == len(shape) and all(
            start >= 0
            and start % chunk == 0
            and start + size <= whole
            and ((start + size) % chunk == 0 or start + size == whole)
            for start, size, chunk, whole in axes
        )
        if not sound or values.dtype != dtype:
            raise CheckpointError(
                f"{self._path}: {values.dtype} {values.shape} at {at} does not fit tensor '{key}', "
                f"{dtype} {shape} in chunks of {chunks}"
            )
        return values


@contextmanager
def filling(path: str | os.PathLike[str], *, packing: Packing = map) -> Iterator[PackedTensorWriter]:
    """Open a checkpoint that `create_empty_checkpoint(..., compression="lz4")` made, to fill its packed tensors.

    `packing` applies a function to arrays and yields the results in order: `map`, or that of an executor. A failed
    write (a full disk) is one CheckpointError at the end of the block. The file cannot be loaded until `mark_complete`.
    """
    with writing(Path(path), create=False) as file:
        yield PackedTensorWriter(Path(path), file, packing)


def _corners(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(0, size, chunk) for size, chunk in zip(shape, chunks, strict=True)))


def _tile(values: np.ndarray, corner: tuple[int, ...], chunks: tuple[int, ...]) -> np.ndarray:
    """Return one whole chunk, padded with zeros where it hangs over the edge."""
    part = values[tuple(slice(start, start + size) for start, size in zip(corner, chunks, strict=True))]
    if part.shape == chunks:
        return np.ascontiguousarray(part)
    whole = np.zeros(chunks, values.dtype)
    whole[tuple(slice(size) for size in part.shape)] = part
    return whole
