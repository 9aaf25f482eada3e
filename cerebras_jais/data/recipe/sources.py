"""The documents of a shard, read in batches: txt, jsonl, csv, parquet, arrow and SQuAD files, compressed or not."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import orjson

from cerebras_jais.data.documents import (
    LANGUAGE_TAG,
    LONGEST_DOCUMENT,
    LONGEST_LINE,
    DataError,
    bounded_lines,
    documents_from_squad,
)
from cerebras_jais.data.recipe.inputs import Part, Shard, has_plain_lines, is_remote, open_parquet
from cerebras_jais.data.recipe.settings import Source
from cerebras_jais.files import MIB, check_regular, shown_path

_BATCH = 1024  # documents
_BATCH_CHARACTERS = 2_000_000
_ROWS = 512  # of a parquet or arrow file, read at once
_BUFFER = 4 * MIB
_PARTS_COUNTED = 64
_HALVES = range(0xDC80, 0xDD00)  # what surrogateescape makes of bytes that are no UTF-8

Entry: TypeAlias = "tuple[str, str | None, int] | Unreadable"
"""A text with its language and its line or row, from 1 on, or what stands there in place of one."""


@dataclass(frozen=True)
class Unreadable:
    """Something that is no document: of which kind, in which line or row of the file (0: the file), and why."""

    reason: str
    line: int
    message: str


@dataclass
class Batch:
    """Documents read together, in columns; `places` are (part of the shard, line or row)."""

    texts: list[str] = field(default_factory=list)
    languages: list[str | None] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)


def read_shard(shard: Shard, source: Source, refused: Callable[[str, Unreadable], None]) -> Iterator[Batch]:
    """Yield the documents of a shard in their order, about 1,000 or 2 million characters at a time.

    Args:
        shard: what to read.
        source: the settings of its source.
        refused: is called with `file:line` and what cannot be read there; the rest of the shard follows unless it
            raises. What follows in a damaged file may be lost with it.
    """
    batch, characters = Batch(), 0
    for number, part in enumerate(shard.parts):
        for entry in _read_part(part, source):
            if isinstance(entry, Unreadable):
                refused(place(part, entry.line), entry)
                continue
            text, language, line = entry
            batch.texts.append(text)
            batch.languages.append(language)
            batch.places.append((number, line))
            characters += len(text)
            if len(batch) >= _BATCH or characters >= _BATCH_CHARACTERS:
                yield batch
                batch, characters = Batch(), 0
    if batch:
        yield batch


def place(part: Part, line: int) -> str:
    """`FILE:LINE`, as messages name a document; the file alone for line 0."""
    if not line:
        return shown_path(part.file)
    return f"{shown_path(part.file)}:{line + lines_before(part)}"


@lru_cache(maxsize=_PARTS_COUNTED)
def lines_before(part: Part) -> int:
    """The lines of a file that stand before a part given by bytes; counted once, when something in it is named."""
    if not part.start or part.kind not in ("txt", "jsonl"):
        return 0
    count, left = 0, part.start
    with _opened(part.file) as stream:
        while left > 0 and (block := stream.read(min(_BUFFER, left))):
            count += block.count(b"\n")
            left -= len(block)
        stream.seek(part.start - 1)
        # The part begins at the first line that begins in it: the line that its first byte cuts is not its own.
        return count + (stream.read(1) != b"\n")


def _read_part(part: Part, source: Source) -> Iterator[Entry]:
    reader = {
        "txt": _read_txt,
        "jsonl": _read_jsonl,
        "csv": _read_csv,
        "parquet": _read_parquet,
        "arrow": _read_arrow,
        "squad": _read_squad,
    }[part.kind]
    try:
        yield from reader(part, source)
    except DataError as error:
        yield Unreadable("damaged", 0, str(error).removeprefix(f"{shown_path(part.file)}: "))
    except (EOFError, OSError, zlib.error, ValueError) as error:
        yield Unreadable("damaged", 0, f"cannot be read to its end: {_line_of(error)}")
    except Exception as error:
        if type(error).__name__ not in ("ZstdError", "ArrowException"):
            raise
        yield Unreadable("damaged", 0, f"cannot be read to its end: {_line_of(error)}")


def _line_of(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    """The bytes of a file, local or by URL, decompressed by its ending."""
    if is_remote(file):
        import fsspec

        opened: Any = fsspec.open(file, "rb")
    else:
        check_regular(file, DataError)
        opened = open(file, "rb")  # noqa: SIM115  # closed by the next with
    with opened as raw:
        suffix = Path(file).suffix
        if suffix == ".gz":
            yield io.BufferedReader(gzip.GzipFile(fileobj=raw), _BUFFER)
        elif suffix == ".zst":
            yield io.BufferedReader(_Zstandard(raw), _BUFFER)
        else:
            yield raw


class _Zstandard(io.RawIOBase):
    """The content of a .zst file; EOFError where it ends within a frame, which the library's own reader passes over."""

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard

        self._raw, self._new = raw, zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._packed = self._content = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            self._packed = self._packed or self._raw.read(MIB // 4)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the file ends within a frame of zstandard")
                return 0
            self._frame = self._frame or self._new()
            self._content, self._packed = self._frame.decompress(self._packed), b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._content))
        buffer[:count] = self._content[:count]
        self._content = self._content[count:]
        return count


# ---- the formats ----------------------------------------------------------------------------------------------------


def _lines(part: Part) -> Iterator[tuple[int, bytes, int]]:
    """The lines from the first that begins in a part: number, content cut as `bounded_lines` does, first byte."""
    with _opened(part.file) as stream:
        position = part.start
        if part.start:
            stream.seek(part.start - 1)
            position += next(bounded_lines(stream), (b"", 1))[1] - 1
        for number, (content, length) in enumerate(bounded_lines(stream), 1):
            yield number, content, position
            position += length


def _read_jsonl(part: Part, source: Source) -> Iterator[Entry]:
    key, language_key = source.text, source.language_field
    is_utf8 = source.encoding == "utf-8"
    for number, content, position in _lines(part):
        if part.end is not None and position >= part.end:
            return
        if len(content) > LONGEST_LINE:
            yield _too_long(number)
            continue
        if content.isspace():
            continue
        try:
            if number == 1 and not part.start and content.startswith(b"\xef\xbb\xbf"):
                content = content[3:]
            entry = orjson.loads(content if is_utf8 else content.decode(source.encoding))
        except ValueError as error:
            yield Unreadable("not-json", number, _why_no_json(content, error, source.encoding))
            continue
        if not isinstance(entry, dict):
            yield Unreadable("not-json", number, f"expected an object, got {type(entry).__name__}")
            continue
        yield _entry(entry.get(key), entry.get(language_key) if language_key else None, source, number)


def _why_no_json(content: bytes, error: ValueError, encoding: str) -> str:
    try:
        content.decode(encoding)
    except UnicodeDecodeError as damage:
        return f"not {encoding} ({damage.reason}); give its `encoding`, or save it as UTF-8"
    return f"not valid JSON ({str(error).partition(':')[0]})"


def _entry(text: Any, language: Any, source: Source, number: int) -> Entry:
    if not isinstance(text, str):
        has = "is missing" if text is None else f"is {type(text).__name__}, not text"
        return Unreadable("no-text", number, f"the field {source.text!r} {has}; give the name of the field as `text`")
    if language is not None and not (isinstance(language, str) and LANGUAGE_TAG.fullmatch(language)):
        return Unreadable("language-tag", number, f"the field {source.language_field!r} is no tag such as ar or en")
    if len(text) > LONGEST_DOCUMENT // 4 and len(text.encode("utf-8", "surrogatepass")) > LONGEST_DOCUMENT:
        return _too_long(number)
    return text, language or source.language, number


def _too_long(number: int) -> Unreadable:
    return Unreadable("too-long", number, f"a document of more than {LONGEST_DOCUMENT // MIB} MiB; cut it into several")


def _read_txt(part: Part, source: Source) -> Iterator[Entry]:
    if source.documents == "blank-lines":
        yield from _read_paragraphs(part, source)
        return
    with _opened(part.file) as stream:
        content = stream.read(LONGEST_DOCUMENT + 1)
        yield _too_long(1) if len(content) > LONGEST_DOCUMENT else _decoded(content, source, 1)


def _decoded(content: bytes, source: Source, number: int) -> Entry:
    try:
        text = content.decode(source.encoding)
    except UnicodeDecodeError as damage:
        line = number + content.count(b"\n", 0, damage.start)
        return Unreadable("encoding", line, f"not {source.encoding} ({damage.reason}); give its `encoding`")
    return text.removeprefix("\ufeff").replace("\r\n", "\n"), source.language, number


def _read_paragraphs(part: Part, source: Source) -> Iterator[Entry]:
    """The parts between blank lines of a file, or of a range of its bytes.

    A range begins behind the first blank line that begins in it (the file's first at once) and ends behind the first
    one that begins beyond it, so that every part belongs to one range.
    """
    if not has_plain_lines(source.encoding):
        yield from _paragraphs_of_text(part, source)
        return
    lines: list[bytes] = []
    size, first = 0, 1
    started = not part.start
    for number, content, position in _lines(part):
        blank = content.isspace()
        if not blank and started:
            first = number if not lines else first
            size += len(content)
            if size <= LONGEST_DOCUMENT:
                lines.append(content)
            continue
        if lines:
            yield _too_long(first) if size > LONGEST_DOCUMENT else _decoded(b"".join(lines).rstrip(), source, first)
            lines, size = [], 0
        if blank:
            started = True
            if part.end is not None and position >= part.end:
                return
    if lines:
        yield _too_long(first) if size > LONGEST_DOCUMENT else _decoded(b"".join(lines).rstrip(), source, first)


def _paragraphs_of_text(part: Part, source: Source) -> Iterator[Entry]:
    """The same of an encoding whose line feeds are several bytes; the file must fit into a document's limit."""
    with _opened(part.file) as stream:
        content = stream.read(LONGEST_DOCUMENT + 1)
    whole = _too_long(1) if len(content) > LONGEST_DOCUMENT else _decoded(content, source, 1)
    if isinstance(whole, Unreadable):
        yield whole
        return
    number = 1
    paragraph: list[str] = []
    for line in [*whole[0].split("\n"), ""]:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph), source.language, number - len(paragraph)
            paragraph = []
        number += 1


def _read_csv(part: Part, source: Source) -> Iterator[Entry]:
    csv.field_size_limit(LONGEST_LINE)
    tabs = Path(part.file.removesuffix(".gz").removesuffix(".zst")).suffix == ".tsv"
    encoding = "utf-8-sig" if source.encoding == "utf-8" else source.encoding
    with _opened(part.file) as stream:
        text = io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", newline="")
        rows = csv.DictReader(text, dialect="excel-tab" if tabs else "excel", strict=True)
        if rows.fieldnames is not None:
            _check_columns(rows.fieldnames, source)
        while True:
            try:
                row = next(rows, None)
                number = rows.reader.line_num
            except csv.Error as error:
                yield Unreadable("not-csv", rows.reader.line_num, f"not valid CSV ({error})")
                if "field limit" in str(error):
                    return
                continue
            if row is None:
                return
            found = _entry(row.get(source.text), row.get(source.language_field or ""), source, number)
            if isinstance(found, tuple) and not found[0].isascii() and any(ord(c) in _HALVES for c in found[0]):
                found = Unreadable("encoding", number, f"not {source.encoding}; give its `encoding`")
            yield found


def _columns(source: Source) -> list[str]:
    return [source.text, *([source.language_field] if source.language_field else [])]


def _check_columns(names: Sequence[str], source: Source) -> None:
    for wanted in _columns(source):
        if wanted not in names:
            raise ValueError(f"it has no column {wanted!r}, but {', '.join(names[:10])}; name it as `text`")


def _read_parquet(part: Part, source: Source) -> Iterator[Entry]:
    with open_parquet(part.file) as opened:
        _check_columns(opened.schema_arrow.names, source)
        groups = range(part.start, part.end if part.end is not None else opened.num_row_groups)
        before = sum(opened.metadata.row_group(index).num_rows for index in range(part.start))
        for batch in opened.iter_batches(_ROWS, list(groups), _columns(source)):
            yield from _rows(batch, source, before)
            before += batch.num_rows


def _read_arrow(part: Part, source: Source) -> Iterator[Entry]:
    import pyarrow

    with _opened(part.file) as stream:
        before = 0
        for batch in pyarrow.ipc.open_stream(stream):
            _check_columns(batch.schema.names, source)
            yield from _rows(batch, source, before)
            before += batch.num_rows


def _rows(batch: Any, source: Source, before: int) -> Iterator[Entry]:
    try:
        texts = batch.column(source.text).to_pylist()
    except UnicodeDecodeError:
        texts = [_text_of(value) for value in batch.column(source.text)]
    languages = batch.column(source.language_field).to_pylist() if source.language_field else [None] * len(texts)
    for number, (text, language) in enumerate(zip(texts, languages, strict=True), before + 1):
        if isinstance(text, UnicodeDecodeError):
            yield Unreadable("encoding", number, f"not UTF-8 ({text.reason})")
        else:
            yield _entry(text, language, source, number)


def _text_of(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as damage:
        return damage


def _read_squad(part: Part, source: Source) -> Iterator[Entry]:
    if is_remote(part.file):
        raise DataError(f"{part.file}: a SQuAD file is read from a disk; copy it")
    for number, document in enumerate(documents_from_squad(part.file, source.language), 1):
        yield document.text, source.language or document.language, number
