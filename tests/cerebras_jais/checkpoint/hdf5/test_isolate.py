"""Contract: only a process of its own meets a file that is read; whatever happens to it is one CheckpointError here."""

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from cerebras_jais.checkpoint import CheckpointError, open_checkpoint, save_checkpoint
from cerebras_jais.checkpoint.hdf5 import describe as hdf5_inspector
from cerebras_jais.checkpoint.hdf5 import isolate as hdf5_inspection

ARRAYS = {name: np.arange(90_000, dtype=np.float32).reshape(300, 300) * i for i, name in enumerate("abcd")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "x.mdl", ARRAYS, compression="lz4")
    return tmp_path / "x.mdl"


def assert_readable(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(checkpoint.tensors[name].read(), array)


def trapped(path: Path) -> Path:
    """Copy the file and give it the attribute "trap"."""
    copy = shutil.copy(path, path.with_name("trapped.mdl"))
    with h5py.File(copy, "r+") as file:
        file.attrs["trap"] = True
    return copy


@pytest.fixture
def inspector_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Give a function that puts an inspector in place which does this when a file has the attribute "trap"."""

    def use(act: str) -> None:
        program = tmp_path / "inspector.py"
        program.write_text(
            "import importlib.util, os, signal, socket, time\n"
            f"spec = importlib.util.spec_from_file_location('real', {hdf5_inspector.__file__!r})\n"
            "real = importlib.util.module_from_spec(spec)\n"
            "spec.loader.exec_module(real)\n"
            "structure = real.structure\n"
            f"def trap(file):\n    if 'trap' in file.attrs:\n        {act}\n    return structure(file)\n"
            "real.structure = trap\n"
            "real.main()\n"
        )
        monkeypatch.setattr(hdf5_inspection, "_PROGRAM", program)
        hdf5_inspection._stop()

    yield use
    monkeypatch.undo()
    hdf5_inspection._stop()


@pytest.mark.parametrize(
    "act",
    [
        "os.abort()",
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os._exit(0)",
        "while True: pass",
        "time.sleep(100)",
    ],
)
def test_a_crash_and_a_hang_are_one_error_and_hinder_no_other_file(
    inspector_that, path: Path, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5_inspection, "_PROCESSOR_SECONDS", 1)
    monkeypatch.setattr(hdf5_inspection, "_SECONDS", 5 if "while" in act else 1)
    inspector_that(act)
    with pytest.raises(CheckpointError, match="crashed on it or came to no end") as caught:
        open_checkpoint(trapped(path))
    assert str(caught.value).startswith(str(path.with_name("trapped.mdl")))
    assert "\n" not in str(caught.value)
    assert_readable(path)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        ("return bytearray(2 << 30)", "MemoryError"),
        ("open('/etc/hostname')", "Too many open files"),
        ("socket.socket()", "Too many open files"),
        ("os.pipe()", "Too many open files"),
        ("return {'attributes': {}, 'headers': {}}", "not a Cerebras checkpoint"),
    ],
)
def test_an_inspector_has_little_memory_and_opens_nothing(inspector_that, path: Path, act: str, message: str) -> None:
    inspector_that(act)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(trapped(path))
    assert_readable(path)


def test_hdf5_is_not_called_in_the_process_that_reads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("the library was called")

    for module, names in [(h5py, ["File", "is_hdf5"]), (h5py.h5f, ["open"]), (h5py.h5d, ["open"])]:
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    assert_readable(path)


def test_threads_open_and_read_at_once(path: Path) -> None:
    with open_checkpoint(path) as checkpoint, ThreadPoolExecutor(8) as pool:

        def read(number: int) -> bool:
            tensor, array = checkpoint.tensors["abcd"[number % 4]], ARRAYS["abcd"[number % 4]]
            start = 7 * number
            return np.array_equal(tensor.read_rows(start, start + 90), array[start : start + 90])

        assert all(pool.map(read, range(30)))
        list(pool.map(assert_readable, [path] * 8))


def test_an_inspector_that_was_killed_is_replaced(path: Path) -> None:
    assert_readable(path)
    inspector = hdf5_inspection._inspector
    assert inspector is not None
    with open_checkpoint(path) as checkpoint:
        os.kill(inspector.process.pid, signal.SIGKILL)
        inspector.process.wait()
        assert_readable(path)
        np.testing.assert_array_equal(checkpoint.tensors["b"].read(), ARRAYS["b"])
    assert hdf5_inspection._inspector is not inspector


def test_an_inspector_started_ahead_answers_the_first_question(path: Path) -> None:
    hdf5_inspection._stop()
    hdf5_inspection.start()
    inspector = hdf5_inspection._inspector
    assert inspector is not None
    hdf5_inspection.start()
    assert_readable(path)
    assert hdf5_inspection._inspector is inspector


def test_one_that_could_not_be_started_ahead_is_an_error_of_the_first_question(  # type: ignore[no-untyped-def]
    path: Path, tmp_path: Path, monkeypatch
) -> None:
    hdf5_inspection._stop()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    hdf5_inspection.start()
    with pytest.raises(CheckpointError, match="No such file"):
        open_checkpoint(path)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    hdf5_inspection.start()
    with pytest.raises(CheckpointError, match="does not import h5py"):
        open_checkpoint(path)
    monkeypatch.undo()
    assert_readable(path)


def test_an_inspector_that_does_not_start_is_an_error(path: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    hdf5_inspection._stop()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="No such file"):
        open_checkpoint(path)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CheckpointError, match="does not import h5py"):
        open_checkpoint(path)
    monkeypatch.undo()
    assert_readable(path)


def test_a_fork_of_the_process_reads_with_an_inspector_of_its_own(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        checkpoint.tensors["a"].read()

        def read() -> None:
            assert hdf5_inspection._inspector is None
            for name, array in ARRAYS.items():
                assert np.array_equal(checkpoint.tensors[name].read(), array)
            assert_readable(path)

        process = multiprocessing.get_context("fork").Process(target=read)
        process.start()
        np.testing.assert_array_equal(checkpoint.tensors["b"].read(), ARRAYS["b"])
        process.join()
        assert process.exitcode == 0
        np.testing.assert_array_equal(checkpoint.tensors["c"].read(), ARRAYS["c"])
    assert_readable(path)


def test_nothing_runs_for_a_checkpoint_that_was_closed(path: Path) -> None:
    inspector = hdf5_inspection._running_inspector(path)
    children = Path(f"/proc/{inspector.process.pid}/task/{inspector.process.pid}/children")
    if not children.exists():
        pytest.skip("this system does not list the children of a process")
    with open_checkpoint(path):
        assert len(children.read_text().split()) == 1
    deadline = time.monotonic() + 10
    while children.read_text().split():
        assert time.monotonic() < deadline
        time.sleep(0.01)
