"""Contract: a damaged, incomplete or hostile file ends in one CheckpointError of one line that names the file."""

import contextlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cerebras_jais.checkpoint import CheckpointError, open_checkpoint, save_checkpoint
from cerebras_jais.checkpoint.hdf5 import isolate
from cerebras_jais.checkpoint.hdf5.isolate import Descriptions
from tests.cerebras_jais.checkpoint import handmade, written_by_cerebras

pytestmark = pytest.mark.slow

GOOD = np.arange(6, dtype=np.float32).reshape(2, 3)
ABOUT = handmade.tensor_metadata(GOOD)


def read_all(path: Path, descriptions: Descriptions | None = None) -> None:
    """Open the file and read every tensor."""
    with open_checkpoint(path, descriptions=descriptions) as checkpoint:
        for tensor in checkpoint.tensors.values():
            tensor.read()


def refusal(path: Path, descriptions: Descriptions | None = None) -> str:
    """Open the file and read every tensor; return the message of the error that must come."""
    with pytest.raises(CheckpointError) as caught:
        read_all(path, descriptions)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.mdl"


def test_a_missing_file_a_directory_and_other_formats_are_named(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.mdl")
    assert "is a directory" in refusal(tmp_path)
    other = tmp_path / "other"
    other.write_bytes(b"PK\x03\x04 not this")
    assert "not an HDF5 file" in refusal(other)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["data"] = GOOD
    assert "not a Cerebras checkpoint" in refusal(tmp_path / "data.h5")
    with pytest.raises(CheckpointError, match="local files"):
        open_checkpoint("s3://bucket/x.mdl")


@pytest.mark.parametrize("origin", ["ours", "packed", "cerebras"])
def test_a_file_cut_anywhere_is_refused(path: Path, origin: str) -> None:
    if origin == "cerebras":
        path.write_bytes(written_by_cerebras.PATH.read_bytes())
    else:
        state = {"model": {f"w{i}": np.full((40, 40), i, np.float32) for i in range(4)}, "step": 3}
        save_checkpoint(path, state, compression="lz4" if origin == "packed" else None)
    data = path.read_bytes()
    cut = {size: path.with_name(f"{size}.mdl") for size in {0, 1, 8, 100, *range(1, len(data), len(data) // 40)}}
    for size, shorter in cut.items():
        shorter.write_bytes(data[:size])
    with Descriptions(list(cut.values())) as descriptions:
        for shorter in cut.values():
            refusal(shorter, descriptions)


@pytest.mark.slow
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_flipped_bytes_are_refused_or_read_but_never_another_error(tmp_path: Path, data: st.DataObject) -> None:
    if not (original := tmp_path / "original.mdl").exists():
        save_checkpoint(original, {"model": {"w": GOOD, "tied": GOOD}, "list": [1, "x", None]})
    paths = [tmp_path / f"{number}.mdl" for number in range(15)]
    for path in paths:
        content = bytearray(original.read_bytes())
        used = [place for place, byte in enumerate(content) if byte]
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.sampled_from(used))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
    with Descriptions(paths) as descriptions:
        for path in paths:
            with contextlib.suppress(CheckpointError):
                read_all(path, descriptions)


@pytest.mark.slow
def test_a_heap_of_texts_in_which_hdf5_never_comes_to_an_end_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolate, "_PROCESSOR_SECONDS", 1)
    save_checkpoint(path, {"a": GOOD})
    content = bytearray(path.read_bytes())
    first_size = content.index(b"GCOL") + 16 + 8
    content[first_size : first_size + 8] = (2**64 - 16).to_bytes(8, "little")  # with its header of 16 it steps by 0
    path.write_bytes(content)
    assert "reading it crashed or timed out" in refusal(path)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"__SUCCESS__": None}, "only partly written"),
        ({"__SUCCESS__": False}, "only partly written"),
        ({"__version__": 0.4}, "old format 0.4"),
        ({"__version__": None}, "old format"),
        ({"__version__": "80049"}, "old format"),
        ({"__version__": 0.6}, "format 0.6"),
        ({"__version__": np.arange(3.0)}, "neither a text nor a number"),
        ({"__spec__": np.zeros(4)}, "neither a text nor a number"),
        ({"__spec__": "{"}, "reading its structure"),
        ({"__spec__": "[1]"}, "reading its structure"),
        ({"__spec__": "[" * 100_000}, "reading its structure"),
        ({"__spec__": json.dumps([None, json.dumps([1, handmade.LEAF])])}, "single value"),
        ({"spec": handmade.tree_spec(["a", "ghost"])}, "has no metadata for 'ghost'"),
        ({"a.__metadata__": "[]"}, "reading the description of 'a'"),
        ({"a.__metadata__": "{}"}, "reading the description of 'a'"),
        ({"a.__metadata__": 3.0}, "has no metadata for 'a'"),
    ],
)
def test_a_damaged_description_is_refused(path: Path, attributes: dict, message: str) -> None:
    assert message in refusal(handmade.write(path, {"a": GOOD}, **attributes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("about", "message"),
    [
        (ABOUT | {"shapes": [[3, 2]]}, "float32 [3, 2] but its data is float32 [2, 3]"),
        (ABOUT | {"dtypes": ["torch.float16"]}, "float16 [2, 3] but its data is float32 [2, 3]"),
        (ABOUT | {"dtypes": ["torch.complex64"]}, "unknown element type"),
        (ABOUT | {"dtypes": []}, "description of 'bad'"),
        (ABOUT | {"shapes": [[-1, 6]]}, "impossible shape"),
        (ABOUT | {"shapes": [[True, 6]]}, "impossible shape"),
        (ABOUT | {"shapes": [[2**40, 2**40]]}, "impossible shape"),
        (ABOUT | {"shapes": []}, "description of 'bad'"),
        ({"__TYPE__": "LinkedObject", "key": "none"}, "'none', which does not exist"),
        ({"__TYPE__": "LinkedObject", "key": "bad"}, "links back to itself"),
        ({"__TYPE__": "ScalarSerializer", "scalar_value": "7"}, "does not belong"),
        ({"__TYPE__": "ScalarSerializer"}, "description of 'bad'"),
        ({"__TYPE__": "StringSerializer", "string_value": 7}, "does not belong"),
        ({"__TYPE__": "DeferredFullTensor", "shape": [2**50], "dtype": "torch.float32", "fill_value": 1}, "in rows"),
        ({"__TYPE__": "DeferredFullTensor", "shape": [2], "dtype": "torch.uint8", "fill_value": 1e300}, "cannot hold"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(path: Path, about: dict, message: str) -> None:
    assert message in refusal(handmade.write_one(path, lambda file: file.create_dataset("bad", data=GOOD), about))


def _soft(file: h5py.File) -> None:
    file["bad"] = h5py.SoftLink("/good")


def _dangling(file: h5py.File) -> None:
    file["bad"] = h5py.SoftLink("/nowhere")


def _external_link(file: h5py.File) -> None:
    file["bad"] = h5py.ExternalLink("/etc/passwd", "/good")


def _group(file: h5py.File) -> None:
    file.create_group("bad")


def _empty(file: h5py.File) -> None:
    file.create_dataset("bad", data=h5py.Empty("f"))


def _external_storage(file: h5py.File) -> None:
    file.create_dataset("bad", GOOD.shape, GOOD.dtype, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(GOOD.shape, GOOD.dtype)
    layout[:] = h5py.VirtualSource(file["good"])
    file.create_virtual_dataset("bad", layout)


def _unknown_filter(file: h5py.File) -> None:
    file.create_dataset("bad", data=GOOD, compression="lzf")


def _never_written(file: h5py.File) -> None:
    file.create_dataset("bad", GOOD.shape, GOOD.dtype)


def _chunk_missing(file: h5py.File) -> None:
    file.create_dataset("bad", GOOD.shape, GOOD.dtype, chunks=(1, 3))[:1] = GOOD[:1]


def _big_endian(file: h5py.File) -> None:
    file.create_dataset("bad", data=GOOD.astype(">f4"))


def _other_float(file: h5py.File) -> None:
    # numpy has the same name for it, but HDF5 would convert every number.
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(126)
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    h5py.h5d.create(file.id, b"bad", kind, h5py.h5s.create_simple((2, 3)), plan)


def _compact(file: h5py.File) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(file.id, b"bad", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((2, 3)), plan)


def _packed_twice(file: h5py.File) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((2, 3))
    plan.set_deflate(1)
    plan.set_deflate(1)
    h5py.h5d.create(file.id, b"bad", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((2, 3)), plan)


def _objects(file: h5py.File) -> None:
    file.create_dataset("bad", (2, 3), h5py.ref_dtype)[:] = file["good"].ref


def _nothing(file: h5py.File) -> None:
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("create", "message"),
    [
        (_soft, "soft or external link"),
        (_dangling, "soft or external link"),
        (_external_link, "soft or external link"),
        (_group, "has no data"),
        (_empty, "has no data"),
        (_external_storage, "in another file"),
        (_virtual, "in another file"),
        (_unknown_filter, "unknown filter 32000"),
        (_never_written, "never written"),
        (_chunk_missing, "1 of 2 chunks"),
        (_big_endian, "should be float32"),
        (_objects, "should be float32"),
        (_other_float, "but its data is "),  # unusual float32 or float64, as h5py's version sees it
        (_compact, "layout 'compact'"),
        (_packed_twice, "unknown filter 1 and 1"),
        (_nothing, "is missing"),
    ],
)
def test_data_that_is_not_plainly_in_the_file_is_refused(
    path: Path, create: Callable[[h5py.File], None], message: str
) -> None:
    assert message in refusal(handmade.write_one(path, create, ABOUT))


@pytest.mark.parametrize("options", [{}, {"chunks": (1 << 10, 1 << 10)}, {"chunks": (1, 1), "compression": "gzip"}])
def test_a_shape_that_the_file_cannot_hold_is_refused_at_once(path: Path, options: dict) -> None:
    huge = (1 << 24, 1 << 24)
    handmade.write_one(
        path, lambda file: file.create_dataset("bad", huge, "f4", **options), ABOUT | {"shapes": [list(huge)]}
    )
    with pytest.raises(CheckpointError, match="more than"):
        open_checkpoint(path)


def test_a_chunk_that_claims_to_unpack_to_more_is_refused(path: Path) -> None:
    handmade.write(path, {"a": np.zeros((64, 64))})
    with h5py.File(path) as file:
        where = file["a"].id.get_chunk_info(0).byte_offset
    with open(path, "r+b") as raw:
        raw.seek(where)
        raw.write(struct.pack(">Q", 1 << 40))
    assert "damaged chunk" in refusal(path)


def test_an_unreadable_file_is_named(path: Path) -> None:
    handmade.write(path, {"a": GOOD})
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert "Permission denied" in refusal(path)
