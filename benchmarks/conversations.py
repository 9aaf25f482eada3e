"""How fast conversations are packed, and in how much memory: `data chat` against the tokenizer alone.

    python benchmarks/conversations.py --examples 1000000 --directory DIR

The conversations are words drawn at random from the bundled texts, Arabic or English, a question of 4 to 20 words and
an answer of 1 to 40, one in five with a second turn. `data chat` runs in a process of its own, from JSON lines to HDF5
files on the disk, with each engine that is installed. The tokenizer alone encodes the same texts, rendered beforehand
with their prompts, in batches of 256 (`encode_batch_fast`, the quickest call of the library tokenizers) in a process of
its own on as many threads. Seconds of processor time are of all threads; memory is the peak resident size.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

import numpy as np

from cerebras_jais.data.chat.prompts import render
from cerebras_jais.data.chat.reading import read_conversations
from cerebras_jais.data.documents import read_documents, sample_corpus_path
from cerebras_jais.data.packing import filled_positions
from cerebras_jais.data.shards import HDF5Source
from cerebras_jais.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

BATCH = 256


@dataclass(frozen=True)
class Run:
    """What one process took: seconds on the clock, seconds of processors, bytes resident at most."""

    seconds: float
    processor: float
    peak: int


def write_conversations(path: Path, count: int, seed: int) -> None:
    """Write conversations of random words as JSON lines."""
    words: dict[str, list[str]] = {"ar": [], "en": []}
    for document in read_documents(sample_corpus_path()):
        if document.language in words:
            words[document.language] += document.text.split()
    drawn = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            language = drawn.choice(("ar", "en"))
            messages = []
            for _ in range(1 + (drawn.random() < 0.2)):
                for role, most in (("user", 20), ("assistant", 40)):
                    text = " ".join(drawn.choices(words[language], k=drawn.randint(4 if role == "user" else 1, most)))
                    messages.append({"role": role, "content": text})
            file.write(json.dumps({"messages": messages, "language": language}, ensure_ascii=False) + "\n")


def encode_alone(conversations: Path, tokenizer: Path) -> None:
    """Encode the rendered texts, and print the seconds and bytes that went through the tokenizer."""
    encoder = load_tokenizer(tokenizer)
    seconds, processor, size, texts = 0.0, 0.0, 0, []

    def encode() -> None:
        nonlocal seconds, processor, size
        size += sum(len(text.encode("utf-8")) for text in texts)
        start, worked = time.perf_counter(), time.process_time()
        encoder.encode_batch_fast(texts, add_special_tokens=False)
        seconds, processor = seconds + time.perf_counter() - start, processor + time.process_time() - worked
        texts.clear()

    for conversation in read_conversations(conversations):
        texts.append(render(conversation.messages, conversation.language).text)
        if len(texts) == BATCH:
            encode()
    encode()
    print(json.dumps({"seconds": seconds, "processor": processor, "bytes": size}))


def run(command: list[str]) -> tuple[Run, str]:
    """Run a command; what it took and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TOKENIZERS_PARALLELISM": "true"}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return Run(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss), printed


def fill(folder: Path) -> float:
    """The share of positions that hold a token."""
    source = HDF5Source(folder, use_vsl=True)
    filled = 0
    for start in range(0, len(source), BATCH):
        rows = source.read(np.arange(start, min(start + BATCH, len(source))))
        filled += sum(int(filled_positions(row).sum()) for row in rows)
    return filled / (len(source) * source.sequence_length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--max-sequence-length", type=int, default=2048)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--encode-alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    text, tokenizer, output = (given.directory / name for name in ("conversations.jsonl", "tokenizer", "packed"))
    if given.encode_alone:
        encode_alone(text, tokenizer)
        return
    given.directory.mkdir(parents=True)
    write_conversations(text, given.examples, seed=0)
    save_tokenizer(train_tokenizer(read_documents(sample_corpus_path()), 8192), tokenizer, given.max_sequence_length)
    chat = [
        sys.executable,
        "-m",
        "cerebras_jais.cli",
        "data",
        "chat",
        "--text",
        str(text),
        "--tokenizer",
        str(tokenizer),
    ]
    chat += ["--max-sequence-length", str(given.max_sequence_length)]
    engines = ["tokenizers", *(["fastokens"] if find_spec("fastokens") else [])]
    ours = {engine: run([*chat, "--engine", engine, "--output", f"{output}-{engine}"]) for engine in engines}
    alone = [sys.executable, __file__, "--encode-alone", "--directory", str(given.directory)]
    _, told = run(alone)
    found = json.loads(told)
    size, seconds = found["bytes"], found["seconds"]
    print(ours["tokenizers"][1])
    print(f"{given.examples} examples, {size / 1e6:.0f} MB with their prompts, {os.cpu_count()} processors")
    print(f"{'run':<24}{'s':>8}{'MB/s':>8}{'processor s':>14}{'peak MB':>10}{'of the tokenizer':>18}")
    for engine, (took, _) in ours.items():
        rate, ratio = f"{size / took.seconds / 1e6:.2f}", f"{seconds / took.seconds:.2f}"
        name = f"data chat, {engine}"
        print(f"{name:<24}{took.seconds:>8.1f}{rate:>8}{took.processor:>14.1f}{took.peak / 1e6:>10.0f}{ratio:>18}")
    rate = f"{size / seconds / 1e6:.2f}"
    print(f"{'tokenizers alone':<24}{seconds:>8.1f}{rate:>8}{found['processor']:>14.1f}")
    print(f"train {fill(Path(f'{output}-tokenizers') / 'train'):.3%} full")


if __name__ == "__main__":
    main()
