"""Damage safetensors files and read them: `python tests/attacks/safetensors.py --count N --seed S`; status 1 if bad.

Damage is to bytes, mostly of the header; to the JSON of a header whose length is then put right, so that what lies
behind the first checks is reached; and to the index of shards. The judge is the safetensors library.
"""

import json
import random
import sys
from pathlib import Path

if __name__ == "__main__":  # this directory has a file of the library's name
    sys.path[0] = str(Path(__file__).parents[2])

import torch
from safetensors.torch import load_file, save_file

from checkpoint_convert.formats.safetensors import INDEX, SINGLE, open_model
from tests.attacks.mutations import Subject, Tensors, from_torch, main, mutate_bytes, mutate_index, mutate_json


def make_subject(directory: Path) -> Subject:
    """The files to damage: small, with every element type, and sharded."""
    small = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    every = {
        name: torch.arange(4).reshape(2, 2).to(getattr(torch, name))
        for name in (
            *("bool", "uint8", "int8", "int16", "int32", "int64"),
            *("float16", "bfloat16", "float32", "float64"),
        )
    }
    every |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5)}
    for name, state in {"small": small, "every": every}.items():
        (directory / name).mkdir(parents=True)
        save_file(state, directory / name / SINGLE, {"format": "pt"})
    sharded = directory / "sharded"
    sharded.mkdir()
    weight_map = {}
    for number in (1, 2):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({f"layer.{number}.{k}": torch.full((2, 3), float(number)) for k in "ab"}, sharded / shard)
        weight_map |= {f"layer.{number}.{k}": shard for k in "ab"}
    (sharded / INDEX).write_text(json.dumps({"metadata": {"total_size": 96}, "weight_map": weight_map}, indent=2))
    return Subject((directory / "small", directory / "every", sharded), mutate, open_model, read_with_library)


def mutate(draw: random.Random, directory: Path) -> None:
    index = directory / INDEX
    if index.exists() and draw.random() < 0.6:
        mutate_index(draw, index)
        return
    path = draw.choice(sorted(directory.glob("*.safetensors")))
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    if draw.random() < 0.4:
        path.write_bytes(mutate_bytes(draw, data, [(0, 8), (8, end), (8, end)]))
        return
    header = data[8:end].decode()
    for _ in range(draw.choice((1, 1, 2))):
        header = mutate_json(draw, header, ("F32", "F16", "U8", "I64", "F8_E4M3", "C64", "", "a", "dtype", "shape"))
    encoded = header.encode(draw.choice(("utf-8",) * 20 + ("utf-16", "utf-8-sig")))
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[end:])


def read_with_library(directory: Path) -> Tensors:
    """The tensors by the safetensors library, shards by their index."""
    index = directory / INDEX
    if not index.exists():
        return from_torch(load_file(directory / SINGLE))
    weight_map = json.loads(index.read_text())["weight_map"]
    shards = {name: load_file(directory / name) for name in set(weight_map.values())}
    assert sum(map(len, shards.values())) == len(weight_map) and all(Path(name).name == name for name in shards)
    return from_torch({name: shards[shard][name] for name, shard in weight_map.items()})


if __name__ == "__main__":
    main(make_subject)
