"""Checkpoints made with plain h5py from the description of the format, sharing no code with reader or writer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


def tree_spec(keys: list[str]) -> dict[str, Any]:
    """Describe a flat dict of leaves."""
    return {"type": "builtins.dict", "context": json.dumps(keys), "children_spec": [LEAF] * len(keys)}


def tensor_metadata(array: np.ndarray, **changes: Any) -> dict[str, Any]:
    """Describe an array as a torch tensor."""
    about = {
        "__TORCH__": True,
        "shapes": [list(array.shape)],
        "dtypes": [f"torch.{array.dtype.name}"],
        "rtfx_dtypes": [11],
        "__TYPE__": "TorchTensorSerializer",
        "__NUMPY__": True,
        "compressed": False,
    }
    return about | changes


def describe(file: h5py.File, leaves: dict[str, dict[str, Any]], *, spec: Any = None, **attributes: Any) -> None:
    """Write the root attributes of a flat state whose leaves have the given metadata; attributes override."""
    root = {
        "__version__": 0.5,
        "__spec__": json.dumps([None, json.dumps([1, spec or tree_spec(list(leaves))])]),
        "__SUCCESS__": True,
    }
    for key, about in leaves.items():
        record = {"__spec__": None, "__objects__": [key], f"{key}.__metadata__": about}
        root[f"{key}.__metadata__"] = json.dumps(record)
    for name, value in (root | attributes).items():
        if value is not None:
            file.attrs[name] = value


def write(path: Path, arrays: dict[str, np.ndarray], *, lz4: bool = True, **attributes: Any) -> Path:
    """Write a flat state of arrays as torch tensors, packed as Cerebras packs them."""
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            packed: Any = hdf5plugin.LZ4() if lz4 and array.ndim else {}
            file.create_dataset(key, data=array, **packed)
        describe(file, {key: tensor_metadata(array) for key, array in arrays.items()}, **attributes)
    return path


def write_one(path: Path, create: Callable[[h5py.File], None], about: dict[str, Any]) -> Path:
    """Write a good tensor "good" and a leaf "bad" with the given metadata, whose data `create` makes."""
    good = np.arange(6, dtype=np.float32).reshape(2, 3)
    with h5py.File(path, "w") as file:
        file.create_dataset("good", data=good)
        create(file)
        describe(file, {"good": tensor_metadata(good), "bad": about})
    return path
