"""Contract: packed tensors are filled by rectangles, from several threads, into a file that HDF5 itself reads back."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  # h5py needs it to unpack
import ml_dtypes
import numpy as np
import pytest

from cerebras_jais.checkpoint import (
    CheckpointError,
    LazyTensor,
    create_empty_checkpoint,
    mark_complete,
    open_checkpoint,
    save_checkpoint,
)
from cerebras_jais.checkpoint.packed_writer import filling

RNG = np.random.default_rng(0)
STATE = {
    "wide": RNG.standard_normal((300, 700)).astype(np.float32),
    "brain": RNG.standard_normal((513, 256)).astype(ml_dtypes.bfloat16),
    "cube": RNG.standard_normal((3, 260, 5)),
    "vector": np.arange(70_000),
    "small": np.ones((2, 3), np.float16),
}
PLACES = {key: LazyTensor(array.shape, array.dtype.name) for key, array in STATE.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.mdl"


def rectangles(array: np.ndarray) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Cut an array into bands of 256 of its last axes, as a converter may."""
    if array.ndim == 1:
        return [((start,), array[start : start + 65_536]) for start in range(0, len(array), 65_536)]
    if array.ndim == 3:
        return [((i, 0, 0), array[i : i + 1]) for i in range(len(array))]
    return [
        ((row, column), array[row : row + 256, column : column + 512])
        for row in range(0, array.shape[0], 256)
        for column in range(0, array.shape[1], 512)
    ]


def test_rectangles_written_by_threads_are_read_back_by_hdf5_and_by_us(path: Path) -> None:
    state = PLACES | {"zero": np.array(1.5), "empty": np.zeros((0, 4)), "step": 3}
    offsets = create_empty_checkpoint(path, state, compression="lz4")
    assert list(offsets) == ["zero"]
    with open(path, "r+b") as file:
        file.seek(offsets["zero"])
        file.write(np.array(1.5).tobytes())
    with filling(path) as filler, ThreadPoolExecutor(4) as pool:
        tasks = [(key, at, part) for key, array in STATE.items() for at, part in rectangles(array)]
        list(pool.map(lambda task: filler.write(*task), tasks))
    mark_complete(path)
    with h5py.File(path) as file:
        assert file["wide"].chunks == (256, 256)
        assert file["vector"].chunks == (65_536,)
        assert file["cube"].chunks == (1, 256, 5)
        assert file["small"].chunks == (2, 3)
        for key, array in STATE.items():
            assert file[key][()].tobytes() == array.tobytes()
    with open_checkpoint(path) as checkpoint:
        for key, array in STATE.items():
            assert checkpoint.tensors[key].read().tobytes() == array.tobytes()


def test_one_state_is_laid_out_and_saved_in_the_same_bytes(tmp_path: Path) -> None:
    create_empty_checkpoint(tmp_path / "a", PLACES, compression="lz4")
    create_empty_checkpoint(tmp_path / "b", PLACES, compression="lz4")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    save_checkpoint(tmp_path / "c", STATE, compression="lz4")
    save_checkpoint(tmp_path / "d", STATE, compression="lz4")
    assert (tmp_path / "c").read_bytes() == (tmp_path / "d").read_bytes()


def test_a_file_not_wholly_filled_is_refused(path: Path) -> None:
    create_empty_checkpoint(path, PLACES, compression="lz4")
    with filling(path) as filler:
        filler.write("wide", (0, 0), STATE["wide"][:256])
    mark_complete(path)
    with pytest.raises(CheckpointError, match="'wide' has 3 of 6 chunks"), open_checkpoint(path) as checkpoint:
        checkpoint.tensors["wide"].read()


@pytest.mark.parametrize(
    ("key", "at", "part", "message"),
    [
        ("wide", (1, 0), np.s_[1:256], "does not fit"),
        ("wide", (0, 0), np.s_[:255], "does not fit"),
        ("wide", (256, 256), np.s_[:], "does not fit"),
        ("wide", (0,), np.s_[:], "does not fit"),
        ("ghost", (0, 0), np.s_[:], "no tensor 'ghost'"),
        ("brain", (0, 0), np.s_[:], "does not fit"),
    ],
)
def test_a_rectangle_that_does_not_fit_is_refused(path: Path, key: str, at: tuple, part: slice, message: str) -> None:
    create_empty_checkpoint(path, PLACES, compression="lz4")
    with filling(path) as filler, pytest.raises(CheckpointError, match=message):
        filler.write(key, at, STATE["wide"][part])


def test_a_tensor_that_is_not_packed_is_refused(path: Path) -> None:
    create_empty_checkpoint(path, PLACES)
    with filling(path) as filler, pytest.raises(CheckpointError, match="is not packed"):
        filler.write("wide", (0, 0), STATE["wide"])
