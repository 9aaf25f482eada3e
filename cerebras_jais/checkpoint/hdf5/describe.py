"""Program that describes HDF5 files; run as a child process by `isolate`.

HDF5 parses files in C and trusts them: a damaged one can make it loop for ever, ask for any amount of memory or end its
process. Only this process therefore opens files with the HDF5 library; the system ends it when one of them takes more
time or memory than it is allowed, and it cannot open what a file points to.

Standard input is one JSON object: `files` (paths), `datasets` (names, or null for those of a checkpoint) and the limits
`memory`, `seconds` and `processor_seconds` (for each file). Standard output is one byte once h5py is imported, then an
answer for each file: two 8-byte little-endian sizes, facts in JSON of the first size, chunk tables of the second. The
caller validates the answers. This module imports nothing of this package, so its start takes no longer than h5py's.
"""

from __future__ import annotations

import array
import contextlib
import io
import json
import math
import os
import resource
import signal
import stat
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SIZES = struct.Struct("<QQ")
ABOUT = ".__metadata__"
CHUNK_BYTES = 16
"""Of each chunk in a table: its offset (8 bytes), and after all offsets its size (4), then its filter mask (4)."""
LEAST_PER_CHUNK = 8
"""Bytes of a file for each of its chunks: an entry in any index of HDF5 has at least the offset."""
_ROOT_NAMES = ("__version__", "__spec__", "__SUCCESS__")
# A checkpoint of 5,000 tensors has about 5 MB of texts in all.
_LONGEST_TEXT = 16 << 20
_LONGEST_TEXTS = 64 << 20
_LONGEST_REASON = 200
_LAYOUTS = {
    h5py.h5d.CONTIGUOUS: "contiguous",
    h5py.h5d.CHUNKED: "chunked",
    h5py.h5d.COMPACT: "compact",
    h5py.h5d.VIRTUAL: "virtual",
}
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
# HDF5 converts the elements of any other type, so their bytes are not the values. Names are numpy's.
_TYPES = {
    **{name: h5py.h5t.py_create(np.dtype(name).newbyteorder("<"), logical=True) for name in ("bool", *_INTEGERS)},
    "float16": h5py.h5t.IEEE_F16LE,
    "float32": h5py.h5t.IEEE_F32LE,
    "float64": h5py.h5t.IEEE_F64LE,
    **{
        name: h5py.h5t.py_create(np.dtype(name), logical=True)
        for name in (np.dtype(integer).newbyteorder(">").str for integer in _INTEGERS)
        if name.startswith(">")
    },
}


class OpenFile(io.RawIOBase):
    """An open descriptor as h5py's file object."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._position = 0
        self._size = os.fstat(descriptor).st_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        left = memoryview(buffer).cast("B")
        size = len(left)
        while left:
            count = os.preadv(self._descriptor, [left], self._position)
            if count == 0:
                raise OSError("the file ends inside its structure")
            left, self._position = left[count:], self._position + count
        return size


# ---- the description of a file --------------------------------------------------------------------------------------


def describe(file: h5py.File, size: int, datasets: Sequence[str] | None) -> tuple[dict[str, Any], list[bytes]]:
    """Return the facts about an open file of `size` bytes, and the chunk tables of its datasets one after another.

    The facts are `attributes`, name -> [value] for those of the root that a checkpoint needs, and `datasets`, name ->
    header (see `header`). What HDF5 cannot read, and an attribute of another kind, is {"error": reason}.

    Args:
        file: the file.
        size: its bytes.
        datasets: the datasets to look at; None for those that an attribute NAME.__metadata__ describes.
    """
    attributes: dict[str, Any] = {}
    if datasets is None:
        attributes = _attributes(file)
        datasets = [name.removesuffix(ABOUT) for name in attributes if name.endswith(ABOUT)]
    headers: dict[str, Any] = {}
    tables: list[bytes] = []
    for name in datasets:
        try:
            headers[name], table = header(file, size, name)
            tables.append(table)
        except Exception as error:
            headers[name] = _error(error)
    return {"attributes": attributes, "datasets": headers}, tables


def _attributes(file: h5py.File) -> dict[str, Any]:
    found: dict[str, Any] = {}
    characters_left = _LONGEST_TEXTS
    for name in file.attrs:
        if name not in _ROOT_NAMES and not name.endswith(ABOUT):
            continue
        try:
            value = attribute(file, name)
            characters_left -= len(value) if isinstance(value, str) else 0
            if characters_left < 0:
                raise ValueError("the file's texts together are longer than can be")
            found[name] = [value]
        except Exception as error:
            found[name] = _error(error)
    return found


def attribute(file: h5py.File, name: str) -> str | bool | int | float:
    """Return a scalar attribute of the root that is a text of variable length, as h5py writes them, or a number."""
    found = h5py.h5a.open(file.id, name.encode())
    text = h5py.check_string_dtype(found.dtype)
    is_number = found.dtype.kind in "biuf" and found.dtype.itemsize <= 8
    if found.shape != () or not (is_number or (text is not None and text.length is None)):
        raise TypeError("it is neither a text nor a number")
    value = np.zeros((), found.dtype)
    found.read(value)
    if is_number:
        number: bool | int | float = value.item()
        return number
    if len(value.item()) > _LONGEST_TEXT:
        raise ValueError("it is longer than can be")
    decoded: str = value.item().decode()
    return decoded


def header(file: h5py.File, size: int, name: str) -> tuple[dict[str, Any], bytes]:
    """Return the location and layout of the dataset `name` and its chunk table.

    In place of the facts: {"problem": "missing" | "link" | "empty"}.

    Only hard links are followed: the other kinds lead out of the file or round in it. `chunk_count` is the number of
    chunks in the table, or 0 with `chunk_problem` where there is none to give.
    """
    place = _find(file, name)
    if isinstance(place, str):
        return {"problem": place}, b""
    if not isinstance(place, h5py.h5d.DatasetID) or place.get_space().get_simple_extent_type() == h5py.h5s.NULL:
        return {"problem": "empty"}, b""
    plan = place.get_create_plist()
    layout = plan.get_layout()
    kind = place.get_type()
    known = next((name for name, exact in _TYPES.items() if kind.equal(exact)), None)
    filters = [plan.get_filter(index) for index in range(plan.get_nfilters())]
    facts = {
        "shape": place.shape,
        "type": known,
        "type_name": known or _name_of(place),
        "itemsize": kind.get_size(),
        "layout": _LAYOUTS.get(layout, "unknown"),
        "elsewhere": plan.get_external_count(),
        "offset": place.get_offset() if layout == h5py.h5d.CONTIGUOUS else None,
        "chunks": plan.get_chunk() if layout == h5py.h5d.CHUNKED else None,
        "filters": [[code, list(values)] for code, _, values, _ in filters],
        "chunk_count": 0,
        "chunk_problem": None,
    }
    table = b""
    if layout == h5py.h5d.CHUNKED and math.prod(place.shape):
        try:
            table = chunk_table(place, size)
            facts["chunk_count"] = len(table) // CHUNK_BYTES
        except ValueError as error:
            facts["chunk_problem"] = str(error)
    return facts, table


def chunk_table(dataset: h5py.h5d.DatasetID, size: int) -> bytes:
    """Return where the chunks of a dataset are in a file of `size` bytes: see `in_order`.

    Raises ValueError when they are not exactly the chunks of its shape; stops one chunk after there are too many.
    """
    shape, chunks = dataset.shape, dataset.get_create_plist().get_chunk()
    most = math.prod(-(-extent // chunk) for extent, chunk in zip(shape, chunks, strict=True))
    if most * LEAST_PER_CHUNK > size:
        raise ValueError(f"claims {most} chunks, more than {size} bytes can hold")
    places, offsets, sizes, masks = (array.array("Q") for _ in range(4))

    def note(chunk: Any) -> bool | None:
        places.extend(chunk.chunk_offset)
        offsets.append(chunk.byte_offset)
        sizes.append(chunk.size)
        masks.append(chunk.filter_mask)
        return True if len(offsets) > most else None

    dataset.chunk_iter(note)
    columns = (np.frombuffer(part, np.uint64) for part in (places, offsets, sizes, masks))
    return in_order(shape, chunks, *columns)


def in_order(
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    places: np.ndarray,
    offsets: np.ndarray,
    sizes: np.ndarray,
    masks: np.ndarray,
) -> bytes:
    """Sort the chunks of a dataset by their places, row-major.

    Args:
        shape: of the dataset.
        chunks: the shape of a chunk.
        places: [count * rank] the first element of each chunk, as HDF5 gives the chunks.
        offsets: [count] bytes at which they begin in the file.
        sizes: [count] their bytes there.
        masks: [count] their filter masks.

    Returns the offsets (8 bytes each), then the sizes (4 bytes each), then the masks (4 bytes each), little-endian.
    Raises ValueError when they are not exactly the chunks of `shape`.
    """
    grid = tuple(-(-extent // chunk) for extent, chunk in zip(shape, chunks, strict=True))
    count, expected = len(offsets), math.prod(grid)
    if count != expected:
        raise ValueError(f"has {count} of {expected} chunks; the file is incomplete")
    corners = places.reshape(count, len(shape))
    wide = np.asarray(chunks, np.uint64)
    if (corners % wide).any() or (corners >= np.asarray(shape, np.uint64)).any():
        raise ValueError("has a chunk at a place that it does not have; the file is damaged")
    if (sizes >= 1 << 32).any():
        raise ValueError("has a chunk of 4 GiB or more, which is not read")
    order = np.ravel_multi_index(tuple((corners // wide).astype(np.int64).T), grid)
    by_place = np.full(count, -1)
    by_place[order] = np.arange(count)
    if (by_place < 0).any():
        raise ValueError("has two chunks at one place; the file is damaged")
    parts = ((offsets, "<u8"), (sizes, "<u4"), (masks, "<u4"))
    return b"".join(part[by_place].astype(kind).tobytes() for part, kind in parts)


def _find(file: h5py.File, name: str) -> Any:
    place: Any = file.id
    for part in filter(None, name.split("/")):
        links = place.links if isinstance(place, h5py.h5g.GroupID) else None
        if links is None or not links.exists(part.encode()):
            return "missing"
        if links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            return "link"
        place = h5py.h5o.open(place, part.encode())
    return place


def _name_of(dataset: h5py.h5d.DatasetID) -> str:
    try:
        name = str(dataset.dtype)[:_LONGEST_REASON]
    except Exception:  # h5py has no dtype for it
        return "unknown"
    return f"unusual {name}" if name in _TYPES else name


def _error(error: Exception) -> dict[str, str]:
    reason = str(error).strip() or type(error).__name__
    return {"error": reason.splitlines()[0][:_LONGEST_REASON]}


# ---- the program ----------------------------------------------------------------------------------------------------


def describe_path(
    path: str, datasets: Sequence[str] | None, seconds: int, processor_seconds: tuple[float, float, int]
) -> tuple[dict[str, Any], list[bytes]]:
    """Open a file, describe it within limits of time, and return facts and tables; `identity` is from fstat."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        return _error(error), []
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return {"error": "it is not a regular file"}, []
        identity = [found.st_size, found.st_mtime_ns]
        least, per_byte, most = processor_seconds
        _limit_time(int(min(least + found.st_size * per_byte, most)), seconds)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with h5py.File(OpenFile(descriptor), "r") as file:
                facts, tables = describe(file, found.st_size, datasets)
        except Exception as error:
            facts, tables = _error(error), []
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _limit_time(None, 0)
        return facts | {"identity": identity}, tables
    finally:
        os.close(descriptor)


def _confine(memory: int) -> None:
    """Take from this process all but `memory` bytes of further memory, and the ability to write a file."""
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    with contextlib.suppress(OSError):  # a system that does not tell what a process has cannot limit it either
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = now + memory
    for which, limit in limits.items():
        _, hard = resource.getrlimit(which)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (limit, limit))


def _limit_time(processor_seconds: int | None, seconds: int) -> None:
    """Let the system end this process after so much processor time, or so many seconds, from now; None and 0: never."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = hard
    if processor_seconds is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + 1 + processor_seconds
        soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def main() -> None:
    """Describe the files that standard input names."""
    question = json.load(sys.stdin)
    answers = sys.stdout.buffer
    _confine(question["memory"])
    answers.write(b"!")
    for path in question["files"]:
        facts, tables = describe_path(path, question["datasets"], question["seconds"], question["processor_seconds"])
        text = json.dumps(facts).encode()
        answers.write(SIZES.pack(len(text), sum(map(len, tables))))
        answers.write(text)
        for table in tables:
            answers.write(table)
        answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the parent has closed the pipe
        main()
    os._exit(0)
