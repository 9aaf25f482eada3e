"""How fast `data build` makes training data of text, beside the engines that others use, and in how much memory.

    python benchmarks/data.py --directory build/data --texts xquad.ar.json --megabytes 200
    python benchmarks/data.py --directory build/data --words ar.dic --words en_US.dic --megabytes 200

Text is documents of words of a spelling dictionary drawn at random, or the sentences of files that `data pack` reads,
joined in new orders with 8% of their words exchanged. It is written once as JSON lines in four files. Then, one after
the other, each in processes of its own, on the cores of the machine:

- text: `data build` without cleaning and duplicates, packed rows of 2,048 (vsl) at the end, against
  `tokenizers.encode_batch` alone, in as many processes, whose ids must be equal;
- recipe: `data build` with cleaning, the rules of FineWeb-2, exact hashes and MinHash signatures, its later stages of
  MinHash not counted, against datatrove's own blocks for the same (--datatrove MB of the text; needs spaCy);
- zoo: the Model Zoo's data_preprocess on the same files (--modelzoo PYTHON, an environment that has it);
- the peak memory of the largest process of each `data build`; --memory MB, which may come again, has nothing but this
  measured, for texts of so many MB.

Seconds are those of the clock, "processor" those of all cores; ratios within one run are what counts. The packages'
bytecode is written before, as an installation does, and the engine alone is timed without its start.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

import numpy as np
import yaml

from benchmarks.cleaning import RULES, Datatrove
from cerebras_jais.data.documents import Document, read_documents
from cerebras_jais.data.token_store import open_store
from cerebras_jais.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[1]
FILES = 4
WORKERS = 2
CONTEXT = 2048
VOCABULARY = 32_000


# ---- text -----------------------------------------------------------------------------------------------------------


def random_documents(words: list[str], common: list[str], draw: random.Random) -> Iterator[str]:
    """Documents of words, every sixth a common one, of log-normal length, in sentences and paragraphs."""
    while True:
        length = min(int(draw.lognormvariate(5.5, 1)) + 20, 20_000)
        chosen = draw.choices(words, k=length)
        chosen[::6] = draw.choices(common, k=len(chosen[::6]))
        for place in range(12, length, 13):
            chosen[place] += ".\n" if draw.random() < 0.2 else "."
        yield " ".join(chosen).replace("\n ", "\n") + "."


def shuffled_documents(texts: list[str], draw: random.Random) -> Iterator[str]:
    """Sentences of texts in new orders, 8% of their words exchanged for others."""
    sentences = [part.strip() for text in texts for part in re.split(r"(?<=[.!?؟])\s+", text) if part.strip()]
    words = [word for sentence in sentences for word in sentence.split()]
    while True:
        chosen = draw.choices(sentences, k=max(2, int(draw.lognormvariate(2, 0.7))))
        yield " ".join(
            word if draw.random() > 0.08 else draw.choice(words) for sentence in chosen for word in sentence.split()
        )


def write_text(folder: Path, documents: Iterator[str], megabytes: float) -> float:
    """Write documents as JSON lines in four files; the megabytes of their text."""
    folder.mkdir(parents=True)
    outs = [(folder / f"{number}.jsonl").open("w", encoding="utf-8") for number in range(FILES)]
    size, number = 0, 0
    while size < megabytes * 1e6:
        text = next(documents)
        size += len(text.encode("utf-8"))
        outs[number % FILES].write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        number += 1
    for out in outs:
        out.close()
    return size / 1e6


def texts_of(file: Path) -> Iterator[str]:
    """The documents of a file of JSON lines."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


# ---- what is measured -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What a `data build` took: seconds of the clock and of all cores, and the peak of its largest process in MB."""

    seconds: float
    processor: float
    memory: int

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s (processor {self.processor:.1f}), peak {self.memory} MB"


def build(folder: Path, text: Path, name: str, steps: dict[str, Any], language: str) -> Run:
    """Run `data build`."""
    settings = {
        "sources": {"text": {"path": str(text), "language": language}},
        "steps": steps,
        "tokenizer": str(folder / "tokenizer"),
        "phases": {"2k": {"context": CONTEXT, "packing": "vsl"}},
        "output": str(folder / name),
        "workers": WORKERS,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    shutil.rmtree(folder / name, ignore_errors=True)
    command = [sys.executable, "-m", "cerebras_jais.cli", "data", "build", str(folder / f"{name}.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run([*command, "--dry-run"], env=environment, check=True, capture_output=True)
    with (folder / f"{name}.log").open("w+") as log:
        began = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        log.seek(0)
        if status:
            sys.exit(f"data build: {log.read()}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024)


def timed(work: Callable[..., Any], *arguments: tuple[Any, ...]) -> tuple[list[Any], float]:
    """Call a function for each argument tuple in as many processes as a run has workers; results and seconds."""
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        list(pool.map(abs, range(WORKERS)))  # started
        began = time.monotonic()
        found = list(pool.map(work, *zip(*arguments, strict=True)))
        return found, time.monotonic() - began


def encode_alone(file: Path, tokenizer: Path) -> tuple[int, int]:
    """Tokens of a file by tokenizers.encode_batch, and a digest of its documents' ids that ignores their order."""
    loaded = load_tokenizer(tokenizer)
    total, digest, batch = 0, 0, []

    def encode() -> None:
        nonlocal total, digest
        for encoding in loaded.encode_batch(batch, add_special_tokens=False):
            total += len(encoding.ids)
            digest ^= hash(tuple(encoding.ids))
        batch.clear()

    for text in texts_of(file):
        batch.append(text)
        if len(batch) == 256:
            encode()
    encode()
    return total, digest


def datatrove_blocks(file: Path, language: str, folder: Path, rank: int) -> int:
    """datatrove's own blocks for the steps of the recipe, on one file; how many documents they keep."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.utils.logging import logger
    from xxhash import xxh64_intdigest

    logger.remove()
    filters = Datatrove(language, RULES[language])
    signatures = MinhashDedupSignature(str(folder / "theirs"), language=filters.language)
    signatures._hash_func = lambda run: xxh64_intdigest(run.encode())  # it gives xxhash 4 a str
    kept = [
        Document(text=text, id=str(number))
        for number, text in enumerate(texts_of(file))
        if filters.reason(text) is None
    ]
    signatures.run(iter(kept), rank, 1)
    tokens = DocumentTokenizer(
        str(folder / "theirs-tokens"), tokenizer_name_or_path=str(folder / "tokenizer" / "tokenizer.json")
    )
    tokens.run(iter(kept), rank, 1)
    return len(kept)


def preprocess(python: Path, folder: Path, text: Path) -> float:
    """The seconds of the Model Zoo's data_preprocess."""
    output = folder / "zoo"
    shutil.rmtree(output, ignore_errors=True)
    config = {
        "setup": {
            "data": {"type": "local", "source": str(text)},
            "mode": "pretraining",
            "output_dir": str(output),
            "processes": WORKERS,
        },
        "processing": {
            "huggingface_tokenizer": str(folder / "tokenizer"),
            "max_seq_length": CONTEXT,
            "read_hook": "cerebras.modelzoo.data_preparation.data_preprocessing.hooks:text_read_hook",
            "read_hook_kwargs": {"text_key": "text"},
            "use_ftfy": False,
        },
        "dataset": {"use_vsl": True},
    }
    (folder / "zoo.yaml").write_text(yaml.safe_dump(config))
    began = time.monotonic()
    done = subprocess.run(
        [str(python.parent / "cszoo"), "data_preprocess", "run", "--config", str(folder / "zoo.yaml")],
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - began
    if done.returncode or not list(output.rglob("*.h5")):
        sys.exit(f"data_preprocess: {done.stderr[-2000:]}")
    return seconds


PLAIN = {"clean": None, "deduplicate": {"exact": "off"}}
RECIPE = {"quality": "fineweb", "deduplicate": {"exact": "across", "near": "across"}}


def measure_recipe(folder: Path, size: float, language: str, datatrove_megabytes: float) -> None:
    """Measure the recipe, and datatrove's blocks on some of the text where so much is asked for."""
    run = build(folder, folder / "text", "recipe", RECIPE, language)
    spent = stage_seconds(folder / "recipe")
    rate = size / (run.seconds - spent.get("near", 0) - spent.get("cluster", 0))
    print(f"recipe: {run}; {size / run.seconds:.1f} MB/s; without near and cluster {rate:.1f}")
    print(f"  by stage: {', '.join(f'{name} {took:.1f}' for name, took in spent.items())}")
    report = json.loads((folder / "recipe" / "report.json").read_text())
    print(f"  {report['sources']['text']['kept']} of {report['sources']['text']['read']} documents kept", flush=True)
    if not datatrove_megabytes:
        return
    share = datatrove_megabytes / size
    cut = folder / "cut"
    cut.mkdir()
    for file in sorted((folder / "text").iterdir())[:WORKERS]:
        kept = [line for line, _ in zip(file.open(encoding="utf-8"), range(int(share * 1e9)), strict=False)]
        kept = kept[: max(1, int(len(kept) * share * FILES / WORKERS))]
        (cut / file.name).write_text("".join(kept), encoding="utf-8")
    cut_size = sum(len(text.encode()) for file in cut.iterdir() for text in texts_of(file)) / 1e6
    _, took = timed(
        datatrove_blocks, *((file, language, folder, rank) for rank, file in enumerate(sorted(cut.iterdir())))
    )
    found = cut_size / took
    print(
        f"datatrove's blocks: {cut_size:.1f} MB in {took:.1f} s, {found:.2f} MB/s; recipe {rate / found:.1f}x",
        flush=True,
    )


def measure_text(folder: Path, size: float, language: str, modelzoo: Path | None) -> None:
    """Measure text without filters, the engine alone, and the Model Zoo where its Python is given."""
    run = build(folder, folder / "text", "plain", PLAIN, language)
    print(f"text: {run}; {size / run.seconds:.1f} MB/s", flush=True)
    report = json.loads((folder / "plain" / "report.json").read_text())
    packed = report["phases"]["2k"]["folders"]["2k"]
    tokens = sum(part["tokens"] for part in packed["mixture"])
    stored = sum(file.stat().st_size for file in (folder / "plain" / "2k").glob("*.h5"))
    print(f"  {tokens} tokens, {packed['fill']:.4%} full, {stored / tokens:.2f} bytes a token on the disk")
    found, took = timed(encode_alone, *((file, folder / "tokenizer") for file in sorted((folder / "text").iterdir())))
    store = open_store(folder / "plain" / "store" / "text")
    assert sum(total for total, _ in found) == tokens - len(store), "the ids differ"
    digest = np.bitwise_xor.reduce([hash(tuple(ids[:-1].tolist())) for ids in store.slices(np.arange(len(store)))])
    assert digest == np.bitwise_xor.reduce([digest for _, digest in found]), "the ids differ"
    print(
        f"encode_batch alone: {took:.1f} s, {size / took:.1f} MB/s, the same ids; text {took / run.seconds:.1f}x",
        flush=True,
    )
    if modelzoo:
        took = preprocess(modelzoo, folder, folder / "text")
        print(f"data_preprocess: {took:.1f} s, {size / took:.1f} MB/s; text {took / run.seconds:.1f}x", flush=True)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--texts", type=Path, action="append", default=[])
    parser.add_argument("--words", type=Path, action="append", default=[])
    parser.add_argument("--language", choices=("ar", "en"), default="ar")
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--datatrove", type=float, default=0, metavar="MB")
    parser.add_argument("--modelzoo", type=Path, metavar="PYTHON")
    parser.add_argument("--memory", type=float, action="append", default=[], metavar="MB")
    options = parser.parse_args()
    folder = options.directory
    draw = random.Random(0)
    if options.words:
        lines = [line for file in options.words for line in file.read_text(encoding="utf-8").splitlines()[1:]]
        words = [word for line in lines if (word := re.split(r"[/\s]", line)[0])]
        common = sorted(word for word in RULES[options.language].words.stop_words if word.isalpha())
        documents = random_documents(words, common, draw)
    else:
        texts = [document.text for file in options.texts for document in read_documents(file)]
        documents = shuffled_documents(texts, draw)
    for wanted in options.memory or [options.megabytes]:
        shutil.rmtree(folder, ignore_errors=True)
        size = write_text(folder / "text", documents, wanted)
        sample = [text for text, _ in zip(texts_of(folder / "text" / "0.jsonl"), range(4000), strict=False)]
        tokenizer = train_tokenizer((Document(text, None, "") for text in sample), VOCABULARY)
        save_tokenizer(tokenizer, folder / "tokenizer", CONTEXT)
        print(f"{size:.0f} MB, {tokenizer.get_vocab_size()} entries, {WORKERS} processes", flush=True)
        if options.memory:
            for name, steps in (("recipe", RECIPE), ("plain", PLAIN)):
                print(f"{name}: {build(folder, folder / 'text', name, steps, options.language)}", flush=True)
        else:
            measure_recipe(folder, size, options.language, options.datatrove)
            measure_text(folder, size, options.language, options.modelzoo)


def stage_seconds(output: Path) -> dict[str, float]:
    """The seconds between the first and the last task of each stage, by the times of their files."""
    ends: dict[str, float] = {}
    for folder in [*(output / "run" / "stages").iterdir(), *(output / "run").glob("phase-*/*")]:
        done = [file.stat().st_mtime for file in (folder / "completions").glob("*")]
        if done:
            ends[folder.name] = max(done)
    began = (output / "run" / "inputs.json").stat().st_mtime
    found = {}
    for name, end in sorted(ends.items(), key=lambda item: item[1]):
        found[name] = end - began
        began = end
    return found


if __name__ == "__main__":
    main()
