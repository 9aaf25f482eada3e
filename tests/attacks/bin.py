"""Damage pickle shards and read them: `python tests/attacks/bin.py --count N --seed S`; exit status 1 on a bad verdict.

Half of the damage is to bytes of the archive, mostly to its structure; half is to the pickle inside an archive that is
written again around it, so that what lies behind the archive's own checks is reached. The judge is torch.load.
"""

import json
import random
import sys
import warnings
import zipfile
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

import torch

from checkpoint_convert.formats.torch_bin import INDEX, SINGLE, open_bin_model
from tests.attacks.mutations import Region, Subject, Tensors, from_torch, main, mutate_bytes, mutate_index

PIECES = (  # of pickles, to put anywhere
    *(b"c__builtin__\neval\n", b"cos\nsystem\n", b"ctorch\nFloatStorage\n", b"ctorch\nHalfStorage\n", b"R", b"b", b"Q"),
    *(b"ctorch.storage\nUntypedStorage\n", b"ctorch\nbfloat16\n", b"ctorch._utils\n_rebuild_tensor_v3\n", b"\x81"),
    *(b"h\0", b"h\1", b"h\3", b"q\0", b"q\3", b"(", b"t", b"u", b"s", b"}", b")", b"N", b"\x88", b".", b"0", b"2"),
    *(b"K\0", b"K\xff", b"J\xff\xff\xff\xff", b"M\xff\xff", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x8a\0"),
    *(b"\x85", b"\x86", b"\x87", b"X\0\0\0\0", b"X\xff\xff\xff\xff", b"X\1\0\0\x000", b"X\3\0\0\0cpu", b"\x82\1"),
    b"j\xff\xff\xff\xff",
)


def make_subject(directory: Path) -> Subject:
    """The files to damage: plain, with every kind of tensor, and sharded."""
    torch.manual_seed(0)
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    every = {"base": base, "tied": base, "rows": base[1:3], "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5)}
    every |= {"half": torch.ones(3).half(), "long": torch.arange(5), "bool": torch.tensor([True, False])}
    every |= {"bf16": torch.nn.Parameter(torch.randn(2, 3).bfloat16())}
    cases = {"plain": torch.nn.Linear(3, 2).state_dict(), "every": every}
    for name, state in cases.items():
        (directory / name).mkdir(parents=True)
        torch.save(state, directory / name / SINGLE)
    sharded = directory / "sharded"
    sharded.mkdir()
    weight_map = {}
    for number in (1, 2):
        shard = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({f"layer.{number}.{k}": torch.full((2, 3), float(number)) for k in "ab"}, sharded / shard)
        weight_map |= {f"layer.{number}.{k}": shard for k in "ab"}
    (sharded / INDEX).write_text(json.dumps({"metadata": {"total_size": 96}, "weight_map": weight_map}, indent=2))
    return Subject((directory / "plain", directory / "every", sharded), mutate, open_bin_model, read_with_torch)


def mutate(draw: random.Random, directory: Path) -> None:
    index = directory / INDEX
    if index.exists() and draw.random() < 0.6:
        mutate_index(draw, index)
        return
    path = draw.choice(sorted(directory.glob("*.bin")))
    if draw.random() < 0.5:
        path.write_bytes(mutate_bytes(draw, path.read_bytes(), find_structure(path)))
    else:
        mutate_pickle(draw, path)


def find_structure(path: Path) -> list[Region]:
    """The headers, the pickle and the directory of an archive, as Python's own zipfile finds them."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        regions = [(archive.start_dir, path.stat().st_size)] * 4
    for entry in entries:
        end = entry.header_offset + 30 + len(entry.filename.encode())
        regions.append((entry.header_offset, end))
        if not entry.filename.split("/")[1].startswith("data/"):
            regions.append((end, end + 60 + entry.file_size))
    return regions


def mutate_pickle(draw: random.Random, path: Path) -> None:
    """Damage the pickle, or the set of entries, in an archive that is otherwise whole."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    code = entries[name]
    at = draw.randrange(2, len(code))
    match draw.randrange(6):
        case 0 | 1:
            entries[name] = mutate_bytes(draw, code, [(0, len(code))])
        case 2:
            entries[name] = code[:at] + draw.choice(PIECES) + code[at:]
        case 3:
            piece = draw.choice(PIECES)
            entries[name] = code[:at] + piece + code[at + len(piece) :]
        case 4:  # a number becomes another: sizes, strides, offsets, places of the memo
            places = [i for i in range(2, len(code) - 1) if code[i : i + 1] in b"Khq"]
            at = draw.choice(places) + 1
            entries[name] = (
                code[:at] + bytes([draw.choice((0, 1, 2, 3, 4, 6, 12, 24, 255, code[at] ^ 1))]) + code[at + 1 :]
            )
        case 5:
            other = draw.choice(sorted(entries))
            match draw.randrange(4):
                case 0:
                    del entries[other]
                case 1:
                    entries[other] = mutate_bytes(draw, entries[other], [])
                case 2:
                    entries[other + draw.choice(("x", "/y", "0"))] = entries[other]
                case 3:
                    entries[other] = entries[draw.choice(sorted(entries))]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if draw.random() < 0.05 else zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data, archive.compression)


def read_with_torch(directory: Path) -> Tensors:
    """The tensors by torch.load, shards by their index."""
    warnings.simplefilter("ignore")
    index = directory / INDEX
    if not index.exists():
        return from_torch(torch.load(directory / SINGLE, weights_only=True, map_location="cpu"))
    weight_map = json.loads(index.read_text())["weight_map"]
    shards = {
        name: torch.load(directory / name, weights_only=True, map_location="cpu") for name in set(weight_map.values())
    }
    assert sum(map(len, shards.values())) == len(weight_map) and all(Path(name).name == name for name in shards)
    return from_torch({name: shards[shard][name] for name, shard in weight_map.items()})


if __name__ == "__main__":
    main(make_subject)
