"""Contract: only a child process meets a file that is read; whatever happens to it is one error here.

The child has limits on memory and time and opens nothing that a file points to; one child describes all files of a
command, in order, and the reader of a file takes a description only of the very file that it opened.
"""

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from cerebras_jais.checkpoint import CheckpointError, open_checkpoint, reader, save_checkpoint
from cerebras_jais.checkpoint.hdf5 import dataset, describe, isolate
from cerebras_jais.checkpoint.hdf5.isolate import Descriptions
from tests.process import children

ARRAYS = {name: np.arange(90_000, dtype=np.float32).reshape(300, 300) * i for i, name in enumerate("abcd")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "x.mdl", ARRAYS, compression="lz4")
    os.utime(tmp_path / "x.mdl")  # as if another process had written it
    return tmp_path / "x.mdl"


def assert_readable(path: Path, descriptions: Descriptions | None = None) -> None:
    with open_checkpoint(path, descriptions=descriptions) as checkpoint:
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(checkpoint.tensors[name].read(), array)


def trapped(path: Path) -> Path:
    """Copy the file and give it the attribute "trap"."""
    copy = path.with_name("trapped.mdl")
    shutil.copy(path, copy)
    with h5py.File(copy, "r+") as file:
        file.attrs["trap"] = True
    return copy


@pytest.fixture
def child_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give a function that puts a program in place which does this when a file has the attribute "trap"."""

    def use(act: str) -> None:
        program = tmp_path / "child.py"
        program.write_text(
            "import importlib.util, os, signal, socket, sys, time\n"
            f"spec = importlib.util.spec_from_file_location('real', {describe.__file__!r})\n"
            "real = importlib.util.module_from_spec(spec)\n"
            "spec.loader.exec_module(real)\n"
            "original = real.describe\n"
            "def trap(file, *rest):\n"
            f"    if 'trap' in file.attrs:\n        {act}\n"
            "    return original(file, *rest)\n"
            "real.describe = trap\n"
            "real.main()\n"
        )
        monkeypatch.setattr(isolate, "_PROGRAM", program)

    return use


@pytest.mark.slow
@pytest.mark.parametrize(
    "act",
    [
        "os.abort()",
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os._exit(0)",
        "while True: pass",
        # The alarm that is set comes sooner: a limit of a second would be too short for the start on a busy machine.
        "assert signal.setitimer(signal.ITIMER_REAL, 0.1)[0] > 0; time.sleep(600)",
    ],
)
def test_a_crash_and_a_hang_are_one_error_and_hinder_no_other_child(
    child_that: Callable[[str], None], path: Path, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_that(act)
    monkeypatch.setattr(isolate, "_PROCESSOR_SECONDS", 1)
    with pytest.raises(CheckpointError, match="reading it crashed or timed out; the file is damaged") as caught:
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
        ("return {'attributes': {}, 'datasets': {}}, []", "not a Cerebras checkpoint"),
        ("return {'attributes': {}}, []", "reading it crashed"),
        ("sys.stdout.buffer.write(b'x' * 10000)", "more structure than is read"),
    ],
)
def test_a_child_has_little_memory_and_opens_nothing_and_its_answer_is_judged(
    child_that: Callable[[str], None], path: Path, act: str, message: str
) -> None:
    child_that(act)
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


def test_a_program_that_reads_does_not_import_h5py(path: Path) -> None:
    code = f"""
import sys
from cerebras_jais.checkpoint import open_checkpoint
with open_checkpoint({str(path)!r}) as checkpoint:
    checkpoint.tensors["b"].read()
print("h5py" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.slow
def test_threads_open_and_read_at_once(path: Path) -> None:
    with open_checkpoint(path) as checkpoint, ThreadPoolExecutor(8) as pool:

        def read(number: int) -> bool:
            tensor, array = checkpoint.tensors["abcd"[number % 4]], ARRAYS["abcd"[number % 4]]
            start = 7 * number
            return np.array_equal(tensor.read_rows(start, start + 90), array[start : start + 90])

        assert all(pool.map(read, range(30)))
        list(pool.map(assert_readable, [path] * 8))


def test_one_child_describes_all_files_of_a_command_for_whoever_asks(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = [Path(shutil.copy(path, path.with_name(f"{number}.mdl"))) for number in range(5)]
    with Descriptions([*copies, copies[0]]) as descriptions:
        monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a second child was started"))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda copy: assert_readable(copy, descriptions), reversed(copies * 2)))


def test_only_the_datasets_asked_for_are_described(path: Path) -> None:
    damaged = path.with_name("damaged.mdl")
    damaged.write_bytes(path.read_bytes()[:3000])
    with Descriptions([path, damaged], ["a", "missing"]) as descriptions:
        first = descriptions.of(path)
        assert list(first.datasets) == ["a", "missing"] and not first.attributes
        assert first.datasets["missing"] == {"problem": "missing"}
        with pytest.raises(ValueError, match="HDF5 cannot read it"):
            descriptions.of(damaged)


def test_files_after_one_that_crashed_are_described_by_another_child(
    child_that: Callable[[str], None], path: Path
) -> None:
    child_that("os.abort()")
    trap = trapped(path)
    with Descriptions([trap, path]) as descriptions:
        assert_readable(path, descriptions)
        with pytest.raises(ValueError, match="reading it crashed"):
            descriptions.of(trap)


def test_a_description_of_another_file_of_that_name_is_not_taken(path: Path) -> None:
    with Descriptions([path]) as descriptions:
        descriptions.of(path)
        other = path.with_name("other.mdl")
        shutil.copy(path, other)
        os.replace(other, path)
        with pytest.raises(CheckpointError, match="changed while it was read"):
            open_checkpoint(path, descriptions=descriptions)
    assert_readable(path)


def test_a_pipe_that_takes_the_place_of_a_file_holds_nobody_up(path: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with Descriptions([tmp_path / "pipe"]) as descriptions, pytest.raises(ValueError, match="not a regular file"):
        descriptions.of(tmp_path / "pipe")


def test_a_child_that_does_not_start_is_an_error(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="No such file"):
        open_checkpoint(path)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CheckpointError, match="does not import h5py"):
        open_checkpoint(path)
    monkeypatch.undo()
    assert_readable(path)


def test_a_fork_of_the_process_reads_too(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:

        def read() -> None:
            for name, array in ARRAYS.items():
                assert np.array_equal(checkpoint.tensors[name].read(), array)
            assert_readable(path)

        process = multiprocessing.get_context("fork").Process(target=read)
        process.start()
        np.testing.assert_array_equal(checkpoint.tensors["b"].read(), ARRAYS["b"])
        process.join()
        assert process.exitcode == 0


def test_no_child_is_left(path: Path) -> None:
    before = children()  # of tests before, which may end meanwhile
    with open_checkpoint(path):
        assert children() <= before
    Descriptions([path] * 3).close()
    assert children() <= before


def test_a_file_that_this_process_has_written_needs_no_child_until_it_changes(tmp_path, monkeypatch) -> None:
    path = tmp_path / "own.mdl"
    save_checkpoint(path, ARRAYS, compression="lz4")
    started: list[object] = []
    monkeypatch.setattr(isolate.Descriptions, "_start", lambda self: started.append(self))
    assert_readable(path)
    assert not started
    os.utime(path, ns=(0, 0))
    with pytest.raises(AssertionError), open_checkpoint(path):  # no child answers
        pass
    assert len(started) == 1


@pytest.mark.parametrize("damaged", [slice(8, 96), slice(96, 800), slice(8, 4096)], ids=str)
def test_damage_that_kept_size_and_time_of_a_file_that_this_process_has_written_is_one_error(tmp_path, damaged) -> None:
    path = tmp_path / "own.mdl"
    save_checkpoint(path, ARRAYS)
    found = path.stat()
    content = bytearray(path.read_bytes())
    content[damaged] = bytes(damaged.stop - damaged.start)
    path.write_bytes(content)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    with pytest.raises(CheckpointError, match=r"own\.mdl"), open_checkpoint(path):
        pass


def test_the_child_which_imports_nothing_of_the_package_has_the_same_format() -> None:
    assert describe.SIZES.format == isolate._SIZES.format
    assert describe.ABOUT == reader.ABOUT
    assert (describe.CHUNK_BYTES, describe.LEAST_PER_CHUNK) == (dataset._CHUNK_BYTES, dataset._LEAST_PER_CHUNK)
