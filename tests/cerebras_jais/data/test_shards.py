"""Data files are described by a child and read without HDF5.

Contract: files of every layout that HDF5 writers make are read exactly, whatever the version; a file that is damaged,
incomplete, or leads out of itself is one DataError of one line that names it, before or when its rows are read.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from cerebras_jais.data.dataset import HDF5Samples
from cerebras_jais.data.documents import DataError
from tests.process import open_files

ROWS = np.arange(60 * 3 * 8, dtype=np.int32).reshape(60, 3, 8)
ONE = (1, 3, 8)


def write(file: Path, rows: np.ndarray = ROWS, *, libver: str | None = None, **options: Any) -> Path:
    with h5py.File(file, "w", libver=libver) as made:
        made.create_dataset("data", data=rows, **options)
    return file


def read_all(folder: Path) -> np.ndarray:
    samples = HDF5Samples(folder, 1)
    batch = samples.read(np.random.default_rng(0).permutation(len(samples)))
    samples.close()
    rows = np.stack([batch[name] for name in samples.features], axis=1)
    return rows[np.argsort(np.random.default_rng(0).permutation(len(samples)))]


@pytest.mark.slow
@pytest.mark.parametrize("libver", ["earliest", "v108", "latest"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": ONE},
        {"chunks": ONE, "compression": "gzip"},  # as the Model Zoo's preprocessing and `data pack` write
        {"chunks": ONE, "compression": "gzip", "maxshape": (None, 3, 8)},
        {"chunks": (7, 2, 5), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": (7, 2, 5), "maxshape": (None, None, 8)},
        {"chunks": ROWS.shape, "compression": "gzip"},
        {"chunks": True, "compression": "gzip"},
        {"chunks": ONE, **hdf5plugin.LZ4()},
    ],
)
def test_every_layout_is_read_exactly(tmp_path: Path, libver: str, options: dict[str, Any]) -> None:
    write(tmp_path / "a.h5", libver=libver, **options)
    np.testing.assert_array_equal(read_all(tmp_path), ROWS)


@pytest.mark.parametrize("dtype", ["u2", "i8", ">i4", ">u8"])
def test_integers_of_any_kind_are_read(tmp_path: Path, dtype: str) -> None:
    write(tmp_path / "a.h5", ROWS.astype(dtype), chunks=ONE)
    np.testing.assert_array_equal(read_all(tmp_path), ROWS)


def test_files_that_the_model_zoo_appended_to_are_read(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", ROWS[:20], chunks=ONE, maxshape=(None, 3, 8), compression="gzip")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["data"].resize((60, 3, 8))
        file["data"][20:] = ROWS[20:]
    np.testing.assert_array_equal(read_all(tmp_path), ROWS)


def test_more_files_than_are_kept_open_are_read_by_one_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(70):
        write(tmp_path / f"{number:02}.h5", ROWS[number % 50 :][:3] + number)
    started: list[Any] = []
    original = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **more: started.append(words) or original(*words, **more))
    samples = HDF5Samples(tmp_path, 1)
    for index in np.random.default_rng(1).permutation(210):
        expected = (ROWS[index // 3 % 50 :][:3] + index // 3)[index % 3]
        np.testing.assert_array_equal(samples.read(np.array([index]))["labels"][0], expected[2])
    assert len(started) == 1
    assert 0 < len(open_files(tmp_path)) < 70 or not sys.platform.startswith("linux")
    del samples
    assert not open_files(tmp_path)


# ---- refused when the headers are read -------------------------------------------------------------------------------


def _soft_link(file: h5py.File) -> None:
    file.move("data", "other")
    file["data"] = h5py.SoftLink("/other")


def _external_link(file: h5py.File) -> None:
    write(Path(file.filename).with_suffix(".other"))
    del file["data"]
    file["data"] = h5py.ExternalLink(Path(file.filename).with_suffix(".other").name, "/data")


def _virtual_of_itself(file: h5py.File) -> None:
    del file["data"]
    layout = h5py.VirtualLayout(ROWS.shape, "i4")
    layout[...] = h5py.VirtualSource(".", "data", ROWS.shape)
    file.create_virtual_dataset("data", layout)


def _external_storage(file: h5py.File) -> None:
    del file["data"]
    file.create_dataset("data", ROWS.shape, "i4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def _never_written(file: h5py.File) -> None:
    del file["data"]
    file["other"] = ROWS
    file.create_dataset("data", ROWS.shape, "i4")


def _chunk_never_written(file: h5py.File) -> None:
    del file["data"]
    file.create_dataset("data", ROWS.shape, "i4", chunks=ONE, compression="gzip")[:59] = ROWS[:59]


def _rows_beyond_number(file: h5py.File) -> None:
    del file["data"]
    file.create_dataset("data", (1 << 40, 3, 8), "i4", chunks=ONE, compression="gzip")


def _large_chunk(file: h5py.File) -> None:
    del file["data"]
    made = file.create_dataset(
        "data", (1, 3, 8), "i4", chunks=(1, 3, 1 << 25), maxshape=(1, 3, None), compression="gzip"
    )
    made.id.write_direct_chunk((0, 0, 0), bytes(1 << 20))


def _floats(file: h5py.File) -> None:
    del file["data"]
    file["data"] = ROWS.astype("f4")


def _unknown_filter(file: h5py.File) -> None:
    del file["data"]
    file.create_dataset("data", data=ROWS, compression="lzf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_soft_link, "is a soft or external link, which is not followed"),
        (_external_link, "is a soft or external link, which is not followed"),
        (_virtual_of_itself, "has its data in another file"),
        (_external_storage, "has its data in another file"),
        (_never_written, "was never written"),
        (_chunk_never_written, "has 59 of 60 chunks; the file is incomplete"),
        (_rows_beyond_number, "claims the shape (1099511627776, 3, 8)"),
        (_large_chunk, "has chunks of 384 MiB"),
        (_floats, "`data` is float32 of shape (60, 3, 8); expected integers"),
        (_unknown_filter, "unknown filter 32000"),
    ],
)
def test_a_file_that_is_incomplete_or_leads_out_of_itself_is_refused(
    tmp_path: Path, change: Callable[[h5py.File], None], message: str
) -> None:
    write(tmp_path / "a.h5")
    with h5py.File(write(tmp_path / "b.h5"), "r+") as file:
        change(file)
    with pytest.raises(DataError) as caught:
        HDF5Samples(tmp_path, 1)
    assert str(caught.value).startswith(f"{tmp_path / 'b.h5'}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value) and ";" in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.h5")
    with pytest.raises(DataError, match=r"a\.h5: is not a regular file"):
        HDF5Samples(tmp_path, 1)


# ---- refused when rows are read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"fletcher32": True}, hdf5plugin.LZ4()])
def test_a_damaged_chunk_is_one_error_that_names_file_and_rows(tmp_path: Path, options: Any) -> None:
    write(tmp_path / "a.h5", chunks=(4, 3, 8), **options)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        chunk = file["data"].id.get_chunk_info(5)
    content = bytearray((tmp_path / "a.h5").read_bytes())
    content[chunk.byte_offset + 14] ^= 255
    (tmp_path / "a.h5").write_bytes(content)
    samples = HDF5Samples(tmp_path, 1)
    np.testing.assert_array_equal(samples.read(np.arange(20))["labels"], ROWS[:20, 2])
    with pytest.raises(
        DataError, match=r"a\.h5: rows 22 to 22 of `data` cannot be read: .*; restore the file"
    ) as caught:
        samples.read(np.array([22]))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_changed_after_its_headers_were_read_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", chunks=ONE)
    samples = HDF5Samples(tmp_path, 1)
    samples.read(np.arange(3))
    samples.close()
    write(tmp_path / "a.h5", ROWS + 1, chunks=ONE)
    with pytest.raises(DataError, match=r"a\.h5: changed after its headers were read"):
        samples.read(np.arange(3))
