"""Contract: what Cerebras PyTorch 2.10 writes is read lazily and exactly, and nothing in it is ever executed."""

import functools
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest

from cerebras_jais.checkpoint import CheckpointError, StoredTensor, UnreadableLeaf, open_checkpoint, save_checkpoint
from cerebras_jais.checkpoint.hdf5.guarded import GuardedFile
from tests.cerebras_jais.checkpoint import handmade, written_by_cerebras

RNG = np.random.default_rng(0)


def _expected(name: str, values: object) -> np.ndarray:
    dtype = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    return np.asarray(values, dtype="float32" if name == "bfloat16" else dtype).astype(dtype)


@pytest.fixture
def theirs() -> Path:
    return written_by_cerebras.PATH


def test_every_tensor_that_cerebras_wrote_is_read_exactly(theirs: Path) -> None:
    with open_checkpoint(theirs) as checkpoint:
        assert sorted(checkpoint.tensors) == sorted(written_by_cerebras.TENSORS)
        for key, (name, values) in written_by_cerebras.TENSORS.items():
            tensor, expected = checkpoint.tensors[key], _expected(name, values)
            assert (tensor.dtype, tensor.shape, tensor.nbytes) == (name, expected.shape, expected.nbytes)
            assert tensor.read().dtype == expected.dtype
            assert tensor.read().tobytes() == expected.tobytes()


def test_the_structure_that_cerebras_wrote_is_kept_in_type_and_order(theirs: Path) -> None:
    with open_checkpoint(theirs) as checkpoint:
        tree = checkpoint.tree
        assert list(tree)[:3] == ["model", "optimizer", "schedulers"]
        assert type(tree["model"]) is OrderedDict
        assert list(tree["model"])[:2] == ["model.embedding.weight", "model.lm_head.weight"]
        assert list(tree["optimizer"]["state"]) == [0, 1]
        group = {"lr": 0.1, "betas": (0.9, 0.95), "params": [0, 1], "name": "ش", "none": None, "on": True}
        assert tree["optimizer"]["param_groups"] == [group]
        assert type(tree["optimizer"]["param_groups"][0]["betas"]) is tuple
        assert tree["optimizer"]["param_groups"][0]["on"] is True
        assert tree["schedulers"] == []
        assert checkpoint.version == 0.5
        assert checkpoint.metadata == [{"version": "2.10.0", "params": {"trainer": {"init": {"seed": 1}}}}]


def test_links_are_resolved_for_tensors_and_for_interned_numbers(theirs: Path) -> None:
    with h5py.File(theirs) as file:
        record = json.loads(file.attrs["global_step.__metadata__"])
    assert record["global_step.__metadata__"]["__LINKED__"] is True
    with open_checkpoint(theirs) as checkpoint:
        assert checkpoint.tree["global_step"] == 1
        assert type(checkpoint.tree["global_step"]) is int
        assert checkpoint.tensors["model.model.lm_head.weight"].linked_to == "model.model.embedding.weight"
        assert checkpoint.tensors["model.model.embedding.weight"].linked_to is None


def test_a_number_and_a_0d_tensor_stay_different(theirs: Path) -> None:
    with open_checkpoint(theirs) as checkpoint:
        assert isinstance(checkpoint.tree["optimizer"]["state"][1]["beta1_power"], StoredTensor)
        assert checkpoint.tree["optimizer"]["param_groups"][0]["lr"] == 0.1


def test_a_constant_is_filled_without_data(theirs: Path) -> None:
    with open_checkpoint(theirs) as checkpoint:
        constant = checkpoint.tensors["constant"]
        assert constant.is_constant
        assert constant.header is None
        assert constant.read_rows(1, 2).tolist() == [1.5]


def test_no_metadata_is_an_empty_list(tmp_path: Path) -> None:
    with open_checkpoint(handmade.write(tmp_path / "x.mdl", {"a": np.zeros(2)})) as checkpoint:
        assert checkpoint.metadata == []


def test_rows_equal_slices(tmp_path: Path) -> None:
    wide = RNG.standard_normal((150, 2000)).astype(np.float32)
    flat = np.arange(5000, dtype=np.int64)
    for lz4 in (False, True):
        with open_checkpoint(handmade.write(tmp_path / "x.mdl", {"w": wide, "f": flat}, lz4=lz4)) as checkpoint:
            for array, tensor in ((wide, checkpoint.tensors["w"]), (flat, checkpoint.tensors["f"])):
                assert (tensor.chunk_rows is not None) is lz4
                assert (tensor.header.offset is None) is lz4
                for start, stop in [(0, 0), (0, 1), (3, 90), (149, 150), (0, len(array))]:
                    np.testing.assert_array_equal(tensor.read_rows(start, stop), array[start:stop])
                for start, stop in [(-1, 1), (2, 1), (0, len(array) + 1)]:
                    with pytest.raises(IndexError, match="not within"):
                        tensor.read_rows(start, stop)


def test_columns_equal_slices(tmp_path: Path) -> None:
    arrays = {"w": RNG.standard_normal((150, 2000)), "h": RNG.standard_normal((3, 5)).astype(np.float16)}
    with open_checkpoint(handmade.write(tmp_path / "x.mdl", arrays, lz4=False)) as checkpoint:
        for name, array in arrays.items():
            tensor, width = checkpoint.tensors[name], array.shape[1]
            for start, stop in [(0, 0), (0, 1), (1, 4), (width - 1, width), (0, width)]:
                read = tensor.read_columns(start, stop)
                np.testing.assert_array_equal(read, array[:, start:stop])
                assert read.dtype == array.dtype and read.flags.c_contiguous
            for start, stop in [(-1, 1), (2, 1), (0, width + 1)]:
                with pytest.raises(IndexError, match="columns"):
                    tensor.read_columns(start, stop)


def test_columns_of_what_is_packed_or_no_matrix_are_refused(tmp_path: Path) -> None:
    for arrays, lz4 in (({"a": np.ones((4, 4))}, True), ({"a": np.ones(4)}, False)):
        path = handmade.write(tmp_path / "x.mdl", arrays, lz4=lz4)
        with open_checkpoint(path) as checkpoint, pytest.raises(IndexError, match="columns"):
            checkpoint.tensors["a"].read_columns(0, 1)


def test_columns_beyond_the_end_of_the_file_are_an_error(tmp_path: Path) -> None:
    path = handmade.write(tmp_path / "x.mdl", {"a": RNG.standard_normal((40, 50))}, lz4=False)
    with open_checkpoint(path) as checkpoint:
        tensor = checkpoint.tensors["a"]
        os.truncate(path, tensor.header.offset + tensor.nbytes - 1)
        tensor.read_columns(0, 49)
        with pytest.raises(CheckpointError, match="ends inside tensor 'a'"):
            tensor.read_columns(48, 50)


def test_a_scalar_has_no_rows(tmp_path: Path) -> None:
    with open_checkpoint(handmade.write(tmp_path / "x.mdl", {"a": np.array(2.0)})) as checkpoint:
        assert checkpoint.tensors["a"].read() == 2
        with pytest.raises(IndexError):
            checkpoint.tensors["a"].read_rows(0, 0)


@pytest.mark.parametrize("lz4", [False, True])
def test_reading_one_tensor_reads_no_other(tmp_path: Path, lz4: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {name: RNG.standard_normal((40, 50)) for name in "abc"}
    asked: list[tuple[str, int]] = []
    original = GuardedFile.read_into

    def spy(self: GuardedFile, header, out, start) -> None:  # type: ignore[no-untyped-def]
        asked.append((header.name, out.size))
        original(self, header, out, start)

    monkeypatch.setattr(GuardedFile, "read_into", spy)
    with open_checkpoint(handmade.write(tmp_path / "x.mdl", arrays, lz4=lz4)) as checkpoint:
        assert asked == []
        checkpoint.tensors["b"].read_rows(2, 4)
    assert asked == [("b", 100)]


def test_damaged_data_of_one_tensor_does_not_hinder_the_others(tmp_path: Path) -> None:
    arrays = {name: RNG.standard_normal((64, 64)) for name in "ab"}
    path = handmade.write(tmp_path / "x.mdl", arrays)
    with h5py.File(path) as file:
        where = file["a"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[where : where + 4] = b"\xff" * 4
    path.write_bytes(data)
    with open_checkpoint(path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.tensors["b"].read(), arrays["b"])
        with pytest.raises(CheckpointError, match="'a' has a damaged chunk"):
            checkpoint.tensors["a"].read()


def test_the_offset_of_a_contiguous_tensor_is_where_its_bytes_are(tmp_path: Path) -> None:
    array = RNG.standard_normal((3, 4))
    path = handmade.write(tmp_path / "x.mdl", {"a": array}, lz4=False)
    with open_checkpoint(path) as checkpoint:
        tensor = checkpoint.tensors["a"]
        assert tensor.header.offset is not None
        assert path.read_bytes()[tensor.header.offset :][: tensor.nbytes] == array.tobytes()


def test_a_name_with_a_slash_is_followed_into_its_group(tmp_path: Path) -> None:
    with open_checkpoint(handmade.write(tmp_path / "x.mdl", {"a/b": np.arange(3.0)})) as checkpoint:
        assert checkpoint.tensors["a/b"].read().tolist() == [0, 1, 2]


def test_reading_after_closing_is_refused(tmp_path: Path) -> None:
    for lz4 in (False, True):
        with open_checkpoint(handmade.write(tmp_path / "x.mdl", {"a": np.arange(3.0)}, lz4=lz4)) as checkpoint:
            tensor = checkpoint.tensors["a"]
        with pytest.raises(CheckpointError, match="is closed"):
            tensor.read()


def test_a_missing_name_is_explained(theirs: Path) -> None:
    with open_checkpoint(theirs) as checkpoint:
        with pytest.raises(CheckpointError, match=r"did you mean 'model\.brain'"):
            checkpoint.tensors["model.brian"]
        with pytest.raises(CheckpointError, match="not a tensor but the value 1"):
            checkpoint.tensors["global_step"]
        assert "model.brian" not in checkpoint.tensors
        assert checkpoint.leaves["global_step"] == 1


class _Bomb:
    """A pickle of it creates the file `SENTINEL` when it is loaded."""

    SENTINEL = ""

    def __reduce__(self) -> tuple:
        return open, (self.SENTINEL, "w")


@pytest.fixture
def bomb(tmp_path: Path) -> Path:
    _Bomb.SENTINEL = str(tmp_path / "sentinel")
    data = pickle.dumps(_Bomb())

    def create(file: h5py.File) -> None:
        dataset = file.create_dataset("bad", data=h5py.Empty("f"))
        dataset.attrs["__BYTES__"] = np.void(data)

    return handmade.write_one(tmp_path / "bomb.mdl", create, {"__TYPE__": "ObjectSerializer", "__BYTES__": True})


def test_a_pickled_object_is_named_refused_and_never_executed(bomb: Path) -> None:
    with open_checkpoint(bomb) as checkpoint:
        assert checkpoint.tensors["good"].read().sum() == 15
        assert isinstance(checkpoint.tree["bad"], UnreadableLeaf)
        for ask in (lambda: checkpoint.tensors["bad"], checkpoint.tree["bad"].read):
            with pytest.raises(CheckpointError, match="'bad' is a pickled Python object"):
                ask()
        with pytest.raises(CheckpointError, match="'bad' is a pickled"):
            save_checkpoint(bomb.with_name("copy.mdl"), checkpoint.tree)
        assert checkpoint.skipped_objects == ()
    sentinel = bomb.with_name("sentinel")
    assert not sentinel.exists()
    pickle.loads(pickle.dumps(_Bomb()))
    assert sentinel.exists(), "the bomb does not work, so this test shows nothing"


def test_a_pickled_object_can_be_skipped(bomb: Path) -> None:
    with open_checkpoint(bomb, on_object="skip") as checkpoint:
        assert checkpoint.skipped_objects == ("bad",)
        assert list(checkpoint.tree) == ["good"]
        save_checkpoint(bomb.with_name("copy.mdl"), checkpoint.tree)
    assert not bomb.with_name("sentinel").exists()
    with open_checkpoint(bomb.with_name("copy.mdl")) as checkpoint:
        assert list(checkpoint.leaves) == ["good"]


def test_the_object_that_cerebras_pickled_is_named(theirs: Path) -> None:
    with open_checkpoint(theirs, on_object="skip") as checkpoint:
        assert checkpoint.skipped_objects == ("pickled.of",)
        assert checkpoint.tree["pickled"] == {}


def test_leaves_in_other_files_and_graphs_are_refused_alone(tmp_path: Path) -> None:
    linked = {"deferred_object_cls": "DeferredNumpyArray", "path": "/etc/x", "__TYPE__": "DeferredNumpyArray"}
    cases: list[tuple[dict, str]] = [
        (linked | {"__NONE__": True}, "stored in another file, /etc/x"),
        ({"__TYPE__": "Invented"}, "unknown kind 'Invented'"),
    ]
    for about, message in cases:
        path = handmade.write_one(tmp_path / "x.mdl", lambda file: None, about)
        with open_checkpoint(path) as checkpoint, pytest.raises(CheckpointError, match=message):
            checkpoint.tensors["bad"]

    graph = {"bad.1.__metadata__": {"__TYPE__": "DeferredGraphTensor"}, "__objects__": ["bad.0.args.0"]}
    with h5py.File(path, "r+") as file:
        file.attrs["bad.__metadata__"] = json.dumps(graph)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["good"].read().size == 6
        with pytest.raises(CheckpointError, match="compiled graph"):
            checkpoint.tensors["bad"]


def test_numpy_arrays_are_read_and_strange_ones_refused_alone(tmp_path: Path) -> None:
    about = {"is_bfloat16": False, "__TYPE__": "NumpyArraySerializer", "__NUMPY__": True}
    for stored, flag, dtype in [("int8", False, "int8"), ("int16", True, "bfloat16")]:
        array = np.arange(3).astype(stored)
        path = tmp_path / f"{dtype}.mdl"
        create = functools.partial(h5py.Group.create_dataset, name="bad", data=array)
        handmade.write_one(path, create, about | {"is_bfloat16": flag})
        with open_checkpoint(path) as checkpoint:
            tensor = checkpoint.tensors["bad"]
            assert (tensor.dtype, tensor.kind) == (dtype, "numpy")
            assert tensor.read().tobytes() == array.tobytes()
    path = handmade.write_one(tmp_path / "x", lambda f: f.create_dataset("bad", data=np.zeros(2, "complex64")), about)
    with open_checkpoint(path) as checkpoint, pytest.raises(CheckpointError, match="complex64"):
        checkpoint.tensors["bad"]
