"""Contract: what is written is read back bit for bit with its structure; a file is complete or it is not there."""

import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from time import sleep
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from cerebras_jais.atomic import replacing
from cerebras_jais.checkpoint import (
    CheckpointError,
    LazyTensor,
    create_empty_checkpoint,
    mark_complete,
    open_checkpoint,
    save_checkpoint,
    writer,
)
from cerebras_jais.checkpoint.writer import Compression
from tests.cerebras_jais.checkpoint import written_by_cerebras
from tests.cerebras_jais.checkpoint.states import STATES, assert_same

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((5, 7)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.mdl"


@pytest.mark.slow
@pytest.mark.parametrize("compression", [None, "lz4"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=STATES)
def test_round_trip_keeps_structure_and_bits(tmp_path: Path, compression: None, state: dict) -> None:
    path = tmp_path / "x.mdl"
    save_checkpoint(path, state, compression=compression, overwrite=True)
    with open_checkpoint(path) as checkpoint:
        assert_same(checkpoint.tree, state)


def test_big_tensors_of_every_layout_survive(path: Path) -> None:
    bits = RNG.integers(0, 1 << 16, (300, 1000), dtype=np.uint16)
    state = {
        "long rows": RNG.standard_normal((3, 300_000)),
        "brain": bits.view(ml_dtypes.bfloat16),
        "turned": WEIGHT.T,
        "striped": np.arange(200_000)[::3],
        "big endian": np.arange(5, dtype=">i4"),
    }
    for compression in (None, "lz4"):
        save_checkpoint(path, state, compression=compression, overwrite=True)
        with open_checkpoint(path) as checkpoint:
            for key, array in state.items():
                expected = array.astype("<i4") if key == "big endian" else array
                assert checkpoint.tensors[key].read().tobytes() == expected.tobytes()


def test_one_array_at_two_places_is_written_once_and_linked(path: Path) -> None:
    save_checkpoint(path, {"a": WEIGHT, "b": [WEIGHT, WEIGHT.copy()]})
    with h5py.File(path) as file:
        assert sorted(file) == ["a", "b.1"]
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["b.0"].linked_to == "a"
        assert checkpoint.tensors["b.1"].linked_to is None
        assert checkpoint.tensors["b.0"].read().tobytes() == WEIGHT.tobytes()


def test_copying_a_checkpoint_keeps_kinds_links_and_constants(path: Path) -> None:
    with open_checkpoint(written_by_cerebras.PATH, on_object="skip") as theirs:
        save_checkpoint(path, theirs.tree)
        with open_checkpoint(path) as ours:
            assert list(ours.leaves) == [key for key in theirs.leaves if key not in theirs.skipped_objects]
            for key, tensor in theirs.tensors.items():
                copy = ours.tensors[key]
                assert (copy.dtype, copy.shape, copy.kind) == (tensor.dtype, tensor.shape, tensor.kind)
                assert (copy.linked_to, copy.is_constant) == (tensor.linked_to, tensor.is_constant)
                assert copy.read().tobytes() == tensor.read().tobytes()


def test_an_alias_without_its_target_is_written_as_data(path: Path) -> None:
    with open_checkpoint(written_by_cerebras.PATH) as theirs:
        save_checkpoint(path, {"head": theirs.tensors["model.model.lm_head.weight"]})
    with open_checkpoint(path) as ours:
        assert ours.tensors["head"].linked_to is None
        assert ours.tensors["head"].read()[0, 0] == 0.5


def test_a_big_stored_tensor_is_copied_in_pieces(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_COPY_BYTES", 100)
    orders: list[tuple[Compression, Compression]] = [(None, "lz4"), ("lz4", None)]
    for first, second in orders:
        save_checkpoint(path, {"w": WEIGHT, "s": np.array(3.0)}, compression=first, overwrite=True)
        with open_checkpoint(path) as checkpoint:
            save_checkpoint(path, checkpoint.tree, compression=second, overwrite=True)
        with open_checkpoint(path) as checkpoint:
            np.testing.assert_array_equal(checkpoint.tensors["w"].read(), WEIGHT)


def test_numpy_and_torch_arrays_are_told_apart(path: Path) -> None:
    lazy = LazyTensor((2,), "int8", lambda: np.array([1, -1], np.int8), kind="numpy")
    save_checkpoint(path, {"n": lazy, "t": WEIGHT})
    with open_checkpoint(path) as checkpoint:
        assert (checkpoint.tensors["n"].kind, checkpoint.tensors["t"].kind) == ("numpy", "torch")
        assert checkpoint.tensors["n"].read().tolist() == [1, -1]


def test_lazy_tensors_are_made_one_at_a_time_in_order(path: Path) -> None:
    made: list[int] = []

    def make(index: int) -> LazyTensor:
        def read() -> np.ndarray:
            made.append(index)
            return np.full((2, 2), index, np.float32)

        return LazyTensor((2, 2), "float32", read)

    save_checkpoint(path, {"m": [make(i) for i in range(4)]})
    assert made == [0, 1, 2, 3]
    with open_checkpoint(path) as checkpoint:
        assert [tensor.read()[1, 1] for tensor in checkpoint.tensors.values()] == [0, 1, 2, 3]


@pytest.mark.parametrize("compression", [None, "lz4"])
@pytest.mark.parametrize("error", [ValueError("no"), OSError("no"), KeyboardInterrupt()])
def test_an_error_in_the_middle_passes_unchanged_and_leaves_nothing(
    path: Path, compression: None, error: BaseException
) -> None:
    def read() -> np.ndarray:
        raise error

    with pytest.raises(type(error)) as caught:
        save_checkpoint(path, {"a": WEIGHT, "b": LazyTensor((2,), "float32", read)}, compression=compression)
    assert caught.value is error
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("given", [np.zeros(3, np.float32), np.zeros(2), [0.0, 0.0], None])
def test_a_lazy_tensor_that_gives_something_else_is_named(path: Path, given: object) -> None:
    with pytest.raises(CheckpointError, match="'b' should be float32"):
        save_checkpoint(path, {"a": WEIGHT, "b": LazyTensor((2,), "float32", lambda: given)})  # type: ignore[arg-type,return-value]
    assert list(path.parent.iterdir()) == []


def test_an_existing_path_is_refused_and_kept(path: Path) -> None:
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError, match="already exists"):
        save_checkpoint(path, {"a": WEIGHT})
    assert path.read_bytes() == b"old"


def test_a_checkpoint_can_be_rewritten_from_itself(path: Path) -> None:
    save_checkpoint(path, {"a": WEIGHT, "b": 1})
    with open_checkpoint(path) as checkpoint:
        save_checkpoint(path, checkpoint.tree | {"b": 2}, overwrite=True)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tree["b"] == 2
        np.testing.assert_array_equal(checkpoint.tensors["a"].read(), WEIGHT)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": object()}, "'a' is a builtins.object"),
        ({"a": np.float32(1)}, "'a' is a numpy.float32"),
        ({"a": 1j}, "'a' is a builtins.complex"),
        ({"a": np.zeros(2, np.complex64)}, "'a' is of type complex64"),
        ({"a": np.zeros(2, np.int8)}, "'a' is of type int8"),
        ({"a": np.array(["x"])}, "'a' is of type"),
        ({"a": LazyTensor((2,), "float8", None)}, "'a' is of type float8"),
        ({"a": LazyTensor((-2,), "float32", None)}, "impossible shape"),
        ({"a": LazyTensor((2,), "float32", None)}, "without `read`"),
        ({"a/b": WEIGHT}, "'a/b' cannot be stored"),
        ({"": WEIGHT}, "'' cannot be stored"),
        ({"a\0": 1}, "NUL"),
        ({"\ud800": 1}, "cannot be stored"),
        ({"a": {"b": 1}, "a.b": 2}, "two leaves"),
        ({}, "empty"),
        (WEIGHT, "single value"),
    ],
)
def test_a_state_that_cannot_be_held_is_refused_by_name(path: Path, state: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        save_checkpoint(path, state)
    assert str(path) in str(caught.value)
    assert list(path.parent.iterdir()) == []


def test_laying_out_then_filling_the_ranges_equals_saving(tmp_path: Path) -> None:
    state: OrderedDict[str, Any] = OrderedDict(
        a=WEIGHT,
        tied=WEIGHT,
        empty=np.zeros((0, 2)),
        half=np.ones((3,), ml_dtypes.bfloat16),
        large=np.arange(1 << 16, dtype="f4"),
        step=4,
        larger=np.arange(1 << 17, dtype="f4"),
    )
    places = OrderedDict(
        (key, LazyTensor(value.shape, value.dtype.name) if isinstance(value, np.ndarray) else value)
        for key, value in state.items()
    )
    places["tied"] = places["a"]
    save_checkpoint(tmp_path / "saved.mdl", state)
    with replacing(tmp_path / "filled.mdl") as temporary:
        offsets = create_empty_checkpoint(temporary, places)
        assert sorted(offsets) == ["a", "half", "large", "larger"]
        assert offsets["large"] % 4096 == offsets["larger"] % 4096 == 0, "not at a block of the disk"
        with pytest.raises(CheckpointError, match="partly written"):
            open_checkpoint(temporary)
        with open(temporary, "r+b") as file:
            for key, offset in offsets.items():
                file.seek(offset)
                file.write(state[key].tobytes())
        mark_complete(temporary)
    assert (tmp_path / "filled.mdl").read_bytes() == (tmp_path / "saved.mdl").read_bytes()
    with open_checkpoint(tmp_path / "filled.mdl") as checkpoint:
        assert {k: t.header.offset for k, t in checkpoint.tensors.items() if t.nbytes and not t.linked_to} == offsets
        assert_same(checkpoint.tree, state)


@pytest.mark.slow
def test_one_state_gives_the_same_bytes_at_any_time(tmp_path: Path) -> None:
    state = {"w": WEIGHT, "brain": np.ones((3,), ml_dtypes.bfloat16), "s": np.array(2.0), "e": np.zeros((0, 2)), "i": 1}
    layouts: list[Compression] = [None, "lz4"]
    for time in ("now", "later"):
        for layout in layouts:
            save_checkpoint(tmp_path / f"{time} {layout}", state, compression=layout)
        sleep(1.1)  # HDF5's times are in whole seconds
    for layout in layouts:
        assert (tmp_path / f"now {layout}").read_bytes() == (tmp_path / f"later {layout}").read_bytes()


def test_laying_out_over_a_file_is_refused(path: Path) -> None:
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError, match="File exists"):
        create_empty_checkpoint(path, {"a": WEIGHT})
    assert path.read_bytes() == b"old"


def test_the_metadata_of_a_tensor_is_what_cerebras_writes(path: Path) -> None:
    with h5py.File(written_by_cerebras.PATH) as file:
        records = {name: value for name, value in file.attrs.items() if name.endswith(".__metadata__")}
        specification = json.loads(file.attrs["__spec__"])
        datasets = {name: {key: str(value) for key, value in d.attrs.items()} for name, d in file.items()}
    with open_checkpoint(written_by_cerebras.PATH) as theirs:
        save_checkpoint(path, {key: value for key, value in theirs.tree.items() if key != "pickled"})
    with h5py.File(path) as file:
        for name, value in file.attrs.items():
            # Numbers that are one object to Cerebras are links there; here each is written for itself.
            if name.endswith(".__metadata__") and '"scalar_value"' not in value and '"__NONE__"' not in value:
                assert json.loads(value) == json.loads(records[name])
        for name, dataset in file.items():
            assert {key: str(value) for key, value in dataset.attrs.items()} == datasets[name]
        ours = json.loads(file.attrs["__spec__"])
    specification[0].pop("pickled")
    assert ours[0] == specification[0]


FULL_DISK = """
import resource, signal, sys
import numpy as np
from cerebras_jais.checkpoint import CheckpointError, save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = {"model": {f"w{i}": np.random.default_rng(i).random((100, 100)) for i in range(3)}}
for limit in (10, 3000, 20000, 100000, 200000):
    for compression in (None, "lz4"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            save_checkpoint(sys.argv[1], state, compression=compression)
            sys.exit("was written")
        except CheckpointError as error:
            assert "File too large" in str(error), error
print("done", file=sys.stderr)
"""


def test_a_full_disk_is_an_error_and_leaves_nothing(path: Path) -> None:
    # In a process of its own: HDF5 is known to bring its process down when it cannot write while closing.
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip().splitlines()[-1:]) == (0, ["done"]), done.stderr
    assert list(path.parent.iterdir()) == []
