"""The first stage: a shard of a source is read, cleaned, judged, hashed and tokenised in one pass, in batches.

Its task writes the shard of the token store and, beside it in the folder of the run, what the later stages need: hashes
of the texts, MinHash signatures, counts, and some of the documents that were dropped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from cerebras_jais.data.clean.cleaner import Cleaned, Cleaner
from cerebras_jais.data.documents import DataError, Document
from cerebras_jais.data.recipe.decontaminate import Evaluation, read_evaluation
from cerebras_jais.data.recipe.duplicates import sorted_hashes
from cerebras_jais.data.recipe.folder import RunFolder, write_array
from cerebras_jais.data.recipe.inputs import Shard
from cerebras_jais.data.recipe.minhash import MinHash, Signatures, datatrove_signatures, signatures
from cerebras_jais.data.recipe.settings import DataRun, Source
from cerebras_jais.data.recipe.sources import Batch, Unreadable, place, read_shard
from cerebras_jais.data.recipe.words import simplified
from cerebras_jais.data.token_store import write_shard
from cerebras_jais.data.tokenizer import encode_documents, end_of_text_id, load_tokenizer
from cerebras_jais.encoding import Encoder, Engine, Tokens

CONTAMINATED, NO_TOKENS = "contaminated", "no-tokens"
_SHOWN = 20_000  # characters of a dropped document


@dataclass
class Counts:
    """What became of the documents of a shard."""

    read: int = 0
    kept: int = 0
    bytes: int = 0
    characters: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)


class _Dropped:
    """Counts documents that are not kept and keeps the first of each reason to look at."""

    def __init__(self, counts: Counts, kept: int) -> None:
        self.counts, self._kept = counts, kept
        self.lines: list[str] = []

    def add(self, reason: str, where: str, **what: Any) -> None:
        self.counts.dropped[reason] += 1
        if self.counts.dropped[reason] <= self._kept:
            line = {"reason": reason, "source": where, **what}
            self.lines.append(json.dumps(line, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Prepare:
    """Task n carries shard n out; see the module."""

    settings: DataRun
    folder: RunFolder

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Read, clean, hash and tokenise shard `rank`."""
        shard, number = self.folder.shard(rank)
        _ShardTask(self.settings, self.folder, load_tools(self.settings), shard, rank, number).carry_out()


@dataclass(frozen=True)
class _Tools:
    """What is loaded once in a process: for a run, whose settings stay the same."""

    run: DataRun
    cleaner: Cleaner
    encoder: Encoder
    eos_id: int
    evaluation: Evaluation | None

    @cached_property
    def minhash(self) -> MinHash | None:
        settings = self.run.steps.deduplicate
        return None if settings.near == "off" else MinHash(settings.words, settings.buckets, settings.hashes)


_LOADED: dict[str, _Tools] = {}


def load_tools(run: DataRun) -> _Tools:
    """What the tasks of a run need, made once in a process."""
    key = run.model_dump_json()
    if key not in _LOADED:
        _LOADED.clear()
        tokenizer = load_tokenizer(run.tokenizer)
        settings = run.steps.decontaminate
        _LOADED[key] = _Tools(
            run,
            Cleaner(run.steps.cleaner_settings()),
            Encoder(tokenizer, Engine(run.engine)),
            end_of_text_id(tokenizer, run.tokenizer),
            read_evaluation(settings) if settings is not None else None,
        )
    return _LOADED[key]


class _ShardTask:
    def __init__(self, run: DataRun, folder: RunFolder, tools: _Tools, shard: Shard, rank: int, number: int) -> None:
        self._run, self._folder, self._tools = run, folder, tools
        self._shard, self._rank, self._number = shard, rank, number
        self._source: Source = run.sources[shard.source]
        self._counts = Counts()
        self._dropped = _Dropped(self._counts, run.kept)
        self._hashes: list[bytes] = []
        self._sizes: list[tuple[int, int]] = []
        self._signatures = Signatures(tools.minhash) if tools.minhash is not None else None

    def carry_out(self) -> None:
        settings = self._run.steps.deduplicate
        shard = write_shard(
            self._folder.store(self._shard.source),
            self._number,
            self._tokens(),
            eos_id=self._tools.eos_id,
            inputs=self._folder.inputs_digest(self._rank),
            settings={"digest": self._folder.store_digest},
        )
        assert shard.documents == self._counts.kept
        write_array(self._folder.sizes(self._rank), np.asarray(self._sizes, np.uint32).reshape(-1, 2))
        if settings.exact != "off":
            hashes = np.frombuffer(b"".join(self._hashes), "<u8").reshape(-1, 2)
            salt = _salt(self._shard.source) if settings.exact == "within" else 0
            write_array(self._folder.hashes(self._rank), sorted_hashes(hashes ^ np.uint64(salt)))
        if self._signatures is not None:
            self._signatures.write(self._folder.signatures, self._rank)
        self._folder.write_counts(self._rank, {"source": self._shard.source, **vars(self._counts)})
        self._folder.write_dropped(self._rank, self._dropped.lines)

    def _tokens(self) -> Iterator[Tokens]:
        """The documents that are kept, as token ids, a batch at a time; everything else is counted on the way."""
        for batch in read_shard(self._shard, self._source, self._refused):
            documents = self._cleaned(batch)
            if not documents:
                continue
            tokens = encode_documents(self._tools.encoder, documents, self._tools.eos_id)
            empty = np.diff(tokens.ends, prepend=0) == 0
            if empty.any():
                for index in np.flatnonzero(empty):
                    self._dropped.add(NO_TOKENS, documents[index].source, text=documents[index].text)
                documents = [document for document, gone in zip(documents, empty, strict=True) if not gone]
            self._hash(documents)
            yield tokens

    def _refused(self, where: str, what: Unreadable) -> None:
        if self._run.on_error == "stop":
            raise DataError(f"{where}: {what.message}; or count such with on_error: count")
        self._counts.read += 1
        self._dropped.add(what.reason, where, problem=what.message)

    def _cleaned(self, batch: Batch) -> list[Document]:
        counts, cleaner, evaluation = self._counts, self._tools.cleaner, self._tools.evaluation
        documents: list[Document] = []
        counts.read += len(batch)
        for text, language, (part, line) in zip(batch.texts, batch.languages, batch.places, strict=True):
            found = cleaner(text, language)
            if not isinstance(found, Cleaned):
                where = place(self._shard.parts[part], line)
                self._dropped.add(found.reason, where, language=found.language, text=text[:_SHOWN])
                continue
            if evaluation is not None and evaluation.is_in(simplified(found.text)):
                where = place(self._shard.parts[part], line)
                self._dropped.add(CONTAMINATED, where, language=found.language, text=found.text[:_SHOWN])
                continue
            if found.changes:
                counts.changes.update(found.changes)
            documents.append(Document(found.text, found.language, f"{self._shard.parts[part].file}:{line}"))
        return documents

    def _hash(self, documents: Sequence[Document]) -> None:
        from xxhash import xxh3_128_digest

        counts, settings = self._counts, self._run.steps.deduplicate
        contents = [document.text.encode("utf-8") for document in documents]
        if settings.exact != "off":
            self._hashes += map(xxh3_128_digest, contents)
        if self._signatures is not None and self._tools.minhash is not None:
            if settings.engine == "datatrove":
                languages = [document.language for document in documents]
                values, which = datatrove_signatures(
                    [document.text for document in documents], languages, self._tools.minhash
                )
            else:
                salt = _salt(self._shard.source) if settings.near == "within" else 0
                texts = [simplified(document.text) for document in documents]
                values, which = signatures(texts, self._tools.minhash, salt)
            self._signatures.add(values, which + counts.kept)
        sizes = [(len(content), len(document.text)) for content, document in zip(contents, documents, strict=True)]
        self._sizes += sizes
        counts.kept += len(documents)
        counts.bytes += sum(size for size, _ in sizes)
        counts.characters += sum(length for _, length in sizes)
        counts.languages.update(str(document.language) for document in documents)


def _salt(source: str) -> int:
    """What keeps the texts of one source from meeting those of another."""
    from xxhash import xxh64_intdigest

    return int(xxh64_intdigest(source.encode("utf-8")))
