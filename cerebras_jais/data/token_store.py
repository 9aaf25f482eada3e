"""Token stores: documents as token ids on the disk, in shards that are whole or not there, read by memory map.

Shard 7 of a store is three files in its folder: `000007.tokens`, the ids of all its documents, uint32; `000007.ends`,
where each document ends among them, uint64; both little-endian; and `000007.json`, what they were made of, their
counts and digests. The last is written last, so a shard that has it is whole, and a run that was killed goes on with
the others. `manifest.json` lists the shards once all are there. No file holds a path or a date: the same documents,
tokenizer and settings give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cerebras_jais.atomic import replacing, sync
from cerebras_jais.data.documents import DataError
from cerebras_jais.encoding import Tokens
from cerebras_jais.files import MIB, parse_json, read_text, shown_path
from cerebras_jais.ranges import VOCABULARY

MANIFEST = "manifest.json"
TRAINED = np.uint32(1 << 31)
"""The bit of a stored id that is trained, in a store where some ids are not (conversations)."""
_TOKEN, _END = np.dtype("<u4"), np.dtype("<u8")
_WRITTEN_AT_ONCE = 2**20  # tokens
_ORDERED_AT_ONCE = 2**26
_NOTHING = Tokens(np.empty(0, _TOKEN), np.empty(0, np.int64))
_LARGEST_MANIFEST = 256 * MIB
_MAKE_AGAIN = "delete the folder and make the store again"
assert VOCABULARY.high < TRAINED


@dataclass(frozen=True)
class Shard:
    """What the JSON file of a shard holds.

    Attributes:
        inputs: a digest of what its documents were read from.
        settings: what else decides its bytes: the tokenizer's digest, the end-of-text token, the steps before.
        documents: their number.
        tokens: ids, end-of-text tokens included.
        counts: what else was counted, such as bytes of text.
        tokens_sha256: the digest of the `.tokens` file.
        ends_sha256: that of the `.ends` file.
    """

    inputs: str
    settings: Mapping[str, Any]
    documents: int
    tokens: int
    counts: Mapping[str, int] = field(default_factory=dict)
    tokens_sha256: str = ""
    ends_sha256: str = ""


# ---- writing --------------------------------------------------------------------------------------------------------


class TokenWriter:
    """The two files of a shard while they are written, in the order in which documents are added.

    Args:
        tokens: the `.tokens` file.
        ends: the `.ends` file.
        eos_id: the id that is put behind each document; None puts nothing.
    """

    def __init__(self, tokens: Path, ends: Path, eos_id: int | None = None) -> None:
        self.documents = self.tokens = 0
        self.digests = (hashlib.sha256(), hashlib.sha256())
        self._eos_id = eos_id
        self._waiting: list[np.ndarray] = []
        self._waiting_tokens = 0
        self._files = tuple(path.open("wb") for path in (tokens, ends))

    def append(self, ids: np.ndarray) -> None:
        """Add one document: its ids, uint32 [n]."""
        self._waiting.append(ids.copy())  # a view would keep the whole batch that it is of
        self._waiting_tokens += len(ids)
        if self._waiting_tokens >= _WRITTEN_AT_ONCE:
            self.extend(_NOTHING)

    def extend(self, batch: Tokens) -> None:
        """Add documents; one without a token is left out."""
        if self._waiting:
            waiting, self._waiting, self._waiting_tokens = self._waiting, [], 0
            self.extend(Tokens(np.concatenate(waiting), np.cumsum([len(ids) for ids in waiting])))
        ids, ends = batch
        if ids.dtype != _TOKEN:
            raise TypeError(f"token ids are stored as uint32, got {ids.dtype}")
        ends = ends[np.diff(ends, prepend=0) > 0]
        if self._eos_id is not None:
            ids = np.insert(ids, ends, self._eos_id)
            ends = ends + np.arange(1, len(ends) + 1)
        stored = (ids, (ends + self.tokens).astype(_END))
        for file, digest, array in zip(self._files, self.digests, stored, strict=True):
            file.write(array.data)
            digest.update(array.data)
        self.documents += len(ends)
        self.tokens += len(ids)

    def close(self) -> None:
        """Write what waits to be written; the files are complete."""
        try:
            self.extend(_NOTHING)
        finally:
            for file in self._files:
                file.close()

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_shard(
    folder: str | Path,
    index: int,
    documents: Iterable[Tokens],
    *,
    eos_id: int | None,
    inputs: str,
    settings: Mapping[str, Any],
    counts: Mapping[str, int] | None = None,
) -> Shard:
    """Write shard `index` of the store in `folder` and return what its JSON file holds; one that is there is replaced.

    One process at a time may write a shard. What a killed one left of it, hidden files, is written over.

    Args:
        documents: batches as `Encoder.encode` gives them; taken one at a time. A document without a token is left out.
        eos_id: the id that is put behind each document; None where they end by themselves.
        inputs: a digest of what the documents are read from.
        settings: what else decides the bytes, as JSON has it. Without a path, or the bytes depend on where it is made.
        counts: recorded beside the others; read when all documents were taken, so their reader may count meanwhile.

    Raises OSError where a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = _files(folder, index)
    tokens, ends, description = partial = [path.with_name(f".{path.name}.partial") for path in files]
    files[2].unlink(missing_ok=True)
    try:
        with TokenWriter(tokens, ends, eos_id) as writer:
            for batch in documents:
                writer.extend(batch)
        digests = [digest.hexdigest() for digest in writer.digests]
        shard = Shard(inputs, dict(settings), writer.documents, writer.tokens, dict(counts or {}), *digests)
        description.write_text(_json(asdict(shard)), encoding="utf-8")
        for hidden, path in zip(partial, files, strict=True):
            sync(hidden)
            hidden.replace(path)
        sync(folder)
    except OSError as error:  # the system names a hidden file, or, of a full disk, none
        if error.filename is None or Path(os.fsdecode(error.filename)) in partial:
            error.filename = str(files[0])
        raise
    finally:
        for hidden in partial:
            hidden.unlink(missing_ok=True)
    return shard


def whole_shard(folder: str | Path, index: int, *, inputs: str, settings: Mapping[str, Any]) -> Shard | None:
    """Return a shard that is there whole and was made of the same inputs with the same settings, else None.

    Sizes are compared, not digests (`check_digests` does that).
    """
    tokens, ends, description = _files(Path(folder), index)
    if not description.exists():
        return None
    shard = _read_shard(parse_json(read_text(description, MIB, DataError), str(description), DataError), description)
    if (shard.inputs, shard.settings) != (inputs, json.loads(_json(settings))):
        return None
    there = all(path.exists() for path in (tokens, ends))
    return shard if there and _sizes(tokens, ends) == _sizes_of(shard) else None


def finish_store(folder: str | Path, shards: int) -> Store:
    """Write the manifest of a store whose shards 0 to `shards` - 1 are all there, and open it.

    Raises DataError for a shard that is not there.
    """
    folder = Path(folder)
    found = []
    for index in range(shards):
        description = _files(folder, index)[2]
        if not description.exists():
            raise DataError(f"{shown_path(folder)}: shard {index} of {shards} is missing; run the command again")
        found.append(parse_json(read_text(description, MIB, DataError), str(description), DataError))
    with replacing(folder / MANIFEST, overwrite=True, error=DataError) as path:
        path.write_text(_json({"shards": found}), encoding="utf-8")
    return open_store(folder)


# ---- reading --------------------------------------------------------------------------------------------------------


class Store:
    """The documents of some shards, numbered through; of those on the disk nothing is read before it is asked for.

    Attributes:
        parts: the documents of each shard.
        shards: what is known of each shard; empty for documents that no `write_shard` has written.
        lengths: tokens of each document, int64 [documents].
    """

    def __init__(self, parts: Sequence[Tokens], shards: Sequence[Shard] = ()) -> None:
        self.shards = tuple(shards)
        self.parts = tuple(parts)
        self._ids = [part.ids for part in parts]
        ends = [part.ends for part in parts] or [np.empty(0, np.int64)]
        self.lengths = np.concatenate([np.diff(bounds, prepend=0) for bounds in ends])
        self._starts = np.concatenate(ends) - self.lengths
        self._firsts = np.cumsum([0, *(len(bounds) for bounds in ends)])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """The number of ids of all documents, end-of-text tokens included."""
        return int(self.lengths.sum())

    def release(self) -> None:
        """Give the pages of the files that were read back to the system, so that they do not count as memory of this
        process; what is read again is mapped again."""
        for ids in self._ids:
            base = ids.base.obj if isinstance(ids.base, memoryview) else ids.base
            if isinstance(base, mmap.mmap):
                base.madvise(mmap.MADV_DONTNEED)

    def read(self, document: int) -> np.ndarray:
        """The ids of one document, uint32 [n], not copied and not to be written to."""
        return self.slices(np.asarray([document]))[0]

    def slices(self, documents: np.ndarray) -> list[np.ndarray]:
        """The ids of each of some documents, uint32, not copied and not to be written to."""
        shards = np.searchsorted(self._firsts, documents, side="right") - 1
        starts = self._starts[documents]
        ends = starts + self.lengths[documents]
        return [
            self._ids[shard][start:end]
            for shard, start, end in zip(shards.tolist(), starts.tolist(), ends.tolist(), strict=True)
        ]


def open_store(folder: str | Path) -> Store:
    """Open a finished store. Raises DataError for a folder that has none, and for files of other sizes."""
    folder = Path(folder)
    manifest = folder / MANIFEST
    if not manifest.exists():
        raise DataError(f"{shown_path(folder)}: has no {MANIFEST}: no store, or not all of one; make it (again)")
    content = parse_json(read_text(manifest, _LARGEST_MANIFEST, DataError), str(manifest), DataError)
    entries = content.get("shards") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{shown_path(manifest)}: does not list shards; {_MAKE_AGAIN}")
    shards = [_read_shard(entry, manifest) for entry in entries]
    files = [_files(folder, index)[:2] for index in range(len(shards))]
    for (tokens, ends), shard in zip(files, shards, strict=True):
        for path, size, wanted in zip((tokens, ends), _sizes(tokens, ends), _sizes_of(shard), strict=True):
            if size != wanted:
                raise DataError(f"{shown_path(path)}: has {size} bytes, the manifest says {wanted}; {_MAKE_AGAIN}")
    return Store([map_tokens(tokens, ends) for tokens, ends in files], shards)


def joined(stores: Sequence[Store]) -> Store:
    """Some stores as one: the documents of each follow those of the ones before."""
    return Store(
        [part for store in stores for part in store.parts], [shard for store in stores for shard in store.shards]
    )


def map_tokens(tokens: Path, ends: Path) -> Tokens:
    """The documents of the two files that a `TokenWriter` has written, the ids in a memory map."""
    found = Tokens(_mapped(tokens, _TOKEN), _mapped(ends, _END).astype(np.int64))
    last = found.ends[-1] if len(found.ends) else 0
    if len(found.ids) != last or (np.diff(found.ends, prepend=0) <= 0).any():
        raise DataError(f"{shown_path(ends)}: does not fit {tokens.name}; {_MAKE_AGAIN}")
    return found


def in_order(store: Store, order: np.ndarray, folder: Path, at_once: int = _ORDERED_AT_ONCE) -> Store:
    """Write documents in the order in which they are packed, so that the disk is read and written in long runs.

    First each document goes to the file of its stretch of the order, as the store has it; then each stretch is put in
    order in memory. The bytes are the same for any `at_once`.

    Args:
        order: numbers of documents, int [n]; one may come again.
        folder: an empty one, for two files a stretch.
        at_once: tokens of a stretch: as many are held, and half as many again.
    """
    lengths = store.lengths[order]
    stretches = (np.cumsum(lengths) - lengths) // at_once
    places = np.argsort(order, kind="stable")  # in the order of the store
    held = np.cumsum(lengths[places]) // at_once
    for group in np.split(places, np.flatnonzero(np.diff(held)) + 1):
        group = group[np.argsort(stretches[group], kind="stable")]
        bounds = np.flatnonzero(np.diff(stretches[group])) + 1
        for members in np.split(group, bounds) if len(group) else ():
            with (folder / f"{stretches[members[0]]}.scattered").open("ab") as file:
                file.writelines(ids.data for ids in store.slices(order[members]))
        store.release()
    parts = []
    for stretch in np.unique(stretches):
        members = places[stretches[places] == stretch]
        scattered_file = folder / f"{stretch}.scattered"
        scattered = Store([Tokens(np.fromfile(scattered_file, _TOKEN), np.cumsum(lengths[members]))])
        files = folder / f"{stretch}.tokens", folder / f"{stretch}.ends"
        with TokenWriter(*files) as writer:
            for part in np.array_split(np.argsort(members), max(1, scattered.tokens // _WRITTEN_AT_ONCE)):
                writer.extend(Tokens(np.concatenate(scattered.slices(part)), np.cumsum(scattered.lengths[part])))
        scattered_file.unlink()
        parts.append(map_tokens(*files))
    return Store(parts)


def check_digests(folder: str | Path) -> None:
    """Raise DataError if a file of a finished store is not the one that was written."""
    for index, shard in enumerate(open_store(folder).shards):
        tokens, ends, _ = _files(Path(folder), index)
        for path, wanted in ((tokens, shard.tokens_sha256), (ends, shard.ends_sha256)):
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != wanted:
                    raise DataError(f"{shown_path(path)}: was changed after it was written; {_MAKE_AGAIN}")


def _files(folder: Path, index: int) -> tuple[Path, Path, Path]:
    """The files of tokens and of ends, and the description."""
    tokens, ends, description = (folder / f"{index:06d}.{ending}" for ending in ("tokens", "ends", "json"))
    return tokens, ends, description


def _mapped(path: Path, kind: np.dtype[Any]) -> np.ndarray:
    """A file as an array over its memory map, whose slices cost less than those of np.memmap."""
    if not path.stat().st_size:
        return np.empty(0, kind)
    if path.stat().st_size % kind.itemsize:
        raise DataError(f"{shown_path(path)}: was cut; {_MAKE_AGAIN}")
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), kind)


def _sizes(tokens: Path, ends: Path) -> tuple[int, int]:
    try:
        return tokens.stat().st_size, ends.stat().st_size
    except OSError as refused:
        raise DataError(f"{shown_path(refused.filename)}: {refused.strerror}; {_MAKE_AGAIN}") from refused


def _sizes_of(shard: Shard) -> tuple[int, int]:
    return shard.tokens * _TOKEN.itemsize, shard.documents * _END.itemsize


def _read_shard(entry: Any, file: Path) -> Shard:
    try:
        shard = Shard(**entry)
    except TypeError:
        raise DataError(f"{shown_path(file)}: does not describe a shard; {_MAKE_AGAIN}") from None
    if type(shard.documents) is not int or type(shard.tokens) is not int:
        raise DataError(f"{shown_path(file)}: documents and tokens must be whole numbers; {_MAKE_AGAIN}")
    return shard


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
