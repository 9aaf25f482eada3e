"""Run the steps of a plan in bounded memory: bands of rows are read, moved, hashed and written at their offsets.

A worker runs one step at a time and reads its inputs in bands of about 24 MB, so memory does not depend on the size of
a tensor. The output files exist at full size before the run, and every piece is written at its final offset.
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
"""Bytes of input that a worker reads at a time, up to a tile more or less."""
DEFAULT_WORKERS = min(4, (os.cpu_count() or 1) + 1)
"""Threads: one more than cores, because some wait for the disk; more than four do not make a disk faster."""
MEMORY_BYTES = 340 << 20
"""Approximate memory of all workers together; at least one worker always runs."""
Progress = Callable[[int, int], object]
"""Called with (bytes just read, bytes to read in all)."""
Digests = tuple[str, ...]
BytesRead = Callable[[int], object]
"""Called with the bytes just read."""


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next band; for a process that only converts.

    By default glibc returns blocks of this size to the system when they are freed, and the system clears every page
    again. This costs a quarter of the time of a conversion when memory is full of cached files. Other C libraries are
    not changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _MALLOC_OPTIONS:
            mallopt(parameter, value)


# malloc.h: M_ARENA_MAX, M_MMAP_THRESHOLD (more than 32 MiB is refused by older releases), M_TRIM_THRESHOLD.
_MALLOC_OPTIONS = ((-8, 1), (-3, 32 << 20), (-1, 1 << 30))


class Sink(Protocol):
    """What tensors are written to."""

    def memory(self, name: str, at: tuple[int, ...], shape: Shape, dtype: str) -> np.ndarray:
        """A new uninitialized array in which a piece of the tensor `name` is assembled."""
        ...

    def write(self, name: str, at: tuple[int, ...], values: np.ndarray) -> None:
        """Write a piece of the tensor `name`, whose first element has the index `at`; called from several threads."""
        ...

    def finished(self, name: str) -> Digests:
        """Called when every piece of the tensor is written.

        Returns the digest of what was written, where it is not the tensor itself; it is kept with those of the step.
        """
        ...


class FileRanges:
    """A sink of contiguous tensors in files that exist at full size; use it in a `with` block."""

    def __init__(self, targets: Mapping[str, FileTensor]) -> None:
        self._targets = targets
        paths = dict.fromkeys(target.path for target in targets.values())
        with ExitStack() as opened:  # closes all of them when one cannot be opened
            self._files = {path: opened.enter_context(DirectWriter(path)) for path in paths}
            self._closing = opened.pop_all()

    def __enter__(self) -> FileRanges:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def memory(self, name: str, at: tuple[int, ...], shape: Shape, dtype: str) -> np.ndarray:
        """A new uninitialized array; whole rows in it are written without a copy."""
        return aligned_empty(shape, dtype, self._offset(name, at, np.dtype(dtype).itemsize))

    def write(self, name: str, at: tuple[int, ...], values: np.ndarray) -> None:
        """Write a piece: one range of the file for whole rows, one range per row for parts of rows."""
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

    def finished(self, name: str) -> Digests:
        """Start to write the tensor from the page cache to the disk, while others are read and moved."""
        target = self._targets[name]
        self._files[target.path].start_writing(target.offset, target.nbytes)
        return ()

    def flush(self) -> None:
        """Flush every file to the disk."""
        for file in self._files.values():
            file.flush()

    def _offset(self, name: str, at: tuple[int, ...], itemsize: int) -> int:
        """Offset of an element in its file, in bytes."""
        target = self._targets[name]
        element = 0
        for index, size in zip(at, target.shape, strict=True):
            element = element * size + index
        return target.offset + element * itemsize


def bands(tensor: Tensor, unit: int, band_bytes: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, rows) of a tensor in order; every band but the last has a multiple of `unit` rows.

    Rows that are decompressed together (`chunk_rows`) are read together, once.
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
    """Run one step and return the digests of its tensors, in the order of its Cerebras names, then those of the sink.

    Args:
        step: the step; one that only compares a second name writes nothing.
        sink: where to write; None only computes the digests.
        progress: called with the bytes of each band read.

    Raises:
        ConversionError: the element type cannot represent a value, or an input ends early.
    """
    written: Digests = ()
    digests = [TileDigest(shape, step.dtype) for shape in step.rule.cerebras_shapes]
    if sink is None or not step.writes:
        _by_rows(step, None, digests, progress)
    else:
        uncompressed = all(len(source.shape) == 2 and source.chunk_rows is None for source in step.inputs)
        move = _by_columns if step.operation.transposes and uncompressed else _by_rows
        move(step, sink, digests, progress)
        written = tuple(digest for name in step.outputs for digest in sink.finished(name))
    return (*(digest.hexdigest() for digest in digests), *written)


def _by_rows(step: Step, sink: Sink | None, digests: Sequence[TileDigest], progress: BytesRead) -> None:
    """Read bands of rows and write each one, which may be a part of many rows of the output."""
    from_cerebras = step.side == "cerebras"
    for index, source in enumerate(step.inputs):
        for first, values in bands(source, _unit(step.operation, source.shape), BAND_BYTES):
            bits = _converted(step, source, values)
            band = Piece(index, (first, *(0,) * (bits.ndim - 1))[: bits.ndim], bits)
            pieces: tuple[Piece, ...] = (band,)
            if sink is not None or not from_cerebras:  # made contiguous once, for the digest and for the file
                moved = step.operation.move(band)
                pieces = tuple(piece._replace(values=contiguous(piece.values)) for piece in moved)
            for piece in (band,) if from_cerebras else pieces:
                digests[piece.tensor].add(piece.at, piece.values)
            if sink is not None:
                for piece in pieces:
                    sink.write(step.outputs[piece.tensor], piece.at, piece.values)
            progress(values.nbytes)


def _by_columns(step: Step, sink: Sink, digests: Sequence[TileDigest], progress: BytesRead) -> None:
    """Assemble bands of whole output rows from columns of the input, for operations that transpose.

    Long writes are far faster on a disk than many short ones. Short reads come from the page cache, because the system
    is told to read the whole tensor ahead.
    """
    for number, header in enumerate(step.headers):
        tile = tile_shape(header.shape)[0]
        rows = max(1, BAND_BYTES * header.shape[0] // max(1, header.nbytes) // tile) * tile
        for start in range(0, header.shape[0], rows):
            shape = (min(rows, header.shape[0] - start), header.shape[1])
            band = sink.memory(header.name, (start, 0), shape, _bits_of(step))
            _fill_band(step, Piece(number, (start, 0), band), digests, progress)
            sink.write(header.name, (start, 0), band)
            del band  # before the next one is allocated


def _fill_band(step: Step, band: Piece, digests: Sequence[TileDigest], progress: BytesRead) -> None:
    """Assemble whole rows of an output and hash them."""
    for target in step.operation.inverse.move(band):
        source = step.inputs[target.tensor]
        assert np.may_share_memory(target.values, band.values), "an operation that transposes moves views"
        columns = target.slices[1]
        values = source.read_columns(columns.start, columns.stop)
        nbytes = values.nbytes
        part = Piece(target.tensor, target.at, _converted(step, source, values))
        if step.side == "cerebras":
            digests[target.tensor].add(part.at, part.values, copy_to=target.values)
        else:
            (moved,) = step.operation.move(part)
            digests[band.tensor].add(moved.at, moved.values, copy_to=band.values)
        progress(nbytes)


def _bits_of(step: Step) -> str:
    """The unsigned type in which elements are moved, because numpy moves ml_dtypes' bfloat16 slowly."""
    return f"u{np_dtype(step.dtype).itemsize}"


def _unit(operation: Operation, shape: tuple[int, ...]) -> int:
    """Rows that a band must not divide: whole units of the operation and whole tiles of the digest."""
    return math.lcm(operation.unit, tile_shape(shape)[0]) if shape else 1


def _converted(step: Step, source: Tensor, values: np.ndarray) -> np.ndarray:
    """The values in the output's element type, as unsigned integers of the same bits."""
    if source.dtype == step.dtype:
        return values.view(_bits_of(step))
    with np.errstate(over="ignore", invalid="ignore"):
        converted = values.astype(np_dtype(step.dtype))
    if step.dtype == "float16":
        lost = np.isinf(converted) & ~np.isinf(values)
        if lost.any():
            largest = float(np.abs(values[lost].astype(np.float64)).max())
            raise ConversionError(
                f"{', '.join(step.rule.names(step.side))} has {largest:g}, which float16 cannot represent (65504 at "
                "most); use bfloat16 or float32"
            )
    return converted.view(_bits_of(step))


def run_steps(
    steps: Mapping[int, Step],
    sink: Sink | None,
    done: Callable[[int, tuple[str, ...]], object],
    progress: BytesRead = lambda nbytes: None,
    workers: int = DEFAULT_WORKERS,
) -> None:
    """Run steps in several workers, in the order given; the first error stops all workers and is raised.

    Args:
        steps: the steps by number.
        sink: where to write; None only computes digests.
        done: called with the number and the digests of each finished step, one call at a time.
        progress: called with bytes read.
        workers: largest number of threads; fewer run where the compressed chunks of the input are so large that more
            would exceed MEMORY_BYTES.
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
    """Another worker failed. It is raised inside a worker and never leaves this module."""


def working_bytes(step: Step) -> int:
    """Memory that a worker needs for a step, in bytes: two bands as read and two as written.

    Two, because the last band is still in memory when the next one is read. A conversion to an element type of another
    size makes one of the two larger. A transposed band has at least one tile of output rows.
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
