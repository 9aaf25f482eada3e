"""Contract: a packed chunk is what the LZ4 filter of HDF5 packs, and no other bytes are taken for one."""

import contextlib
import struct

import h5py
import hdf5plugin
import lz4.block
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebras_jais.checkpoint.hdf5.lz4 import pack_chunk, unpack_chunk

VALUES = np.random.default_rng(0).integers(0, 3, 5000, dtype=np.int64)


@pytest.mark.parametrize("block", [0, 64, 1000, 39_999, 40_000, 40_001])
def test_what_the_filter_packs_is_unpacked(tmp_path, block: int) -> None:  # type: ignore[no-untyped-def]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file.create_dataset("x", data=VALUES, chunks=(5000,), **hdf5plugin.LZ4(nbytes=block))
        _, stored = dataset.id.read_direct_chunk((0,))
    assert bytes(unpack_chunk(stored, VALUES.nbytes)) == VALUES.tobytes()


@pytest.mark.parametrize("values", [VALUES, np.random.default_rng(0).random(700), np.zeros(0), np.zeros(1, "i1")])
def test_packing_is_undone(values: np.ndarray) -> None:
    assert bytes(unpack_chunk(pack_chunk(values), values.nbytes)) == values.tobytes()


GOOD = pack_chunk(VALUES)
BLOCK = GOOD[16:]


def packed(total: int, block: int, *blocks: tuple[int, bytes]) -> bytes:
    return struct.pack(">QI", total, block) + b"".join(struct.pack(">I", size) + data for size, data in blocks)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (b"", "too early"),
        (GOOD[:11], "too early"),
        (GOOD[:15], "too early"),
        (GOOD[:-1], "too early"),
        (packed(1 << 62, 40_000, (len(BLOCK), BLOCK)), "claims to hold"),
        (packed(39_999, 40_000, (len(BLOCK), BLOCK)), "claims to hold"),
        (packed(40_000, 0, (len(BLOCK), BLOCK)), "blocks of 0"),
        (packed(40_000, 40_001, (len(BLOCK), BLOCK)), "blocks of 40001"),
        (packed(40_000, 20_000, (len(BLOCK), BLOCK)), "not LZ4"),
        (packed(40_000, 40_000, (1 << 31, BLOCK)), "too early"),
        (packed(40_000, 40_000, (300, b"\xff" * 300)), "not LZ4"),
        (packed(40_000, 40_000, (9, lz4.block.compress(b"x" * 8, store_size=False)), (0, bytes(300))), "of 8 bytes"),
    ],
)
def test_what_is_not_a_packed_chunk_is_refused(stored: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack_chunk(stored, 40_000)


def test_a_chunk_that_so_few_bytes_cannot_stand_for_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(ValueError, match="too early"):
        unpack_chunk(packed(1 << 45, 1 << 31, (4, b"\0\0\0\0")), 1 << 45)


@given(st.binary(max_size=64), st.integers(0, 2000))
def test_any_bytes_give_the_asked_size_or_an_error(data: bytes, size: int) -> None:
    with contextlib.suppress(ValueError):
        assert len(unpack_chunk(struct.pack(">QI", size, max(size // 2, 1)) + data, size)) == size
