"""Damage GGUF files and read them: `python tests/attacks/gguf_files.py --count N --seed S`; status 1 if bad.

Damage is to bytes, mostly of the header, and to the numbers and texts in it, which are found by their places. The judge
is the reader of the package gguf; a reader that asks for more than 2 GB is a crash.
"""

import random
import struct
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

import gguf

from checkpoint_convert.formats.gguf import KINDS, GgufTensor, header, read_gguf
from tests.attacks.mutations import EXTREMES, Subject, Tensors, main, mutate_bytes

FILE = "model.gguf"
SMALL = {"general.architecture": "llama", "llama.block_count": 2}
LARGE = {
    **SMALL,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.tokens": ["<s>", "ا", "b"] * 20,
    "tokenizer.ggml.scores": [0.0, -1.5, -2.0] * 20,
    "tokenizer.ggml.token_type": [3, 1, 1] * 20,
    "tokenizer.chat_template": "{{ messages }}",
}


def make_subject(directory: Path) -> Subject:
    """The files to damage: of few keys and tensors, and with every type."""
    every = [GgufTensor(f"blk.{number}.{kind}.weight", (3, 64), kind) for kind in KINDS for number in (0, 1)]
    for name, keys, tensors in (("small", SMALL, every[:2]), ("every", LARGE, [*every, GgufTensor("b", (5,), "F32")])):
        (directory / name).mkdir(parents=True)
        size = sum(-(-tensor.nbytes // 32) * 32 for tensor in tensors)
        (directory / name / FILE).write_bytes(header(keys, tensors) + random.Random(name).randbytes(size))
    return Subject((directory / "small", directory / "every"), mutate, open_file, read_with_package)


def open_file(directory: Path) -> dict:
    """The bytes of the tensors by name and shape, so that another shape of the same bytes is another tensor."""
    file = read_gguf(directory / FILE)
    return {f"{name} {file.tensors[name].shape}": stored for name, stored in file.stored.items()}


def mutate(draw: random.Random, directory: Path) -> None:
    path = directory / FILE
    data = path.read_bytes()
    end = data.rindex(b"weight") + 40
    if draw.random() < 0.5:
        path.write_bytes(mutate_bytes(draw, data, [(0, 24), (24, end), (24, end)]))
        return
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2))):
        places = [at for at in range(8, end) if 0 < struct.unpack_from("<Q", out, at)[0] < 1000]
        at = draw.choice(places or [8])
        old = struct.unpack_from("<Q", out, at)[0]
        new = draw.choice((draw.choice(EXTREMES), old + draw.choice((-32, -1, 1, 32)))) % (1 << 64)
        width = draw.choice((4, 8))
        out[at : at + width] = new.to_bytes(8, "little")[:width]
    path.write_bytes(out)


def read_with_package(directory: Path) -> Tensors:
    """The tensors by the reader of the package gguf."""
    found = {}
    for tensor in gguf.GGUFReader(directory / FILE).tensors:
        shape = tuple(int(size) for size in tensor.shape[::-1])
        columns = shape[-1] if len(shape) > 1 else 1
        block, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        content = tensor.data.tobytes()
        width = columns // block * size
        found[f"{tensor.name} {shape}"] = ("uint8", (len(content) // width, width), content)
    return found


if __name__ == "__main__":
    main(make_subject)
