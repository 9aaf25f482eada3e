"""Damage HDF5 training data and read it: `python tests/attacks/data_files.py --count N --seed S`; exit status 1 if bad.

Damage is to bytes, mostly of HDF5's own structures and of chunks; and through h5py: links, virtual datasets, storage in
other files, chunks that were never written, huge shapes, other types and filters, pipes and folders in place of files.
A reader gives the rows that were written, or one DataError of one line that names a file. What only h5py can tell from
damage (a flipped bit of a token) is judged by h5py; what must be refused is never "confirmed" by it.
"""

import os
import random
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

import h5py
import hdf5plugin
import numpy as np

from cerebras_jais.data.dataset import DataParameters, HDF5Samples, write_hdf5
from cerebras_jais.data.documents import DataError
from tests.attacks.mdl import find_structure
from tests.attacks.mutations import Subject, Tensors, main, mutate_bytes

ROWS, FEATURES, LENGTH = 40, 3, 16
CORPUS = "corpus"
MUST_BE_REFUSED = "must-be-refused"
CASES = {
    "contiguous": {},
    "wide": {"dtype": "i8"},
    "big-endian": {"dtype": ">i4"},
    "plain-chunks": {"chunks": (7, 2, 5)},
    "checked": {"chunks": (1, FEATURES, LENGTH), "compression": "gzip", "shuffle": True, "fletcher32": True},
    "lz4": {"chunks": (4, FEATURES, LENGTH), **hdf5plugin.LZ4()},
    "fixed-array": {"libver": "latest", "chunks": (1, FEATURES, LENGTH), "compression": "gzip"},
    "extensible-array": {"libver": "latest", "chunks": (1, FEATURES, LENGTH), "maxshape": (None, FEATURES, LENGTH)},
    "btree-2": {"libver": "latest", "chunks": (3, FEATURES, LENGTH), "maxshape": (None, None, LENGTH)},
    "single-chunk": {"libver": "latest", "chunks": (ROWS, FEATURES, LENGTH), "compression": "gzip"},
    CORPUS: {"chunks": (100,), "compression": "gzip"},
}


def rows_of(number: int) -> np.ndarray:
    """The rows of a file, int32 [ROWS, FEATURES, LENGTH]: a token says where it is."""
    return (np.arange(ROWS * FEATURES * LENGTH) + 10_000 * number).reshape(ROWS, FEATURES, LENGTH).astype(np.int32)


def make_subject(directory: Path) -> Subject:
    """The folders to damage: two files each, of every layout, and what our own writer makes."""
    for name, options in CASES.items():
        (directory / name).mkdir(parents=True)
        for number in range(2):
            kept = dict(options)
            rows = rows_of(number).astype(kept.pop("dtype", "i4"))
            with h5py.File(directory / name / f"{number}.h5", "w", libver=kept.pop("libver", None)) as file:
                file.create_dataset("data", data=rows.reshape(-1) if name == CORPUS else rows, **kept)
    parameters = DataParameters(vocab_size=20_000, eos_id=0, pad_id=0)
    write_hdf5(directory / "ours", (row for n in range(2) for row in rows_of(n)), metadata=parameters)
    cases = (*(directory / name for name in CASES), directory / "ours")
    return Subject(cases, mutate, open_model, read_with_h5py, DataError)


class Samples:
    """All samples of a folder, read one by one and at once, which must be equal; and a refusal as it is to be."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self) -> np.ndarray:
        try:
            samples = HDF5Samples(
                self._directory, 1, max_sequence_length=LENGTH if is_corpus(self._directory) else None
            )
            blocks = [samples.read(np.array([index])) for index in range(len(samples))][::-1]
            whole = samples.read(np.arange(len(samples)))
            samples.close()
        except DataError as error:
            if "\n" in str(error) or str(self._directory) not in str(error):
                raise AssertionError("not one line that names a file") from error
            raise
        assert not (self._directory / MUST_BE_REFUSED).exists(), "this must be refused"
        for name, values in whole.items():
            assert np.array_equal(values, np.concatenate([block[name] for block in reversed(blocks)])), name
        return np.stack([whole[name] for name in samples.features], axis=1)


def is_corpus(directory: Path) -> bool:
    return (directory / CORPUS).exists()


def open_model(directory: Path) -> dict[str, Samples]:
    if directory.name == CORPUS:  # before it is copied
        (directory / CORPUS).touch()
    return {"rows": Samples(directory)}


def read_with_h5py(directory: Path) -> Tensors:
    """The samples by h5py; of a corpus, cut as the Model Zoo cuts it."""
    parts = []
    for path in sorted(directory.glob("*.h5")):
        with h5py.File(path) as file:
            parts.append(file["data"][()])
    data = np.concatenate(parts)
    if is_corpus(directory):
        count = (len(data) - 1) // LENGTH
        rows = np.ones((count, FEATURES, LENGTH), np.int32)
        rows[:, 0] = data[: count * LENGTH].reshape(count, LENGTH)
        rows[:, 2] = data[1 : count * LENGTH + 1].reshape(count, LENGTH)
        data = rows
    data = data.astype(np.int32)
    return {"rows": (data.dtype.name, data.shape, data.tobytes())}


# ---- damage ---------------------------------------------------------------------------------------------------------


def mutate(draw: random.Random, directory: Path) -> None:
    path = draw.choice(sorted(directory.glob("*.h5")))
    if draw.random() < 0.6:
        path.write_bytes(mutate_bytes(draw, path.read_bytes(), find_structure(path)))
        return
    act = draw.choice((*IN_A_FILE, *OF_A_FILE))
    if act in OF_A_FILE:
        must_be_refused = act(draw, path)
    else:
        with h5py.File(path, "r+") as file:
            must_be_refused = act(draw, file)
    if must_be_refused:
        (directory / MUST_BE_REFUSED).touch()


def _soft_link(_: random.Random, file: h5py.File) -> bool:
    file.move("data", "other")
    file["data"] = h5py.SoftLink(f"/{_.choice(('other', 'data', 'nowhere'))}")
    return True


def _external_link(draw: random.Random, file: h5py.File) -> bool:
    del file["data"]
    target = draw.choice((Path(file.filename).with_name("1.h5"), file.filename, "/etc/passwd", "/dev/zero"))
    file["data"] = h5py.ExternalLink(str(target), "/data")
    return True


def _virtual(draw: random.Random, file: h5py.File) -> bool:
    shape, dtype = file["data"].shape, file["data"].dtype
    del file["data"]
    layout = h5py.VirtualLayout(shape, dtype)
    target = draw.choice((".", file.filename, str(Path(file.filename).with_name("1.h5")), "/dev/zero"))
    layout[...] = h5py.VirtualSource(target, "data", shape)
    file.create_virtual_dataset("data", layout)
    return True


def _external_storage(draw: random.Random, file: h5py.File) -> bool:
    shape = file["data"].shape
    del file["data"]
    target = draw.choice(("/etc/passwd", "/dev/zero", file.filename))
    file.create_dataset("data", shape, "i4", external=[(target, 0, h5py.h5f.UNLIMITED)])
    return True


def _never_written(draw: random.Random, file: h5py.File) -> bool:
    data = file["data"][()]
    del file["data"]
    options = draw.choice(
        ({}, {"chunks": (4, *data.shape[1:])}, {"chunks": (4, *data.shape[1:]), "compression": "gzip"})
    )
    made = file.create_dataset("data", data.shape, "i4", fillvalue=draw.choice((None, 0, 7)), **options)
    if options and draw.random() < 0.7:
        made[8:] = data[8:]
    return True


def _huge(draw: random.Random, file: h5py.File) -> bool:
    tail = file["data"].shape[1:]
    del file["data"]
    shape, chunks = draw.choice(
        (
            ((1 << 40, *tail), (1, *tail)),
            ((1 << 40, *tail), (1 << 20, *tail)),
            ((1 << 26, *tail), None),
            ((2, *((FEATURES, 1 << 30) if tail else ())), None),
        )
    )
    file.create_dataset("data", shape, "i4", chunks=chunks, compression="gzip" if chunks else None)
    return True


def _one_huge_chunk(_: random.Random, file: h5py.File) -> bool:
    del file["data"]
    made = file.create_dataset(
        "data", (2, FEATURES, LENGTH), "i4", maxshape=(None, FEATURES, None), chunks=(2, 3, 1 << 26)
    )
    made.id.write_direct_chunk((0, 0, 0), b"x" * 1000)
    return True


def _other_type(draw: random.Random, file: h5py.File) -> bool:
    data = file["data"][()]
    del file["data"]
    kind = draw.choice(
        ("f4", "S3", "c8", h5py.string_dtype(), np.dtype([("a", "i4")]), h5py.enum_dtype({"a": 1}), bool)
    )
    if kind in ("f4", "S3", "c8"):
        file.create_dataset("data", data=data.astype(kind))
    else:
        file.create_dataset("data", data.shape, kind)
    return True


def _other_rank(draw: random.Random, file: h5py.File) -> bool:
    data = file["data"][()]
    del file["data"]
    match draw.randrange(5):
        case 0:
            file.create_group("data")
        case 1:
            file["data"] = h5py.Empty("i4")
        case 2:
            file["data"] = data.reshape(2, -1)
        case 3:
            file["data"] = np.int32(3)
        case _:
            file["data"] = data.reshape(-1)[: data.size // 2].reshape(-1, 5, 8)
    return True


def _other_filter(draw: random.Random, file: h5py.File) -> bool:
    data = file["data"][()]
    del file["data"]
    options = draw.choice(
        ({"compression": "lzf"}, {"scaleoffset": 0}, dict(hdf5plugin.Zstd()), dict(hdf5plugin.Blosc()))
    )
    file.create_dataset("data", data=data, chunks=(4, *data.shape[1:]), **options)
    return True


def _rewritten(draw: random.Random, file: h5py.File) -> bool:
    """The same rows in another layout: these are to be read."""
    data = file["data"][()]
    del file["data"]
    chunks = (draw.choice((1, 3, len(data))), *data.shape[1:])
    options: dict = draw.choice(
        ({}, {"chunks": True}, {"chunks": chunks, "compression": "gzip", "compression_opts": 9}, {"chunks": chunks})
    )
    file.create_dataset("data", data=data, **options)
    file.create_dataset("more", data=np.arange(1000))
    return False


def _chunk_damaged(draw: random.Random, file: h5py.File) -> bool:
    data = file["data"].id
    if data.get_create_plist().get_layout() != h5py.h5d.CHUNKED:
        return False
    chunk = data.get_chunk_info(draw.randrange(data.get_num_chunks()))
    stored = data.read_direct_chunk(chunk.chunk_offset)[1]
    wrong = draw.choice(
        (stored[:-1], stored[: len(stored) // 2], stored[:1], stored + b"\0", draw.randbytes(len(stored)))
    )
    filtered = data.get_create_plist().get_nfilters() > 0
    wrong = wrong if filtered else wrong[: len(stored)]
    # Where nothing packs a chunk any bytes are values, and its size is not stored. What comes after the end of deflate
    # data is no damage.
    must = filtered and wrong[: len(stored)] != stored
    data.write_direct_chunk(chunk.chunk_offset, wrong, filter_mask=0)
    return must


def _cut(draw: random.Random, path: Path) -> bool:
    os.truncate(path, draw.randrange(path.stat().st_size))
    return True


def _pipe(_: random.Random, path: Path) -> bool:
    path.unlink()
    os.mkfifo(path)
    return True


def _folder(_: random.Random, path: Path) -> bool:
    path.unlink()
    path.mkdir()
    return True


def _link(draw: random.Random, path: Path) -> bool:
    target = draw.choice(("elsewhere", "loop", "/dev/zero", "/nowhere"))
    if target == "elsewhere":
        (path.parent / "kept").mkdir()
        path = path.rename(path.parent / "kept" / path.name)
        (path.parents[1] / path.name).symlink_to(path)
        return False
    path.unlink()
    path.symlink_to(path.name if target == "loop" else target)
    return True


IN_A_FILE = (
    *(_soft_link, _external_link, _virtual, _external_storage, _never_written, _huge, _one_huge_chunk),
    *(_other_type, _other_rank, _other_filter, _rewritten, _chunk_damaged, _chunk_damaged),
)
OF_A_FILE = (_cut, _pipe, _folder, _link)


if __name__ == "__main__":
    main(make_subject)
