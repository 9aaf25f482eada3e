"""Carry out the steps of a plan in bounded memory: bands of rows are read, moved, hashed and written where they belong.

A worker takes one step at a time and reads its inputs in bands of some 24 MB, so memory does not depend on the size of
a tensor. Files to write are laid out beforehand; every piece goes to its final place.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Protocol

import numpy as np

from cerebras_jais.checkpoint.io import DirectWriter, aligned_empty
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.tensors import FileTensor, Tensor, np_dtype
from checkpoint_convert.mapping.operations import Operation, Piece, Shape
from checkpoint_convert.mapping.plan import Step
from checkpoint_convert.streaming.digest import TileDigest, tile_shape
from checkpoint_convert.streaming.transpose import contiguous

BAND_BYTES = 24 << 20
"""Bytes of input that a worker takes at a time, give or take a tile."""
DEFAULT_WORKERS = min(4, (os.cpu_count() or 1) + 1)
"""Threads: one more than cores, since some wait for the disk; few are enough for any disk."""
MEMORY_BYTES = 340 << 20
"""What all workers together may hold, about; one worker always works."""
Progress = Callable[[int, int], object]
"""Called with (bytes just read, bytes to read in all)."""
BytesRead = Callable[[int], object]
"""Called with the bytes just read."""


def keep_freed_memory() -> None:
    """Have the C library keep the memory of a band for the next one; for a process that converts and does no more.

    glibc gives blocks of this size back to the system as they are freed, and the system clears every page anew: a
    quarter of a conversion's time where memory is full of cached files. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _MALLOC_OPTIONS:
            mallopt(parameter, value)


# malloc.h: M_ARENA_MAX, M_MMAP_THRESHOLD (more than 32 MiB is refused by older releases), M_TRIM_THRESHOLD.
_MALLOC_OPTIONS = ((-8, 1), (-3, 32 << 20), (-1, 1 << 30))


class Sink(Protocol):
    """Where tensors are written."""

    def memory(self, name: str, at: tuple[int, ...], shape: Shape, dtype: str) -> np.ndarray:
        """A new array, not filled, to put a piece of the tensor `name` together in."""
        ...

    def write(self, name: str, at: tuple[int, ...], values: np.ndarray) -> None:
        """Put a piece of the tensor `name` in its place; called from several threads."""
        ...

    def finished(self, name: str) -> None:
        """Every piece of the tensor has been put in its place."""
        ...


class FileRanges:
    """A sink of tensors that lie in one piece in files laid out beforehand; use it in a `with` block."""

    def __init__(self, targets: Mapping[str, FileTensor]) -> None:
        self._targets = targets
        paths = dict.fromkeys(target.path for target in targets.values())
        with ExitStack() as opened:  # closed again when one cannot be opened
            self._files = {path: opened.enter_context(DirectWriter(path)) for path in paths}
            self._closing = opened.pop_all()

    def __enter__(self) -> FileRanges:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def memory(self, name: str, at: tuple[int, ...], shape: Shape, dtype: str) -> np.ndarray:
        """A new array, not filled; whole rows in it are written without a copy."""
        return aligned_empty(shape, dtype, self._offset(name, at, np.dtype(dtype).itemsize))

    def write(self, name: str, at: tuple[int, ...], values: np.ndarray) -> None:
        """Put a piece in its place: one range for whole rows, a range per row for a part of each."""
        target = self._targets[name]
        file = self._files[target.path]
        itemsize = values.itemsize
        offset = self._offset(name, at, itemsize)
        data = contiguous(values).reshape(-1).view(np.uint8).data
        if values.shape[1:] == target.shape[1:]:
            file.write(data, offset)
            return
        row, stride = values.shape[1] * itemsize, target.shape[1] * itemsize
        for number in range(len(values)):
            file.write(data[number * row : (number + 1) * row], offset + number * stride)

    def finished(self, name: str) -> None:
        """Start to write the tensor to the disk, so that the disk works while others are read and moved."""
        target = self._targets[name]
        self._files[target.path].start_writing(target.offset, target.nbytes)

    def flush(self) -> None:
        """Flush every file to the disk."""
        for file in self._files.values():
            file.flush()

    def _offset(self, name: str, at: tuple[int, ...], itemsize: int) -> int:
        """Byte of the file at which an element lies."""
        target = self._targets[name]
        element = 0
        for index, size in zip(at, target.shape, strict=True):
            element = element * size + index
        return target.offset + element * itemsize


def bands(tensor: Tensor, unit: int, band_bytes: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, rows) of a tensor in order; every band but the last has a multiple of `unit` rows.

    What is unpacked together (`chunk_rows`) is read together, once.
    """
    if not tensor.shape:
        yield 0, tensor.read()
        return
    rows = tensor.shape[0]
    wanted = max(1, band_bytes * rows // max(1, tensor.nbytes))
    packed = tensor.chunk_rows or 1
    stride = math.lcm(unit, packed) if math.lcm(unit, packed) <= 2 * wanted else packed
    stride *= max(1, wanted // stride)
    if stride < unit:
        stride = -(-unit // packed) * packed
    rest, first = None, 0
    for start in range(0, rows, stride):
        values = tensor.read_rows(start, min(start + stride, rows))
        if rest is not None and len(rest):
            values = np.concatenate([rest, values])
        whole = len(values) if start + stride >= rows else len(values) // unit * unit
        if whole:
            yield first, values[:whole]
        first, rest = first + whole, values[whole:]


def run_step(step: Step, sink: Sink | None, progress: BytesRead = lambda nbytes: None) -> tuple[str, ...]:
    """Carry out one step and return the digests of its tensors, in the order of its Cerebras names.

    Args:
        step: the step; where its second names are only compared nothing is written.
        sink: where to write; None only computes the digests.
        progress: called with the bytes of each band read.

    Raises:
        ConversionError: a value that the wanted element type cannot hold, an input that ends early.
    """
    digests = [TileDigest(shape, step.dtype) for shape in step.rule.cerebras_shapes]
    if sink is None or not step.writes:
        _by_rows(step, None, digests, progress)
    else:
        as_it_lies = all(len(source.shape) == 2 and source.chunk_rows is None for source in step.inputs)
        move = _by_columns if step.operation.transposes and as_it_lies else _by_rows
        move(step, sink, digests, progress)
        for name in step.outputs:
            sink.finished(name)
    return tuple(digest.hexdigest() for digest in digests)


def _by_rows(step: Step, sink: Sink | None, digests: Sequence[TileDigest], progress: BytesRead) -> None:
    """Read bands of rows and write each where it belongs, be it to a part of many rows."""
    from_cerebras = step.side == "cerebras"
    for index, source in enumerate(step.inputs):
        for first, values in bands(source, _unit(step.operation, source.shape), BAND_BYTES):
            bits = _converted(step, source, values)
            band = Piece(index, (first, *(0,) * (bits.ndim - 1))[: bits.ndim], bits)
            pieces: tuple[Piece, ...] = (band,)
            if sink is not None or not from_cerebras:  # laid in order once, for the digest and for the file
                moved = step.operation.move(band)
                pieces = tuple(piece._replace(values=contiguous(piece.values)) for piece in moved)
            for piece in (band,) if from_cerebras else pieces:
                digests[piece.tensor].add(piece.at, piece.values)
            if sink is not None:
                for piece in pieces:
                    sink.write(step.outputs[piece.tensor], piece.at, piece.values)
            progress(values.nbytes)


def _by_columns(step: Step, sink: Sink, digests: Sequence[TileDigest], progress: BytesRead) -> None:
    """Make bands of whole rows of what is written out of columns of what is read, for operations that transpose.

    A disk takes long writes far quicker than many short ones, and short reads come out of memory, once it has been told
    to fetch the tensor.
    """
    for number, header in enumerate(step.headers):
        tile = tile_shape(header.shape)[0]
        rows = max(1, BAND_BYTES * header.shape[0] // max(1, header.nbytes) // tile) * tile
        for start in range(0, header.shape[0], rows):
            shape = (min(rows, header.shape[0] - start), header.shape[1])
            band = sink.memory(header.name, (start, 0), shape, _bits_of(step))
            _fill_band(step, Piece(number, (start, 0), band), digests, progress)
            sink.write(header.name, (start, 0), band)
            del band  # before there is another


def _fill_band(step: Step, band: Piece, digests: Sequence[TileDigest], progress: BytesRead) -> None:
    """Put whole rows of an output together and hash them."""
    for hole in step.operation.inverse.move(band):
        source = step.inputs[hole.tensor]
        assert np.may_share_memory(hole.values, band.values), "an operation that transposes moves views"
        columns = hole.slices[1]
        values = source.read_columns(columns.start, columns.stop)
        nbytes = values.nbytes
        part = Piece(hole.tensor, hole.at, _converted(step, source, values))
        if step.side == "cerebras":
            digests[hole.tensor].add(part.at, part.values, copy_to=hole.values)
        else:
            (moved,) = step.operation.move(part)
            digests[band.tensor].add(moved.at, moved.values, copy_to=band.values)
        progress(nbytes)


def _bits_of(step: Step) -> str:
    """The unsigned type that elements are moved as: bfloat16 is no type of numpy's own and moves slowly as itself."""
    return f"u{np_dtype(step.dtype).itemsize}"


def _unit(operation: Operation, shape: tuple[int, ...]) -> int:
    """Rows that bands must keep together, so that both the operation and the digest get whole ones."""
    return math.lcm(operation.unit, tile_shape(shape)[0]) if shape else 1


def _converted(step: Step, source: Tensor, values: np.ndarray) -> np.ndarray:
    """The values as the bits of the element type that is written."""
    if source.dtype == step.dtype:
        return values.view(_bits_of(step))
    with np.errstate(over="ignore", invalid="ignore"):
        converted = values.astype(np_dtype(step.dtype))
    if step.dtype == "float16":
        lost = np.isinf(converted) & ~np.isinf(values)
        if lost.any():
            largest = float(np.abs(values[lost].astype(np.float64)).max())
            raise ConversionError(
                f"{', '.join(step.rule.names(step.side))} holds {largest:g}, which float16 cannot (65504 at most); "
                "use bfloat16 or float32"
            )
    return converted.view(_bits_of(step))


def run_steps(
    steps: Mapping[int, Step],
    sink: Sink | None,
    done: Callable[[int, tuple[str, ...]], object],
    progress: BytesRead = lambda nbytes: None,
    workers: int = DEFAULT_WORKERS,
) -> None:
    """Carry out steps by several workers, in the order given; the first error stops them all and is raised.

    Args:
        steps: what to do, by number.
        sink: where to write; None only computes digests.
        done: called, one call at a time, with the number of each step that is finished and its digests.
        progress: called with bytes read.
        workers: threads at most; fewer where what is packed together at the source is large, to keep to the memory
            budget.
    """
    lock, stopped = threading.Lock(), threading.Event()

    def counted(nbytes: int) -> None:
        if stopped.is_set():
            raise _StoppedError
        with lock:
            progress(nbytes)

    def work(number: int, step: Step) -> None:
        digests = run_step(step, sink, counted)
        with lock:
            if stopped.is_set():
                raise _StoppedError
            done(number, digests)

    widest = max((working_bytes(step) for step in steps.values()), default=1)
    pool = ThreadPoolExecutor(max(1, min(workers, MEMORY_BYTES // widest)))
    try:
        futures = [pool.submit(work, number, step) for number, step in steps.items()]
        finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in finished:
            future.result()
    finally:
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)


class _StoppedError(Exception):
    """Another worker failed; raised inside a worker, never out of this module."""


def working_bytes(step: Step) -> int:
    """Memory that a worker needs for a step: twice a band as read and as written, for the last one is still held.

    An element type of another size makes one of the two larger. A transposed band is at least a tile's rows of the
    output.
    """
    most = 0.0
    size = np_dtype(step.dtype).itemsize
    for source in step.inputs:
        if source.shape and source.nbytes:
            row = source.nbytes // source.shape[0]
            least = row * max(_unit(step.operation, source.shape), source.chunk_rows or 1)
            if step.operation.transposes and len(source.shape) == 2:
                least = max(least, source.nbytes // source.shape[1] * tile_shape(source.shape)[0])
            band = min(source.nbytes, max(BAND_BYTES, least))
            ratio = size / np_dtype(source.dtype).itemsize
            most = max(most, 2 * band * (1 + max(ratio, 1 / ratio)))
    return int(most) + 1
