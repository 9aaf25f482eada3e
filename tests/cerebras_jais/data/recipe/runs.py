"""Small data runs for the tests beside this and for tests/attacks: text, a tokenizer, a YAML, and what a run leaves."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import yaml

from cerebras_jais.data.documents import read_documents, sample_corpus_path
from cerebras_jais.data.tokenizer import save_tokenizer, train_tokenizer
from tests.process import PATIENCE

ROOT = Path(__file__).parents[4]


def documents():
    """The bundled sample."""
    return list(read_documents(sample_corpus_path()))


def write_tokenizer(folder):
    """A small tokenizer of the sample, in a folder."""
    return save_tokenizer(train_tokenizer(documents(), 600), folder, 128)


def write_lines(file, entries):
    """A file of JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), encoding="utf-8")
    return file


def write_corpus(folder, copies=1, seed=0):
    """Sources of three languages in several files each: the sample, its sentences in new orders, exact duplicates."""
    draw = random.Random(seed)
    for language in ("ar", "en", "code"):
        texts = [document.text for document in documents() if document.language == language]
        sentences = [sentence for text in texts for sentence in text.split("\n") if sentence.strip()]
        made = [*texts]
        for _ in range(copies):
            made += ["\n".join(draw.sample(sentences, min(len(sentences), 12))) for _ in texts]
            made += draw.sample(made, 3)
        for part in range(3):
            entries = [{"text": text} for text in made[part::3]]
            write_lines(folder / language / f"{part}.jsonl", entries)
    return folder


def settings(corpus, tokenizer, output, **changes):
    """The settings of a run over `write_corpus`, as plain values."""
    weights = {"ar": 490, "en": 980, "code": 196}
    return {
        "sources": {
            name: {"path": str(corpus / name), "language": name, "weight": weight} for name, weight in weights.items()
        },
        "steps": {"deduplicate": {"exact": "across", "near": "across", "buckets": 4, "hashes": 8}},
        "tokenizer": str(tokenizer),
        "phases": {"short": {"context": 128, "packing": "vsl"}, "long": {"context": 256}},
        "output": str(output),
        "workers": 1,
        "shard_mib": 1,
        **changes,
    }


def write_yaml(file, content):
    """A YAML with these settings."""
    file.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return file


def command(*words):
    """The words of a command line of `cerebras-jais`, for a process of its own."""
    return [sys.executable, "-m", "cerebras_jais.cli", *map(str, words)]


def environment():
    """The variables of such a process."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def build(file, *options):
    """Run `data build` in a process of its own."""
    words = command("data", "build", file, *options)
    return subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=PATIENCE)


def contents(output):
    """The digest of every file that a run leaves for its user."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.relative_to(output).parts[0] != "run"
    }
