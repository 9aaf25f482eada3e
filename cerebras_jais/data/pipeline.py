"""From documents to a folder of packed data: held-out split, tokens, rows, files."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from cerebras_jais.atomic import whole_folder
from cerebras_jais.data.dataset import SAMPLES_PER_FILE, DataParameters, check_new_folder, write_hdf5
from cerebras_jais.data.documents import (
    DataError,
    Document,
    count_bytes,
    language_of,
    read_documents,
    split_held_out,
)
from cerebras_jais.data.packing import PackingReport, pack_stream, pack_vsl
from cerebras_jais.data.token_store import Store, TokenWriter, map_tokens
from cerebras_jais.data.tokenizer import encode_documents, end_of_text_id, load_tokenizer, vocabulary_size
from cerebras_jais.encoding import Encoder, Engine, Tokens

T = TypeVar("T")
# The documents that are held out, as text: what `score` reads.
HELD_OUT_FILE = "held_out.jsonl"
# Documents tokenised at once, and their characters: enough to keep all cores busy, in bounded memory.
_BATCH = 256
_BATCH_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class PackedSplit:
    """One packed data directory: "train", or "held_out/ar" and the like, with what went into it."""

    name: str
    directory: Path
    documents: int
    n_bytes: int
    report: PackingReport


def pack_documents(
    documents: Iterable[Document],
    tokenizer: str | Path,
    max_sequence_length: int,
    output: str | Path,
    *,
    vsl: bool = False,
    held_out: int = 10,
    seed: int = 0,
    engine: Engine = Engine.AUTO,
    samples_per_file: int = SAMPLES_PER_FILE,
    progress: Callable[[Iterable[Document], str], Iterable[Document]] | None = None,
) -> list[PackedSplit]:
    """Pack documents into `output`/train and `output`/held_out/LANGUAGE and return what each holds, train first.

    Every `held_out`-th document of each language is held out (0: none). The training documents are shuffled by
    `seed`, or a corpus sorted by language would be trained on language by language. The held-out data stays apart by
    language for a loss and bits per byte of each; the Model Zoo reads several of them as one when `data_dir` is a
    list. Their text is in `output`/held_out.jsonl, which `held_out_documents` reads. `tokenizer` is a folder with
    tokenizer.json. `progress(documents, name)` may wrap the documents of a split.
    All or nothing: `output` appears when everything is written. Raises DataError if it exists and is not empty, and
    for text that the tokenizer turns into the end of text or does not give back (a sample is decoded again).
    """
    output = Path(output)
    check_new_folder(output)
    encoder = Encoder(load_tokenizer(tokenizer), engine)
    eos_id = end_of_text_id(encoder.tokenizer, tokenizer)
    training, kept = split_held_out(documents, held_out) if held_out else (list(documents), [])
    if not training:
        raise DataError("no document is left to train on; give more text or a larger --held-out")
    order = np.random.default_rng(seed).permutation(len(training))
    splits = {"train": [training[i] for i in order]}
    for document in kept:
        splits.setdefault(f"held_out/{language_of(document)}", []).append(document)

    packed = []
    with whole_folder(output) as hidden:
        for name, members in splits.items():
            watched = progress(members, name) if progress else members
            waiting = hidden / "waiting"
            waiting.mkdir()
            store = _encoded(encoder, watched, eos_id, waiting)
            rows = (
                pack_vsl(store, max_sequence_length, eos_id, seed=seed)
                if vsl
                else pack_stream(store, max_sequence_length, eos_id)
            )
            metadata = DataParameters(
                vocab_size=vocabulary_size(encoder.tokenizer),
                eos_id=eos_id,
                pad_id=eos_id,
                tokenizer=str(tokenizer),
                output_dir=str(output / name),
                source=_common_source(members),
                documents=len(members),
                raw_bytes=count_bytes(members),
                raw_characters=sum(len(document.text) for document in members),
            )
            write_hdf5(hidden / name, rows, metadata=metadata, samples_per_file=samples_per_file)
            shutil.rmtree(waiting)
            packed.append(PackedSplit(name, output / name, len(members), metadata.raw_bytes, rows.report))
        if kept:
            _write_documents(hidden / HELD_OUT_FILE, kept)
    return packed


def held_out_documents(packed: str | Path) -> list[Document]:
    """The documents that `pack_documents` held out when it made a folder.

    Raises DataError where there are none, OSError where the folder cannot be read.
    """
    if HELD_OUT_FILE not in os.listdir(packed):
        raise DataError(
            f"{packed}: has no {HELD_OUT_FILE}, so no document is known to be held out of training; give the folder "
            "that `cerebras-jais data pack` wrote without --held-out 0"
        )
    return list(read_documents(Path(packed) / HELD_OUT_FILE))


def _write_documents(file: Path, documents: Sequence[Document]) -> None:
    with file.open("w", encoding="utf-8", newline="\n") as lines:
        for document in documents:
            entry = {"text": document.text, "language": language_of(document), "source": document.source}
            lines.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _encoded(encoder: Encoder, documents: Iterable[Document], eos_id: int, folder: Path) -> Store:
    """The tokens of documents, in two files of a folder."""
    tokens, ends = folder / "tokens", folder / "ends"
    with TokenWriter(tokens, ends, eos_id) as writer:
        for batch in tokenised(encoder, documents, eos_id):
            writer.extend(batch)
    return Store([map_tokens(tokens, ends)])


def tokenised(encoder: Encoder, documents: Iterable[Document], eos_id: int) -> Iterator[Tokens]:
    """Yield the token ids of documents, many at a time; see `encode_documents` for the errors."""
    for batch in batches(documents, lambda document: len(document.text)):
        yield encode_documents(encoder, batch, eos_id)


def batches(items: Iterable[T], characters: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield the items in lists that one call of the tokenizer takes: enough for all cores, in bounded memory."""
    batch: list[T] = []
    total = 0
    for item in items:
        size = characters(item)
        if batch and (len(batch) == _BATCH or total + size > _BATCH_CHARACTERS):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch


def _common_source(documents: Sequence[Document]) -> str:
    # A line of a .jsonl file is named FILE:LINE.
    files = sorted({re.sub(r":\d+$", "", document.source) for document in documents})
    return files[0] if len(files) == 1 else os.path.commonpath(files) or files[0]
