"""Looks into HDF5 files for other processes: a program of its own, started by hdf5_inspection.py and run by its path.

HDF5 parses files in C and trusts them: a damaged one can make it loop for ever, ask for any amount of memory or end its
process. So it meets a file that is to be read only here, in a fork of this program that lives for one file, can open
nothing further, and is ended by the system when a question takes more time or memory than it allows.

Standard input is a socket on which every byte brings two descriptors: a file, and a socket for the questions about it,
each a line of JSON. An answer is two 8-byte little-endian sizes, facts in JSON of the first size, and numbers of the
second. Every answer states what stands in the file; what of it is acceptable is judged by the one who asked. This
module imports nothing of this package, so that starting it costs no more than h5py does.
"""

import array
import contextlib
import io
import json
import os
import resource
import signal
import socket
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SIZES = struct.Struct("<QQ")
ABOUT = ".__metadata__"
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
# Of a type that is not exactly one of these HDF5 would convert the numbers, so their bytes are not to be taken as such.
_TYPES = {
    name: h5py.h5t.py_create(np.dtype(name).newbyteorder("<"), logical=True)
    for name in ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
} | {"float16": h5py.h5t.IEEE_F16LE, "float32": h5py.h5t.IEEE_F32LE, "float64": h5py.h5t.IEEE_F64LE}


class OpenFile(io.RawIOBase):
    """A descriptor as h5py wants it: the very file that was asked about, with nothing more to be opened."""

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


# ---- what stands in a file ------------------------------------------------------------------------------------------


def structure(file: h5py.File) -> dict[str, Any]:
    """Return the root's attributes that a checkpoint needs, and the header of each dataset that one of them describes.

    An attribute is [value], a text or a number; a header is as `header` gives it. What HDF5 cannot read, and an
    attribute of another kind, is {"error": reason}.
    """
    attributes: dict[str, Any] = {}
    headers: dict[str, Any] = {}
    room = _LONGEST_TEXTS
    for name in file.attrs:
        if name not in _ROOT_NAMES and not name.endswith(ABOUT):
            continue
        try:
            value = attribute(file, name)
            room -= len(value) if isinstance(value, str) else 0
            if room < 0:
                raise ValueError("the file's texts together are longer than can be")
            attributes[name] = [value]
        except Exception as error:
            attributes[name] = _error(error)
        key = name.removesuffix(ABOUT)
        if key != name:
            try:
                headers[key] = header(file, key)
            except Exception as error:
                headers[key] = _error(error)
    return {"attributes": attributes, "headers": headers}


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
        return value.item()
    if len(value.item()) > _LONGEST_TEXT:
        raise ValueError("it is longer than can be")
    return value.item().decode()


def header(file: h5py.File, name: str) -> dict[str, Any]:
    """Return where and how the dataset `name` lies, or {"problem": "missing" | "link" | "empty"}.

    Only hard links are followed: the other kinds lead out of the file or round in it.
    """
    place = _find(file, name)
    if isinstance(place, str):
        return {"problem": place}
    if not isinstance(place, h5py.h5d.DatasetID) or place.get_space().get_simple_extent_type() == h5py.h5s.NULL:
        return {"problem": "empty"}
    plan = place.get_create_plist()
    layout = plan.get_layout()
    kind = place.get_type()
    known = next((name for name, exact in _TYPES.items() if kind.equal(exact)), None)
    filters = [plan.get_filter(index) for index in range(plan.get_nfilters())]
    return {
        "shape": place.shape,
        "type": known,
        "type_name": known or _name_of(place),
        "itemsize": kind.get_size(),
        "layout": _LAYOUTS.get(layout, "unknown"),
        "elsewhere": plan.get_external_count(),
        "offset": place.get_offset() if layout == h5py.h5d.CONTIGUOUS else None,
        "chunks": plan.get_chunk() if layout == h5py.h5d.CHUNKED else None,
        "filters": [[code, list(values)] for code, _, values, _ in filters],
    }


def chunk_table(file: h5py.File, name: str, most: int) -> tuple[dict[str, Any], bytes]:
    """Return {"count": number of chunks, "rank": axes} and, as 8-byte little-endian numbers, for all of the chunks.

    first their first elements' places (count x rank), then their offsets in the file, their sizes there and their
    filter masks. Stops one chunk after `most`.
    """
    dataset = _find(file, name)
    assert isinstance(dataset, h5py.h5d.DatasetID)  # its header was given before
    places, offsets, sizes, masks = (array.array("Q") for _ in range(4))

    def note(chunk: Any) -> bool | None:
        places.extend(chunk.chunk_offset)
        offsets.append(chunk.byte_offset)
        sizes.append(chunk.size)
        masks.append(chunk.filter_mask)
        return True if len(offsets) > most else None

    dataset.chunk_iter(note)
    numbers = (np.asarray(part, "<u8").tobytes() for part in (places, offsets, sizes, masks))
    return {"count": len(offsets), "rank": len(dataset.shape)}, b"".join(numbers)


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


# ---- one file in one process ----------------------------------------------------------------------------------------


def answer_all(descriptor: int, channel: socket.socket) -> None:
    """Answer the questions about one file until `channel` is closed."""
    questions = channel.makefile("rb")
    file = None
    while line := questions.readline():
        question = json.loads(line)
        if file is None:
            _confine(question["memory"])
        _limit_time(question["processor_seconds"], question["seconds"])
        numbers = b""
        try:
            file = file or h5py.File(OpenFile(descriptor), "r")
            if "chunks_of" in question:
                facts, numbers = chunk_table(file, question["chunks_of"], question["most"])
            else:
                facts = structure(file)
        except Exception as error:
            facts, numbers = _error(error), b""
        _limit_time(None, 0)
        send(channel, facts, numbers)


def send(channel: socket.socket, facts: dict[str, Any], numbers: bytes = b"") -> None:
    """Send one answer."""
    text = json.dumps(facts).encode()
    channel.sendall(SIZES.pack(len(text), len(numbers)))
    channel.sendall(text)
    channel.sendall(numbers)


def _confine(memory: int) -> None:
    """Take from this process all but `memory` bytes of further memory, and the ability to open or write a file."""
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_NOFILE: 0}
    with contextlib.suppress(OSError):  # a system that does not tell what a process has cannot limit it either
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = now + memory
    for which, limit in limits.items():
        _, hard = resource.getrlimit(which)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (limit, limit))


def _limit_time(processor_seconds: int | None, seconds: int) -> None:
    """Let the system end this process when it computes, or just goes on, for so long from now; None and 0: not."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = hard
    if processor_seconds is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + 1 + processor_seconds
        soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def main() -> None:
    """Serve until the process that started this one is gone."""
    # Ctrl-C is for the one who asks; what is inherited here must not keep anything of it open or in use.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    control = socket.socket(fileno=0)
    control.sendall(b"!")  # ready
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not message:
            return
        if len(descriptors) == 2:
            _fork_and_answer(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _fork_and_answer(descriptor: int, channel: int) -> None:
    try:
        if os.fork():
            return
    except OSError as error:
        with socket.socket(fileno=os.dup(channel)) as reply, contextlib.suppress(OSError):
            send(reply, _error(error))
        return
    try:
        os.close(0)
        answer_all(descriptor, socket.socket(fileno=channel))
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
