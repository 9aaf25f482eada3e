"""How long embeddings are transferred, and in how much memory: `cerebras-jais vocab transfer` at the sizes of the card.

    python benchmarks/transfer.py --directory DIR

A donor of jais-30b's width (7,168) and a base of Llama-2-70b's (8,192), embedding and head, with 20,000 tokens shared
and 32,000 new ones. Rows are random numbers of rank 512 with noise, bfloat16. Both have one layer, whose weights are
zeros in holes of the file. The command runs in a process of its own; seconds of processor time are of all threads, and
memory is the peak resident size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

import ml_dtypes
import numpy as np
import torch

from cerebras_jais.checkpoint import LazyTensor, create_empty_checkpoint
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.tensors import tensors
from cerebras_jais.modelzoo_version import VERSION
from tests.cerebras_jais.model.examples import jais_section, llama_section

RANK, NOISE = 512, 0.5


def write_tokenizer(folder: Path, pieces: list[str], *, byte_level: bool) -> None:
    """A BPE tokenizer whose vocabulary is these pieces, without merges."""
    steps = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    model = {"type": "BPE", "vocab": {piece: number for number, piece in enumerate(pieces)}, "merges": []}
    content = {"version": "1.0", "added_tokens": [], "model": model}
    content |= {"pre_tokenizer": steps} if byte_level else {"normalizer": space}
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_model(path: Path, section: dict, ids: np.ndarray, seed: int) -> None:
    """A checkpoint of zeros whose embedding and head are random maps of the vectors of its tokens.

    Args:
        path: the file.
        section: its `model:` section.
        ids: of the vector that each row is made from, [rows]; equal numbers in two models are one token.
        seed: of the map and the noise.
    """
    listed = [tensor for tensor in tensors(DecoderConfig.from_section(section)) if tensor.same_as is None]
    state = {tensor.name: LazyTensor(tensor.shape, "bfloat16") for tensor in listed}
    record = {"version": VERSION, "params": {"trainer": {"init": {"model": section}}}}
    offsets = create_empty_checkpoint(path, {"model": state, "__metadata__": [record]}, complete=True)
    generator = torch.Generator().manual_seed(seed)
    with open(path, "r+b") as file:
        for tensor in listed:
            if tensor.kind in ("embedding", "head"):
                file.seek(offsets[f"model.{tensor.name}"])
                weight = torch.randn(RANK, tensor.shape[1], generator=generator) * 0.02 / RANK**0.5
                for start in range(0, len(ids), 4096):
                    vectors = np.stack(
                        [np.random.default_rng(token).standard_normal(RANK) for token in ids[start : start + 4096]]
                    )
                    rows = torch.from_numpy(vectors.astype(np.float32)) @ weight
                    rows += NOISE * 0.02 * torch.randn(rows.shape, generator=generator)
                    file.write(rows.numpy().astype(ml_dtypes.bfloat16).tobytes())


def write_models(directory: Path, shared: int, new: int, widths: tuple[int, int], own: int) -> list[str]:
    """Both models with their tokenizers, and the extended one; the words of the command."""
    bytes_and_letters = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    common = [f"t{number}" for number in range(shared)]
    base = [*bytes_and_letters, *(f"▁{text}" for text in common), *(f"▁own{number}" for number in range(own))]
    arabic = [f"Ø¹{number}" for number in range(new)]  # the two bytes of a letter, as a byte-level vocabulary has them
    donor = [*(f"Ġ{text}" for text in common), *(f"Ġ{piece}" for piece in arabic)]
    write_tokenizer(directory / "base" / "tokenizer", base, byte_level=False)
    extended = [*base, *(f"▁ع{number}" for number in range(new))]
    write_tokenizer(directory / "extended", extended, byte_level=False)
    write_tokenizer(directory / "donor" / "tokenizer", donor, byte_level=True)

    first = len(bytes_and_letters)
    of_base = np.arange(len(base)) + 10_000_000
    of_base[first : first + shared] = np.arange(shared)
    sizes = {"num_hidden_layers": 1, "filter_size": 128, "max_position_embeddings": 128}
    llama = llama_section(kv_groups=8, hidden_size=widths[1], num_heads=64, vocab_size=len(base), **sizes)
    jais = jais_section(hidden_size=widths[0], num_heads=56, vocab_size=len(donor), mup_base_filter_size=16.0, **sizes)
    write_model(directory / "base" / "model.mdl", llama, of_base, seed=1)
    write_model(directory / "donor" / "model.mdl", jais, np.arange(len(donor)), seed=2)
    words = ["--base", directory / "base" / "model.mdl", "--donor", directory / "donor" / "model.mdl"]
    words += ["--tokenizer", directory / "extended", "--output", directory / "extended.mdl"]
    return [str(word) for word in words]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--shared", type=int, default=20_000)
    parser.add_argument("--new", type=int, default=32_000)
    given = parser.parse_args()
    words = write_models(given.directory, given.shared, given.new, (7168, 8192), 32_000 - 293 - given.shared)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for dry in (True, False):
        command = [
            sys.executable,
            "-m",
            "cerebras_jais.cli",
            "vocab",
            "transfer",
            *words,
            *(["--dry-run"] if dry else []),
        ]
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{' '.join(command)} failed")
        print(
            f"{'learning alone' if dry else 'the whole command'}: {time.perf_counter() - start:.1f} s, "
            f"{usage.ru_utime + usage.ru_stime:.1f} s of processors, peak {usage.ru_maxrss / 1e6:.2f} GB",
            flush=True,
        )


if __name__ == "__main__":
    main()
