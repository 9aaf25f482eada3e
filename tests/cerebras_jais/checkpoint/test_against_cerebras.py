"""Contract: `cerebras.pytorch` 2.10 loads what we write with every tensor equal, and we read what it saves."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from cerebras_jais.checkpoint import StoredTensor, open_checkpoint, save_checkpoint
from tests.cerebras_jais.checkpoint import written_by_cerebras
from tests.cerebras_jais.checkpoint.states import STATES, assert_same

pytestmark = pytest.mark.cerebras

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def cstorch() -> Any:
    return pytest.importorskip("cerebras.pytorch")


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def to_numpy(tensor: Any) -> np.ndarray:
    """Convert a torch tensor, deferred or not, bit for bit."""
    import torch

    tensor = tensor.detach().clone().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def to_torch(array: np.ndarray) -> Any:
    """Convert a numpy array bit for bit."""
    import torch

    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def mapped(value: Any, kind: type, convert: Any) -> Any:
    """Convert every leaf of a kind, keeping containers and shared leaves as they are."""
    if isinstance(value, dict):
        return type(value)((key, mapped(child, kind, convert)) for key, child in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(child, kind, convert) for child in value)
    return convert(value) if isinstance(value, kind) else value


def trainer_state() -> dict[str, Any]:
    """A state of the shape that the Model Zoo's trainer saves."""
    embedding = RNG.standard_normal((12, 8)).astype(np.float32)
    model = OrderedDict(
        {
            "model.embedding_layer.word_embeddings.weight": embedding,
            "model.transformer_decoder.layers.0.ffn.weight": RNG.standard_normal((8, 4)).astype(np.float32),
            "model.half": RNG.standard_normal((3, 5)).astype(np.float16),
            "model.brain": RNG.standard_normal((4, 4)).astype(ml_dtypes.bfloat16),
            "model.long": np.array([1 << 40, -1]),
            "model.int": np.array([[1], [2]], np.int32),
            "model.byte": np.array([0, 255], np.uint8),
            "model.bool": np.array([True, False]),
            "model.empty": np.zeros((0, 3), np.float32),
            "model.lm_head.weight": embedding,
        }
    )
    moments = {
        i: {"exp_avg": RNG.standard_normal((2, 3)).astype(np.float32), "beta1_power": np.array(0.9, np.float32)}
        for i in range(3)
    }
    group = {"lr": 0.1, "betas": (0.9, 0.95), "params": [0, 1, 2], "tags": None, "correct_bias": True, "eps": 1e-8}
    return {
        "model": model,
        "optimizer": {"state": moments, "param_groups": [group]},
        "schedulers": [{"last_epoch": 3, "weights": [np.arange(3.0), np.array(2.0)]}],
        "dataloader": {},
        "global_step": 1,
        "note": "سلام",
        "__metadata__": [{"version": "2.10.0", "model_name": "JaisModel", "params": {"x": [1, 1.5, "a", None]}}],
    }


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_cerebras_loads_our_file_with_every_leaf_equal(cstorch: Any, torch: Any, tmp_path: Path, compression) -> None:  # type: ignore[no-untyped-def]
    state = trainer_state()
    save_checkpoint(tmp_path / "x.mdl", state, compression=compression)
    loaded = cstorch.load(str(tmp_path / "x.mdl"))
    assert loaded["model"]["model.lm_head.weight"] is loaded["model"]["model.embedding_layer.word_embeddings.weight"]
    assert loaded["model"]["model.brain"].dtype == torch.bfloat16
    assert isinstance(loaded["optimizer"]["state"][0]["beta1_power"], torch.Tensor)
    assert type(loaded["optimizer"]["param_groups"][0]["lr"]) is float
    assert_same(mapped(loaded, torch.Tensor, to_numpy), state)


@pytest.mark.parametrize("compression", [None, "lz4"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=STATES)
def test_cerebras_loads_any_state_that_we_write(cstorch: Any, torch: Any, tmp_path: Path, compression, state) -> None:  # type: ignore[no-untyped-def]
    save_checkpoint(tmp_path / "x.mdl", state, compression=compression, overwrite=True)
    assert_same(mapped(cstorch.load(str(tmp_path / "x.mdl")), torch.Tensor, to_numpy), state)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=STATES)
def test_we_read_any_state_that_cerebras_saves(cstorch: Any, tmp_path: Path, state: dict) -> None:
    (tmp_path / "x.mdl").unlink(missing_ok=True)
    cstorch.save(mapped(state, np.ndarray, to_torch), str(tmp_path / "x.mdl"))
    with open_checkpoint(tmp_path / "x.mdl") as checkpoint:
        assert_same(checkpoint.tree, state)


def test_we_read_a_trainer_state_that_cerebras_saves(cstorch: Any, tmp_path: Path) -> None:
    state = trainer_state()
    once: dict[int, Any] = {}
    theirs = mapped(state, np.ndarray, lambda array: once.setdefault(id(array), to_torch(array)))
    cstorch.save(theirs, str(tmp_path / "x.mdl"))
    with open_checkpoint(tmp_path / "x.mdl") as checkpoint:
        assert_same(checkpoint.tree, state)
        head = checkpoint.tensors["model.model.lm_head.weight"]
        assert head.linked_to == "model.model.embedding_layer.word_embeddings.weight"
        assert checkpoint.metadata == state["__metadata__"]
        assert checkpoint.tree["global_step"] == 1


def test_numpy_arrays_and_constants_cross_both_ways(cstorch: Any, torch: Any, tmp_path: Path) -> None:
    from cerebras.pytorch.storage.serializers import DeferredFullTensor

    state = {
        "array": np.arange(6.0).reshape(2, 3),
        "zero": np.array(3),
        "fill": DeferredFullTensor((2,), torch.half, 2),
    }
    cstorch.save(state, str(tmp_path / "theirs.mdl"))
    with open_checkpoint(tmp_path / "theirs.mdl") as checkpoint:
        assert [tensor.kind for tensor in checkpoint.tensors.values()] == ["numpy", "numpy", "torch"]
        assert checkpoint.tensors["fill"].is_constant
        save_checkpoint(tmp_path / "ours.mdl", checkpoint.tree)
    loaded = cstorch.load(str(tmp_path / "ours.mdl"))
    np.testing.assert_array_equal(np.asarray(loaded["array"]), state["array"])
    assert np.asarray(loaded["zero"]) == 3
    assert type(loaded["fill"]) is DeferredFullTensor
    assert torch.equal(loaded["fill"].clone(), torch.tensor([2, 2], dtype=torch.half))


def test_links_to_other_files_and_pickles_are_not_followed(cstorch: Any, torch: Any, tmp_path: Path) -> None:
    cstorch.save({"w": torch.ones(2, 2)}, str(tmp_path / "a.mdl"))
    with cstorch.storage.serializers.use_external_link(True):
        cstorch.save({"w": cstorch.load(str(tmp_path / "a.mdl"))["w"], "o": complex(1)}, str(tmp_path / "b.mdl"))
    with open_checkpoint(tmp_path / "b.mdl", on_object="skip") as checkpoint:
        assert checkpoint.skipped_objects == ("w", "o")


def test_the_kept_file_is_what_cerebras_writes_today(cstorch: Any, tmp_path: Path) -> None:
    written_by_cerebras.main(str(tmp_path / "x.mdl"))
    with open_checkpoint(tmp_path / "x.mdl") as new, open_checkpoint(written_by_cerebras.PATH) as kept:
        assert list(new.leaves) == list(kept.leaves)
        for key, leaf in kept.leaves.items():
            if isinstance(leaf, StoredTensor):
                assert new.leaves[key].read().tobytes() == leaf.read().tobytes()
