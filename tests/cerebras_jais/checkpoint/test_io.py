"""A file filled past the page cache holds what one filled through it holds, on every file system.

Contract: any ranges, in any order, from several threads; where direct writes cannot be opened, or are refused when they
are tried, the file is filled all the same; a full disk is an OSError.
"""

import errno
import fcntl
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cerebras_jais.checkpoint import io
from cerebras_jais.checkpoint.io import DirectWriter
from tests.process import open_files

MB = 1 << 20
linux = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="macOS has no direct writes")


def pieces(size, seed):
    """Ranges that cover a file, of all kinds of lengths, in any order."""
    draw = np.random.default_rng(seed)
    edges = [0, *sorted(draw.choice(size, 12, replace=False).tolist()), 4096, 5 * MB, 5 * MB + 3, 8 * MB, size]
    ranges = list(itertools.pairwise(sorted(set(edges))))
    draw.shuffle(ranges)
    return [(int(start), int(stop)) for start, stop in ranges]


def fill(path, size, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    path.write_bytes(b"")
    os.truncate(path, size)
    with DirectWriter(path) as file, ThreadPoolExecutor(3) as pool:
        wanted = [pool.submit(file.write, values[a:b].data, a) for a, b in pieces(size, seed)]
        for future in wanted:
            future.result()
        file.flush()
    return values.tobytes()


@pytest.mark.parametrize("seed", range(4))
def test_every_byte_is_where_it_belongs(tmp_path, seed):
    assert fill(tmp_path / "f", 21 * MB + 1234, seed) == (tmp_path / "f").read_bytes()


@linux
def test_a_file_system_without_direct_writes(tmp_path, monkeypatch):
    real = os.open

    def refusing(path, flags, *rest, **more):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refusing)
    assert fill(tmp_path / "f", 9 * MB + 1) == (tmp_path / "f").read_bytes()


@linux
def test_a_system_without_direct_writes(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_DIRECT")
    monkeypatch.delattr(os, "posix_fadvise")
    assert fill(tmp_path / "f", 9 * MB + 1) == (tmp_path / "f").read_bytes()


@linux
def test_direct_writes_that_are_refused_when_tried(tmp_path, monkeypatch):
    real = os.pwrite
    refused = []

    def refusing(descriptor, data, offset):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(offset)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refusing)
    assert fill(tmp_path / "f", 9 * MB + 1) == (tmp_path / "f").read_bytes()
    assert refused


@linux
def test_a_file_needs_one_descriptor_while_it_is_written(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(bytes(4 * MB))
    with DirectWriter(path) as file:
        file.write(np.ones(4 * MB, np.uint8).data, 0)
        assert open_files(tmp_path) == [path]
    assert not open_files(tmp_path)
    assert path.read_bytes() == b"\1" * (4 * MB)


def test_a_thread_copies_to_the_same_memory_for_every_file(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(io.mmap, "mmap", lambda *size: made.append(size) or bytearray(size[1]))
    monkeypatch.setattr(io, "_stages", threading.local())
    io._staged(memoryview(b"one"))
    assert bytes(io._staged(memoryview(b"two"))) == b"two"
    assert len(made) == 1


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    def full(descriptor, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        fill(tmp_path / "f", 9 * MB)
