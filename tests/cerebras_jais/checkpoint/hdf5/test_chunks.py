"""Contract: rows are put together from chunks as HDF5 does it, each chunk unpacked once; a false table is refused."""

import itertools
import zlib
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from cerebras_jais.checkpoint import CheckpointError, open_checkpoint
from cerebras_jais.checkpoint.hdf5 import chunks, describe
from cerebras_jais.checkpoint.hdf5.chunks import ChunkCache, packing_of
from cerebras_jais.checkpoint.hdf5.dataset import table_columns
from tests.cerebras_jais.checkpoint import handmade

RNG = np.random.default_rng(0)
ARRAYS = {
    "wide": RNG.integers(0, 9, (50, 70)).astype(np.float32),
    "cube": RNG.integers(0, 9, (7, 5, 9)).astype(np.int64),
    "vector": np.arange(1000, dtype=np.float16),
    "thin": RNG.random((200, 1)),
}
CHUNKS = {"wide": (16, 30), "cube": (2, 5, 4), "vector": (300,), "thin": (7, 1)}


def write(path: Path, **options: Any) -> Path:
    """Write ARRAYS in chunks, with h5py."""
    with h5py.File(path, "w", libver=options.pop("libver", None)) as file:
        for key, array in ARRAYS.items():
            file.create_dataset(key, data=array, chunks=CHUNKS[key], **options)
        handmade.describe(file, {key: handmade.tensor_metadata(array) for key, array in ARRAYS.items()})
    return path


@pytest.mark.slow
@pytest.mark.parametrize("libver", ["earliest", "v108", "latest"])
@pytest.mark.parametrize(
    "options",
    [
        *({}, hdf5plugin.LZ4(), "shuffled", {"compression": "gzip"}, {"compression": "gzip", "shuffle": True}),
        *({"fletcher32": True}, {"compression": "gzip", "shuffle": True, "fletcher32": True}),
    ],
)
def test_any_rows_of_any_layout_are_what_hdf5_reads(tmp_path: Path, options: Any, libver: str) -> None:
    options = {**hdf5plugin.LZ4(), "shuffle": True} if options == "shuffled" else options
    path = write(tmp_path / "x.mdl", libver=libver, **options)
    with h5py.File(path) as file, open_checkpoint(path) as checkpoint:
        for key, array in ARRAYS.items():
            tensor = checkpoint.tensors[key]
            assert tensor.chunk_rows == CHUNKS[key][0]
            np.testing.assert_array_equal(tensor.read(), array)
            for start, stop in itertools.combinations(range(0, len(array), max(1, len(array) // 9)), 2):
                np.testing.assert_array_equal(tensor.read_rows(start, stop), file[key][start:stop])


def test_each_chunk_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[int] = []
    original = chunks.unpack_chunk
    monkeypatch.setattr(chunks, "unpack_chunk", lambda stored, size: unpacked.append(size) or original(stored, size))
    with open_checkpoint(write(tmp_path / "x.mdl", **hdf5plugin.LZ4())) as checkpoint:
        wide = checkpoint.tensors["wide"]
        wide.read()
        assert unpacked == [16 * 30 * 4] * 12
        unpacked.clear()
        wide.read_rows(15, 33)
        assert len(unpacked) == 9


def test_a_chunk_that_a_filter_was_not_applied_to_is_read_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mdl", compression="gzip", shuffle=True)
    tile = np.full((16, 30), 7, np.float32)
    shuffled = np.frombuffer(tile.tobytes(), np.uint8).reshape(-1, 4).T.tobytes()
    with h5py.File(path, "r+") as file:
        dataset = file["wide"].id
        dataset.write_direct_chunk((0, 0), tile.tobytes(), filter_mask=3)
        dataset.write_direct_chunk((16, 0), shuffled, filter_mask=2)
        dataset.write_direct_chunk((32, 30), zlib.compress(tile.tobytes()), filter_mask=1)
    with h5py.File(path) as file, open_checkpoint(path) as checkpoint:
        expected = file["wide"][()]
        assert (expected == 7).sum() >= 3 * tile.size
        np.testing.assert_array_equal(checkpoint.tensors["wide"].read(), expected)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (zlib.compress(bytes(16 * 30 * 4 + 1)), "1921 bytes instead of 1920"),
        (zlib.compress(bytes(100 << 20)), "does not unpack to 1920"),
        (zlib.compress(bytes(16 * 30 * 4 - 1)), "1919 bytes instead of 1920"),
        (zlib.compress(bytes(16 * 30 * 4))[:-5], "does not unpack"),
        (b"\0" * 40, "not deflate"),
    ],
)
def test_a_chunk_of_another_size_is_refused(tmp_path: Path, stored: bytes, message: str) -> None:
    path = write(tmp_path / "x.mdl", compression="gzip")
    with h5py.File(path, "r+") as file:
        file["wide"].id.write_direct_chunk((16, 30), stored)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["wide"].read_rows(0, 16).shape == (16, 70)
        with pytest.raises(CheckpointError, match=f"'wide' has a damaged chunk: .*{message}"):
            checkpoint.tensors["wide"].read()


FIRST = (0, 0, 20, 6, 0)


def in_order(*rows: tuple[int, ...]) -> tuple[list[int], ...]:
    """Offsets, sizes and masks of the chunks of a dataset [4, 6], from (place, offset, size, mask) of each."""
    table = np.array(rows, np.uint64)
    ordered = describe.in_order((4, 6), (4, 3), table[:, :2].reshape(-1), *table[:, 2:].T)
    return tuple(column.tolist() for column in table_columns(ordered, len(rows), 100))


def test_a_table_is_put_in_order() -> None:
    assert in_order((0, 3, 10, 5, 1), FIRST) == ([20, 10], [6, 5], [0, 1])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ((0, 0, 10, 5, 0), "two chunks at one place"),
        ((0, 1, 10, 5, 0), "a place that it does not have"),
        ((0, 6, 10, 5, 0), "a place that it does not have"),
        ((4, 3, 10, 5, 0), "a place that it does not have"),
        ((2**64 - 4, 3, 10, 5, 0), "a place that it does not have"),
        ((0, 3, 96, 5, 0), "outside the file"),
        ((0, 3, 2**64 - 1, 5, 0), "outside the file"),
        ((0, 3, 2**63 - 1, 2**32 - 1, 0), "outside the file"),
        ((0, 3, 10, 2**64 - 1, 0), "4 GiB or more"),
    ],
)
def test_a_table_that_cannot_be_true_is_refused(second: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        in_order(FIRST, second)


def test_a_table_of_too_few_or_too_many_chunks_is_refused() -> None:
    for rows in ([FIRST], [FIRST] * 3):
        with pytest.raises(ValueError, match=f"has {len(rows)} of 2 chunks"):
            in_order(*rows)
    with pytest.raises(ValueError, match="has 1 of 2 chunks"):
        table_columns(bytes(16), 2, 100)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 1000, 999, 4_000_001])
@pytest.mark.parametrize("byte", [0, 255, None])
def test_the_checksum_is_that_of_hdf5(tmp_path: Path, length: int, byte: int | None) -> None:
    values = RNG.integers(0, 256, length + 1).astype(np.uint8) if byte is None else np.full(length + 1, byte, np.uint8)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file.create_dataset("x", data=values, chunks=values.shape, fletcher32=True)
        _, stored = dataset.id.read_direct_chunk((0,))
    assert bytes(chunks._checked(memoryview(stored))) == values.tobytes()
    for wrong in (stored[:-1] + bytes([stored[-1] ^ 1]), bytes([stored[0] ^ 4]) + stored[1:], stored[:3]):
        with pytest.raises(ValueError, match=r"checksum is wrong|too early"):
            chunks._checked(memoryview(wrong))


def test_unpacked_chunks_are_kept_and_the_oldest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "_CACHE_BYTES", 100)
    cache = ChunkCache()
    tiles = [np.zeros(40, np.uint8) for _ in range(3)]
    for number, tile in enumerate(tiles[:2]):
        cache.keep(number, tile)
    assert cache.get(0) is tiles[0]
    cache.keep(2, tiles[2])
    assert cache.get(1) is None and cache.get(0) is tiles[0] and cache.get(2) is tiles[2]
    large = np.zeros(1000, np.uint8)
    cache.keep(3, large)
    assert cache.get(3) is large and cache.get(0) is None


def test_only_one_packer_perhaps_after_a_true_shuffle_and_before_a_checksum_is_read() -> None:
    lz4, deflate, shuffle = [32004, [0]], [1, [4]], [2, [4]]
    checksum = [3, []]
    for filters in (
        *([], [lz4], [deflate], [shuffle, lz4], [shuffle, deflate], [shuffle]),
        *([checksum], [shuffle, checksum], [deflate, checksum], [shuffle, lz4, checksum]),
    ):
        packing = packing_of(filters, 4)
        assert packing is not None
        assert packing.filters == tuple(code for code, _ in filters)
    assert packing_of([shuffle, lz4], 8) is None
    for filters in ([lz4, lz4], [lz4, shuffle], [checksum, lz4], [checksum, checksum], [[2, []], lz4], [[99, []]]):
        assert packing_of(filters, 4) is None
