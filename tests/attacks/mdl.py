"""Damage .mdl checkpoints and read them: `python tests/attacks/mdl.py --count N --seed S`; exit status 1 if bad.

Damage is to bytes, mostly of HDF5's own structures and the heads of chunks; and to the JSON texts of the attributes,
put back through h5py, so that what lies behind HDF5's checks is reached. The judge is h5py.
"""

import json
import random
import re
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

import h5py
import hdf5plugin  # noqa: F401  # h5py needs it to unpack
import ml_dtypes
import numpy as np

from cerebras_jais.checkpoint import CheckpointError, StoredTensor, open_checkpoint, save_checkpoint
from tests.attacks.mutations import Region, Subject, Tensors, main, mutate_bytes, mutate_json
from tests.cerebras_jais.checkpoint import written_by_cerebras

NAME = "model.mdl"
SIGNATURES = rb"\x89HDF|TREE|SNOD|HEAP|GCOL|OHDR|OCHK|FRHP|FHDB|FHIB|BTHD|BTIN|BTLF|FSHD|FADB|FAHD"
WORDS = ("torch.bfloat16", "torch.int16", "torch.float32", "TorchTensorSerializer", "NumpyArraySerializer")
WORDS += ("LinkedObject", "DeferredFullTensor", "ScalarSerializer", "NoneSerializer", "shapes", "builtins.list", "")


def make_subject(directory: Path) -> Subject:
    """The files to damage: one that Cerebras wrote, and ours with plain and with packed data."""
    weight = np.arange(2800, dtype=np.float32).reshape(40, 70)
    state = {
        "model": {"w": weight, "tied": weight, "brain": np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3)},
        "long": [np.arange(300) % 7, np.array([True, False])],
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), np.float16),
        "values": [1, 2.5, "text", None, True],
    }
    for name in ("cerebras", "plain", "packed"):
        (directory / name).mkdir(parents=True)
    shutil.copy(written_by_cerebras.PATH, directory / "cerebras" / NAME)
    save_checkpoint(directory / "plain" / NAME, state)
    save_checkpoint(directory / "packed" / NAME, state, compression="lz4")
    cases = tuple(directory / name for name in ("cerebras", "plain", "packed"))
    return Subject(cases, mutate, open_model, read_with_h5py, CheckpointError)


class InBands:
    """A tensor read twice, whole and in bands of rows, which must be equal."""

    def __init__(self, tensor: StoredTensor) -> None:
        self._tensor = tensor

    def read(self) -> np.ndarray:
        whole = self._tensor.read()
        if whole.ndim:
            band = max(1, len(whole) // 3)
            bands = [self._tensor.read_rows(i, min(i + band, len(whole))) for i in range(0, len(whole), band)]
            assert b"".join(part.tobytes() for part in bands) == whole.tobytes()
        return whole


def open_model(directory: Path) -> dict[str, InBands]:
    return {name: InBands(tensor) for name, tensor in open_checkpoint(directory / NAME).tensors.items()}


def mutate(draw: random.Random, directory: Path) -> None:
    path = directory / NAME
    if draw.random() < 0.35:
        mutate_text(draw, path)
    else:
        path.write_bytes(mutate_bytes(draw, path.read_bytes(), find_structure(path)))


def mutate_text(draw: random.Random, path: Path) -> None:
    """Damage one or two of the texts in an HDF5 file that is otherwise whole."""
    with h5py.File(path, "r+") as file:
        texts = ["__spec__"] * 4 + sorted(name for name in file.attrs if name.endswith(".__metadata__"))
        for name in sorted({draw.choice(texts) for _ in range(draw.choice((1, 1, 2)))}):
            text = file.attrs[name]
            if name == "__spec__" and draw.random() < 0.8:
                skeleton, spec = json.loads(text)
                text = json.dumps([skeleton, mutate_json(draw, spec, (*WORDS, *file))])
            else:
                text = mutate_json(draw, text, (*WORDS, *file))
            file.attrs[name] = text


def find_structure(path: Path) -> list[Region]:
    """Where HDF5's structures and the headers of objects and chunks lie."""
    data = path.read_bytes()
    regions = [(0, 96), *((match.start(), match.start() + 160) for match in re.finditer(SIGNATURES, data))]
    with h5py.File(path) as file:
        for item in (file, *file.values()):
            place = h5py.h5o.get_info(item.id).addr
            regions += [(place, place + 400)] * 2
            if isinstance(item, h5py.Dataset) and item.chunks:
                offsets = [item.id.get_chunk_info(i).byte_offset for i in range(item.id.get_num_chunks())]
                regions += [(offset, offset + 24) for offset in offsets]
    return regions


def read_with_h5py(directory: Path) -> Tensors:
    """The tensors by h5py and the description of the format."""
    with h5py.File(directory / NAME) as file:
        spec = json.loads(json.loads(file.attrs["__spec__"])[1])[1]
        found: Tensors = {}
        for key in _keys(spec, ()):
            array = _read(file, key)
            if array is not None:
                found[key] = (array.dtype.name, array.shape, array.tobytes())
        return found


def _keys(node: dict, path: tuple[str, ...]) -> list[str]:
    if node["type"] is None:
        return [".".join(path)]
    names = json.loads(node["context"]) or range(len(node["children_spec"]))
    return [
        key
        for name, child in zip(names, node["children_spec"], strict=True)
        for key in _keys(child, (*path, str(name)))
    ]


def _read(file: h5py.File, key: str) -> np.ndarray | None:
    about = json.loads(file.attrs[f"{key}.__metadata__"])[f"{key}.__metadata__"]
    match about["__TYPE__"]:
        case "LinkedObject":
            return _read(file, about["key"])
        case "DeferredFullTensor":
            dtype = np.dtype(about["dtype"].removeprefix("torch."))
            return np.full(about["shape"], about["fill_value"] or 0, dtype)
        case "TorchTensorSerializer":
            array = np.asarray(file[key][()])
            name = about["dtypes"][0].removeprefix("torch.")
            return array.view(ml_dtypes.bfloat16) if (name, array.dtype) == ("bfloat16", np.int16) else array
        case "NumpyArraySerializer":
            array = np.asarray(file[key][()])
            return array.view(ml_dtypes.bfloat16) if about.get("is_bfloat16") and array.dtype == np.int16 else array
    return None


if __name__ == "__main__":
    main(make_subject)
