"""From documents to a folder of packed data: held-out split, tokens, rows, files."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np

from cerebras_jais.atomic import whole_folder
from cerebras_jais.data.ahead import one_ahead
from cerebras_jais.data.dataset import SAMPLES_PER_FILE, DataParameters, check_new_folder, write_hdf5
from cerebras_jais.data.documents import (
    DataError,
    Document,
    check_held_out,
    language_of,
    read_documents,
)
from cerebras_jais.data.packing import PackingReport, pack_stream, pack_vsl
from cerebras_jais.data.token_store import Store, TokenWriter, in_order, map_tokens
from cerebras_jais.data.tokenizer import encode_documents, end_of_text_id, load_tokenizer, vocabulary_size
from cerebras_jais.encoding import Encoder, Engine

T = TypeVar("T")
TRAIN = "train"
# The documents that are held out, as text: what `score` reads.
HELD_OUT_FILE = "held_out.jsonl"
ORDERED_ABOVE = 2**29
"""Tokens of a store that are read in any order, as they lie: 2 GiB, which the system keeps in memory."""
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


class Split:
    """A data directory while its documents are collected: their tokens wait in two files.

    Args:
        name: as `PackedSplit` has it.
        file: a name for the files of the tokens, without its ending.
        eos_id: the id that is put behind each document; None where they end by themselves.
    """

    def __init__(self, name: str, file: Path, eos_id: int | None = None) -> None:
        self.name = name
        self.documents = self.n_bytes = self.characters = self.discarded = 0
        self.files: set[str] = set()
        self._paths = file.with_suffix(".tokens"), file.with_suffix(".ends")
        self._writer = TokenWriter(*self._paths, eos_id)

    def add(self, ids: np.ndarray, n_bytes: int, characters: int) -> None:
        """Add a document: its ids, uint32 [n], and the bytes of UTF-8 and characters of its text.

        One without a token, of which a normaliser leaves nothing, is counted as discarded.
        """
        if not len(ids):
            self.discarded += 1
            return
        self._writer.append(ids)
        self.documents += 1
        self.n_bytes += n_bytes
        self.characters += characters

    def store(self) -> Store:
        """What was collected; nothing can be added any more."""
        self._writer.close()
        return Store([map_tokens(*self._paths)])


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
    tokenizer.json. `progress(documents, name)` may wrap the documents. They are taken one batch at a time, and their
    tokens wait on the disk, in `output`.
    All or nothing: `output` appears when everything is written. Raises DataError if it exists and is not empty, and
    for text that the tokenizer turns into the end of text or does not give back (a sample is decoded again).
    """
    output = Path(output)
    check_new_folder(output)
    if held_out:
        check_held_out(held_out)
    encoder = Encoder(load_tokenizer(tokenizer), engine)
    eos_id = end_of_text_id(encoder.tokenizer, tokenizer)
    watched = progress(documents, "tokenising") if progress else documents
    packed = []
    with whole_folder(output) as hidden:
        waiting = hidden / "waiting"
        waiting.mkdir()
        for split in _collect(watched, encoder, eos_id, hidden, waiting, held_out):
            store = split.store()
            metadata = DataParameters(
                vocab_size=vocabulary_size(encoder.tokenizer),
                eos_id=eos_id,
                pad_id=eos_id,
                tokenizer=os.path.basename(os.path.abspath(tokenizer)),
                output_dir=split.name,
                source=_common_name(split.files),
                documents=split.documents,
                raw_bytes=split.n_bytes,
                raw_characters=split.characters,
                discarded=split.discarded,
            )
            report = pack_store(
                store,
                np.random.default_rng(seed).permutation(len(store)) if split.name == TRAIN else None,
                max_sequence_length,
                hidden / split.name,
                metadata,
                scratch=waiting,
                vsl=vsl,
                seed=seed,
                samples_per_file=samples_per_file,
            )
            packed.append(PackedSplit(split.name, output / split.name, split.documents, split.n_bytes, report))
        shutil.rmtree(waiting)
    return packed


def _collect(
    documents: Iterable[Document], encoder: Encoder, eos_id: int, folder: Path, waiting: Path, held_out: int
) -> list[Split]:
    """Encode documents into the splits, train first; write those held out."""
    splits = {TRAIN: Split(TRAIN, waiting / "0", eos_id)}
    seen: Counter[str] = Counter()
    with (folder / HELD_OUT_FILE).open("w", encoding="utf-8", newline="\n") as kept:
        read = batches(documents, lambda document: len(document.text))
        for batch, tokens in one_ahead(lambda batch: (batch, encode_documents(encoder, batch, eos_id)), read):
            for document, ids in zip(batch, tokens.split(), strict=True):
                language = language_of(document)
                seen[language] += 1
                name = TRAIN
                if held_out and seen[language] % held_out == 0:
                    name = f"held_out/{language}"
                    entry = {"text": document.text, "language": language, "source": document.source}
                    kept.write(json.dumps(entry, ensure_ascii=False) + "\n")
                if name not in splits:
                    splits[name] = Split(name, waiting / str(len(splits)), eos_id)
                splits[name].add(ids, len(document.text.encode("utf-8")), len(document.text))
                # A line of a .jsonl file is named FILE:LINE.
                splits[name].files.add(re.sub(r":\d+$", "", document.source))
    if not splits[TRAIN].documents:
        raise DataError("no document is left to train on; give more text or a larger --held-out")
    if not (folder / HELD_OUT_FILE).stat().st_size:
        (folder / HELD_OUT_FILE).unlink()
    return list(splits.values())


def pack_store(
    store: Store,
    order: np.ndarray | None,
    max_sequence_length: int,
    directory: str | Path,
    metadata: DataParameters,
    *,
    scratch: Path,
    vsl: bool,
    marked: bool = False,
    seed: int = 0,
    samples_per_file: int = SAMPLES_PER_FILE,
) -> PackingReport:
    """Pack documents of a store into a new Model Zoo data directory, and return what went into its rows.

    `order`, `marked` and `seed` are those of `pack_stream` and `pack_vsl`, the others those of `write_hdf5`. Of a store
    of more than ORDERED_ABOVE tokens the documents are first written in their order to files in the folder `scratch`:
    so the store is read from its begin to its end, where one document here, one there, would be slow.
    """
    with TemporaryDirectory(dir=scratch) as folder:
        if order is not None and store.tokens > ORDERED_ABOVE:
            store, order = in_order(store, order, Path(folder)), None
        if vsl:
            rows = pack_vsl(store, max_sequence_length, metadata.pad_id, order=order, marked=marked, seed=seed)
        else:
            rows = pack_stream(store, max_sequence_length, metadata.pad_id, order=order)
        write_hdf5(directory, rows, metadata=metadata, samples_per_file=samples_per_file)
    return rows.report


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


def _common_name(names: set[str]) -> str:
    """The name of the file, or of the folder around all files: a path would be one of this machine."""
    files = sorted(names)
    path = files[0] if len(files) == 1 else os.path.commonpath(files) or files[0]
    return os.path.basename(path) or path
