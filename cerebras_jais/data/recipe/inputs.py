"""Which files a source has, and the shards that they are divided into: a function of the files alone."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebras_jais.data.documents import DataError
from cerebras_jais.data.recipe.settings import Source
from cerebras_jais.files import check_regular, identity_of, shown_path

if TYPE_CHECKING:
    import pyarrow.parquet as pq

KINDS = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "squad",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_PACKED = (".gz", ".zst")
_PACKED_KINDS = ("txt", "jsonl", "csv")
# Files that stand beside the data of a data set of the hub, and in the folders that `save_to_disk` writes.
_BESIDE = ("README.md", ".gitattributes", "LICENSE", "state.json", "dataset_info.json", "dataset_dict.json")
_MOST_PARTS = 10_000  # files of one shard
_OVERHEAD = 4096  # bytes; opening a small file costs as much as reading so many


@dataclass(frozen=True)
class Part:
    """A file or some of it: bytes of a .txt or .jsonl file, row groups of a .parquet file, from `start` to `end`."""

    file: str
    kind: str
    start: int = 0
    end: int | None = None
    """None: up to the file's end."""


@dataclass(frozen=True)
class Shard:
    """What one task reads: files, or a part of one, of one source."""

    source: str
    parts: tuple[Part, ...]
    size: int
    """Bytes on the disk, or of the columns of a parquet file as they are stored."""


@dataclass(frozen=True)
class Inputs:
    """The shards of all sources in their order, what identifies the files, and what is said of files not read."""

    shards: tuple[Shard, ...]
    identities: dict[str, list[int | str]]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """What a relaunch must find unchanged."""
        content = {"shards": [asdict(shard) for shard in self.shards], "files": self.identities}
        return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def find_inputs(sources: dict[str, Source], shard_bytes: int) -> Inputs:
    """The shards of each source, about `shard_bytes` each where its files can be divided.

    A .txt or .jsonl file that is not compressed is divided by bytes, a .parquet file by row groups; small files share a
    shard. Raises DataError for a path without a file, a folder or pattern without files that can be read, and a file
    whose ending says nothing where no format is given.
    """
    shards: list[Shard] = []
    identities: dict[str, list[int | str]] = {}
    notes: list[str] = []
    for name, source in sources.items():
        pieces: list[tuple[Part, int]] = []
        for path in source.path:
            files, note = _files_of(path, source.format)
            notes += [note] if note else []
            for file in files:
                size, *rest = _identity(file)
                identities[file] = [size, *rest]
                pieces += _divided(file, kind_of(file, source.format), int(size), source, shard_bytes)
        shards += _grouped(name, pieces, shard_bytes)
    return Inputs(tuple(shards), identities, tuple(notes))


def is_remote(path: str) -> bool:
    """Whether a path is a URL that fsspec opens."""
    return "://" in path


def kind_of(file: str, format: str) -> str:
    """How a file is read: the format given, or what its ending says."""
    if format != "auto":
        return format
    kind = _kind_by_name(file)
    if kind is None:
        raise DataError(
            f"{shown_path(file)}: its ending says no format; give `format`: txt, jsonl, csv, parquet, arrow or squad"
        )
    return kind


def _kind_by_name(file: str) -> str | None:
    path = Path(file)
    if path.suffix in _PACKED:
        kind = KINDS.get(Path(path.stem).suffix)
        return kind if kind in _PACKED_KINDS else None
    return KINDS.get(path.suffix)


def _files_of(path: str, format: str) -> tuple[list[str], str | None]:
    """The files that a path of a source stands for, sorted, and what is said of those that are not read."""
    if is_remote(path):
        return _remote_files(path, format)
    if Path(path).is_dir():
        below = [file for file in Path(path).rglob("*") if file.is_file()]
        hidden = [file for file in below if any(part.startswith(".") for part in file.relative_to(path).parts)]
        return _read_and_not(path, sorted(map(str, set(below) - set(hidden))), format)
    if glob.has_magic(path) and not Path(path).exists():
        found = sorted(file for file in glob.glob(path, recursive=True) if Path(file).is_file())
        if not found:
            raise DataError(f"{shown_path(path)}: no file fits this pattern; check it, and the folder it begins in")
        return found, None
    check_regular(path, DataError)
    return [path], None


def _remote_files(path: str, format: str) -> tuple[list[str], str | None]:
    import fsspec

    try:
        system, inner = fsspec.core.url_to_fs(path)
        if glob.has_magic(inner):
            return [system.unstrip_protocol(file) for file in sorted(system.glob(inner))], None
        if system.isdir(inner):
            return _read_and_not(path, [system.unstrip_protocol(file) for file in sorted(system.find(inner))], format)
        if system.exists(inner):
            return [path], None
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{shown_path(path)}: cannot be read: {str(error)[:200]}") from error
    raise DataError(f"{shown_path(path)}: no such file or folder; check the address")


def _read_and_not(folder: str, files: list[str], format: str) -> tuple[list[str], str | None]:
    read = [file for file in files if (kind := _kind_by_name(file)) and format in ("auto", kind)]
    if format == "auto":
        read = [file for file in read if Path(file).name not in _BESIDE]
    others = Counter(
        Path(file).suffix or "without an ending" for file in set(files) - set(read) if Path(file).name not in _BESIDE
    )
    kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(others.items(), key=lambda o: (-o[1], o[0]))[:5])
    wanted = "no format is known for their endings" if format == "auto" else f"the format is {format}"
    if not read:
        there = f" ({kinds})" if kinds else ""
        raise DataError(
            f"{shown_path(folder)}: no file in this folder can be read{there}: {wanted}; name the files by a pattern"
            " such as folder/**/*.txt, and give `format`"
        )
    note = f"{shown_path(folder)}: {sum(others.values())} files are not read ({kinds}): {wanted}" if others else None
    return read, note


def _identity(file: str) -> list[int | str]:
    if not is_remote(file):
        return list(identity_of(check_regular(file, DataError) and file))
    import fsspec

    system, inner = fsspec.core.url_to_fs(file)
    found = system.info(inner)
    return [
        int(found.get("size") or 0),
        str(found.get("ETag") or found.get("mtime") or found.get("LastModified") or ""),
    ]


def _divided(file: str, kind: str, size: int, source: Source, shard_bytes: int) -> Iterator[tuple[Part, int]]:
    packed = Path(file).suffix in _PACKED
    if kind == "parquet":
        yield from _row_groups(file, size, shard_bytes)
    elif size > 1.5 * shard_bytes and not packed and divisible(kind, source):
        number = round(size / shard_bytes)
        bounds = [size * index // number for index in range(number + 1)]
        for start, end in pairwise(bounds):
            yield Part(file, kind, start, end), end - start
    else:
        yield Part(file, kind), size


def divisible(kind: str, source: Source) -> bool:
    """Whether documents of a file begin at lines that can be found from any byte on."""
    by_lines = kind == "jsonl" or (kind == "txt" and source.documents == "blank-lines")
    return by_lines and has_plain_lines(source.encoding)


def has_plain_lines(encoding: str) -> bool:
    """Whether a line feed is the one byte that it is in ASCII."""
    return "\n".encode(encoding) == b"\n"


def _row_groups(file: str, size: int, shard_bytes: int) -> Iterator[tuple[Part, int]]:
    try:
        with open_parquet(file) as opened:
            sizes = [
                opened.metadata.row_group(index).total_byte_size for index in range(opened.metadata.num_row_groups)
            ]
    except (OSError, ValueError):  # the task that reads it says what is wrong, or counts it
        yield Part(file, "parquet"), size
        return
    start, total = 0, 0
    for index, group in enumerate(sizes):
        total += group
        if total >= shard_bytes or index == len(sizes) - 1:
            yield Part(file, "parquet", start, index + 1), total
            start, total = index + 1, 0
    if not sizes:
        yield Part(file, "parquet", 0, 0), size


def open_parquet(file: str) -> pq.ParquetFile:
    """A .parquet file, local or by URL, opened; ArrowInvalid is a ValueError."""
    import pyarrow.parquet as pq

    if not is_remote(file):
        return pq.ParquetFile(file)
    import fsspec

    return pq.ParquetFile(fsspec.open(file, "rb").open())


def _grouped(source: str, pieces: Sequence[tuple[Part, int]], shard_bytes: int) -> Iterator[Shard]:
    """Pieces in their order, joined while they are small."""
    parts: list[Part] = []
    total, weighed = 0, 0
    for part, size in pieces:
        if parts and (weighed + size > shard_bytes or len(parts) >= _MOST_PARTS):
            yield Shard(source, tuple(parts), total)
            parts, total, weighed = [], 0, 0
        parts.append(part)
        total, weighed = total + size, weighed + size + _OVERHEAD
    if parts:
        yield Shard(source, tuple(parts), total)


def shard_from(entry: dict[str, Any]) -> Shard:
    """A shard of `Inputs.to_json`."""
    return Shard(entry["source"], tuple(Part(**part) for part in entry["parts"]), entry["size"])
