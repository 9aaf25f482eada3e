"""How fast documents are packed and how full, and how fast text becomes token ids.

    python benchmarks/packing.py fill --documents 1000000
    python benchmarks/packing.py encode --megabytes 200 [--words FILE ...] [--tokenizer DIR]

`fill` draws lengths from a log-normal distribution (median 500, sigma 1; a document longer than a row is folded) and
puts them into rows: `fill_rows`, all at once and in windows, and best fit decreasing one document after the other, the
usual method, with the lengths of rooms as the bits of a whole number. Then `pack_vsl` and `pack_stream` make the rows.

`encode` encodes the same documents with the library `tokenizers` and with `Encoder`, engine fastokens, on one thread,
and checks that the ids are equal. Documents are words drawn at random: of the bundled texts, or of FILEs with one word
to a line, such as the word lists of spelling dictionaries; few words that come again and again flatter an engine that
remembers them.

Seconds are of the processor, of one thread; ratios within one run are what counts.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np

from cerebras_jais.data.documents import read_documents, sample_corpus_path
from cerebras_jais.data.filling import fill_rows
from cerebras_jais.data.packing import PACKED_AT_ONCE, PackedRows, pack_stream, pack_vsl
from cerebras_jais.data.token_store import Store
from cerebras_jais.data.tokenizer import load_tokenizer, train_tokenizer
from cerebras_jais.encoding import Encoder, Engine, Tokens

T = TypeVar("T")
MEDIAN, SIGMA = 500, 1.0
BATCH = 256


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What some work returns, and the seconds of the processor that it takes."""
    start = time.process_time()
    return work(), time.process_time() - start


def lengths_of(documents: int, seed: int) -> np.ndarray:
    """Tokens of documents, int64 [n]."""
    drawn = np.random.default_rng(seed).lognormal(np.log(MEDIAN), SIGMA, size=documents)
    return np.maximum(drawn.astype(np.int64), 1)


def folded(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Lengths of pieces, each at most a row."""
    whole = (lengths - 1) // capacity
    return np.concatenate([np.full(whole.sum(), capacity), lengths - whole * capacity])


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> int:
    """The rows of the usual method, one piece after the other into the row with the least room that takes it."""
    rows: list[list[int]] = []
    with_room: defaultdict[int, list[int]] = defaultdict(list)
    rooms = 0  # bit n: a row has room n
    for piece in np.argsort(lengths)[::-1].tolist():
        length = int(lengths[piece])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(piece)
        if left := room - length:
            with_room[left].append(row)
            rooms |= 1 << left
    return len(rows)


def in_windows(lengths: np.ndarray, capacity: int, window: int) -> int:
    """The rows that `fill_rows` needs of some pieces at a time."""
    return sum(len(fill_rows(lengths[start : start + window], capacity)[1]) for start in range(0, len(lengths), window))


def fill(documents: int, capacity: int) -> None:
    """Measure packing."""
    rng = np.random.default_rng(1)
    lengths = lengths_of(documents, seed=0)
    pieces = rng.permutation(folded(lengths, capacity))
    print(f"\n{documents} documents, {len(pieces)} pieces, rows of {capacity}")
    print(f"{'method':<36}{'s':>8}{'M documents/s':>16}{'full':>12}")
    methods: dict[str, Callable[[], int]] = {
        "fill_rows, all at once": lambda: len(fill_rows(pieces, capacity)[1]),
        f"fill_rows, windows of {PACKED_AT_ONCE}": lambda: in_windows(pieces, capacity, PACKED_AT_ONCE),
        "best fit decreasing, one by one": lambda: best_fit_decreasing(pieces, capacity),
    }
    for name, method in methods.items():
        rows, seconds = timed(method)
        full = pieces.sum() / (rows * capacity)
        print(f"{name:<36}{seconds:>8.3f}{documents / seconds / 1e6:>16.2f}{full:>12.4%}")
    few = lengths[: min(documents, 200_000)] + 1
    store = Store([Tokens(rng.integers(0, 80_000, size=few.sum(), dtype=np.uint32), np.cumsum(few))])
    order = rng.permutation(len(few))
    made: dict[str, PackedRows] = {
        "pack_vsl": pack_vsl(store, capacity, 0, order=order),
        "pack_stream": pack_stream(store, capacity, 0, order=order),
    }
    for name, packed in made.items():
        start = time.process_time()
        count = sum(1 for _ in packed)
        print(f"{name}: {count} rows, {store.tokens / (time.process_time() - start) / 1e6:.0f} M tokens/s")


def documents_of(words: list[str], megabytes: float, seed: int) -> Iterator[list[str]]:
    """Yield batches of documents of random words, of so many bytes in all."""
    drawn = random.Random(seed)
    left = megabytes * 1e6
    while left > 0:
        lengths = [min(int(drawn.lognormvariate(5, 1)) + 1, 20_000) for _ in range(BATCH)]
        batch = [" ".join(drawn.choices(words, k=length)) for length in lengths]
        left -= sum(len(text.encode("utf-8")) for text in batch)
        yield batch


def encode(words: list[Path], tokenizer: Path | None, megabytes: float) -> None:
    """Measure both engines."""
    given = [word for file in words for word in file.read_text(encoding="utf-8").split()]
    given = given or [word for document in read_documents(sample_corpus_path()) for word in document.text.split()]
    loaded = load_tokenizer(tokenizer) if tokenizer else train_tokenizer(read_documents(sample_corpus_path()), 8192)
    encoders = {engine: Encoder(loaded, engine) for engine in (Engine.TOKENIZERS, Engine.FASTOKENS)}
    seconds = dict.fromkeys([*encoders, "encode_batch"], 0.0)
    size = tokens = 0
    for batch in documents_of(given, megabytes, seed=0):
        size += sum(len(text.encode("utf-8")) for text in batch)
        found = {}
        for engine, encoder in encoders.items():
            found[engine], took = timed(lambda: encoder.encode(batch))  # noqa: B023
            seconds[engine] += took
        _, took = timed(lambda: loaded.encode_batch(batch, add_special_tokens=False))  # noqa: B023
        seconds["encode_batch"] += took
        tokens += len(found[Engine.FASTOKENS].ids)
        if any((a != b).any() for a, b in zip(*found.values(), strict=True)):
            sys.exit("the engines give different ids")
    print(f"{size / 1e6:.0f} MB, {tokens} tokens, {len(set(given))} different words; the ids are equal")
    print(f"{'engine':<16}{'s':>8}{'MB/s':>8}{'M tokens/s':>12}")
    for name, took in seconds.items():
        print(f"{name:<16}{took:>8.1f}{size / took / 1e6:>8.1f}{tokens / took / 1e6:>12.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    filling = verbs.add_parser("fill")
    filling.add_argument("--documents", type=int, default=1_000_000)
    filling.add_argument("--contexts", type=int, nargs="+", default=[2048, 8192])
    encoding = verbs.add_parser("encode")
    encoding.add_argument("--megabytes", type=float, default=200)
    encoding.add_argument("--words", type=Path, nargs="*", default=[])
    encoding.add_argument("--tokenizer", type=Path)
    given = parser.parse_args()
    if given.verb == "fill":
        for context in given.contexts:
            fill(given.documents, context)
    else:
        encode(given.words, given.tokenizer, given.megabytes)


if __name__ == "__main__":
    main()
