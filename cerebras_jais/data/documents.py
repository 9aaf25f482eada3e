"""Documents from the user's files: .txt, .jsonl and SQuAD-style .json, their language, and what is held out."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cerebras_jais.data.clean.languages import detect_language
from cerebras_jais.errors import UserError
from cerebras_jais.files import MIB, STANDARD_INPUT, check_regular, open_regular, parse_json, read_bytes, shown_path
from cerebras_jais.ranges import shown
from cerebras_jais.wording import counted

TEXT_SUFFIXES = (".txt", ".jsonl", ".json")
# A tokenizer takes up to 250 bytes of memory for each byte of a document.
LONGEST_DOCUMENT = 4 * MIB  # bytes of UTF-8
_LONGEST_LINE = 3 * LONGEST_DOCUMENT  # of JSON, where an Arabic letter may be six bytes instead of two
_LARGEST_JSON = 64 * MIB

# Languages name folders of held-out data, so they must be plain.
_LANGUAGE_TAG = re.compile(r"[A-Za-z0-9_-]{1,32}")


class DataError(UserError):
    """Text, tokens or packed data that cannot be used; names the file (and line, key or token id) and the remedy."""


@dataclass(frozen=True)
class Document:
    """One text with its language ("ar", "en", "code" or any other tag; None if not known) and where it came from."""

    text: str
    language: str | None
    source: str


@dataclass(frozen=True)
class Line:
    """A line of a file of JSON lines."""

    file: Path
    number: int
    content: bytes

    @property
    def source(self) -> str:
        """`FILE:LINE`, as messages name it."""
        return f"{shown_path(self.file)}:{self.number}"


def sample_corpus_path() -> Path:
    """Return the folder of the Arabic-English sample corpus that comes with the package."""
    return Path(__file__).parent / "sample"


def language_of(document: Document) -> str:
    """Return the document's own language tag, or the detected one when it has none."""
    return document.language or detect_language(document.text)


def read_documents(path: str | Path) -> Iterator[Document]:
    """Yield the documents of a file, or of every .txt, .jsonl and .json file below a folder in sorted order.

    A .txt file is one document, and so is what `-`, standard input, gives. A .jsonl file holds one object per line with
    the key "text" and optionally "language". A .json file must be in SQuAD format (see `documents_from_squad`). Names
    that begin with a dot and files with other endings inside a folder are passed over; empty texts are skipped. Text is
    UTF-8, with or without a byte order mark, and is otherwise left exactly as it is: no normalisation, so tashkeel
    survives.

    Raises DataError for a missing path, a folder without such files or without any text, bytes that are not UTF-8,
    a line that is not a JSON object, a missing or wrong key, and a document of more than LONGEST_DOCUMENT bytes,
    naming the file and the line.
    """
    path = Path(path)
    if path.is_dir():
        files, others = _files_below(path)
        if not files:
            there = f" (but {_kinds(others)})" if others else ""
            raise DataError(
                f"{path}: no .txt, .jsonl or .json file in this folder{there}; put the text there or name a file"
            )
    elif str(path) == STANDARD_INPUT:
        files = [path]
    elif not path.exists():
        raise DataError(f"{path}: no such file or folder")
    else:
        check_regular(path, DataError)
        if path.suffix not in TEXT_SUFFIXES:
            raise DataError(f"{path}: expected a .txt, .jsonl or SQuAD .json file, or a folder of them")
        files = [path]
    found = False
    for file in files:
        for document in _read_file(file):
            found = True
            yield document
    if not found:
        raise DataError(f"{path}: every document is empty; nothing to train on")


def passed_over(path: str | Path) -> str | None:
    """What `read_documents` passes over in a folder, with its count and the remedy; None where it reads all."""
    path = Path(path)
    others = _files_below(path)[1] if path.is_dir() else []
    if not others:
        return None
    return (
        f"{path}: {len(others)} {'file is' if len(others) == 1 else 'files are'} not read: "
        f"{_kinds(others)}; only .txt, .jsonl and .json are, so unpack or convert what is text"
    )


def not_held_out(counts: Mapping[str, int], every: int) -> str | None:
    """Of which languages nothing is held out, of so many documents each, and the remedy; None where of none."""
    few = {language: count for language, count in counts.items() if count < every}
    if not few:
        return None
    found = ", ".join(f"{language} ({counted(count, 'document')})" for language, count in sorted(few.items()))
    return (
        f"nothing is held out of {found}: every {every}th document of a language is. A .txt file is one document: cut "
        'it into one to a line of a .jsonl file ({"text": ...}), or give a smaller --held-out; or else leave held_out '
        "out of the trainer YAML"
    )


def documents_from_squad(path: str | Path, language: str | None = None) -> Iterator[Document]:
    """Yield the contexts of a question-answering file in SQuAD or XQuAD JSON format, each distinct one once.

    Questions and answers are not used. The language is the one given, else the file name's (`name.ar.json`), else
    it is detected text by text. Raises DataError if the file is not in that format.
    """
    path = Path(path)
    if language is None:
        tag = Path(path.stem).suffix.lstrip(".")
        language = tag if len(tag) == 2 and tag.isalpha() else None
    try:
        tree = parse_json(_decode(read_bytes(path, _LARGEST_JSON, DataError), path), str(path), DataError)
        contexts = [paragraph["context"] for article in tree["data"] for paragraph in article["paragraphs"]]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not in SQuAD format (data -> paragraphs -> context); give other text as .txt or .jsonl"
        ) from error
    for context in contexts:
        if not isinstance(context, str):
            raise DataError(f"{path}: a context is {type(context).__name__}, expected text")
    for context in dict.fromkeys(contexts):
        if context.strip():
            yield _document(context, language, str(path))


def check_held_out(every: int) -> None:
    """Raise DataError if holding out every `every`-th document of a language leaves nothing to train on."""
    if every < 2:
        raise DataError(f"held-out every {every}: must be 2 or more, or nothing is left to train on")


def split_held_out(documents: Iterable[Document], every: int = 10) -> tuple[list[Document], list[Document]]:
    """Split into (training, held out): every `every`-th document of each language is held out, by order alone.

    The 10th, 20th, ... document of a language is held out for every=10, so the same input always splits the same
    way and a language with fewer than `every` documents gives none. Raises DataError for every < 2.
    """
    check_held_out(every)
    seen: dict[str, int] = {}
    training: list[Document] = []
    held_out: list[Document] = []
    for document in documents:
        language = language_of(document)
        seen[language] = seen.get(language, 0) + 1
        (held_out if seen[language] % every == 0 else training).append(document)
    return training, held_out


def count_words(text: str) -> int:
    """Return the number of white-space separated words that hold at least one letter or digit."""
    return sum(any(unicodedata.category(char)[0] in "LN" for char in word) for word in text.split())


def _files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of text below a folder, and the other files; those with a name that begins with a dot are neither."""
    files: tuple[list[Path], list[Path]] = ([], [])
    # By the path's text, so that the order does not depend on the file system or on the Python version.
    for file in sorted(folder.rglob("*"), key=lambda file: file.relative_to(folder).as_posix()):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not hidden and file.is_file():
            files[file.suffix not in TEXT_SUFFIXES].append(file)
    return files


def _kinds(files: Sequence[Path]) -> str:
    """`3 .gz, 1 .csv` of files, the most frequent endings first."""
    endings = Counter(file.suffix or "without an ending" for file in files)
    counts = sorted(endings.items(), key=lambda ending: (-ending[1], ending[0]))
    shown = [f"{count} {kind}" for kind, count in counts[:5]]
    return ", ".join([*shown, f"{sum(count for _, count in counts[5:])} others"] if counts[5:] else shown)


def _read_file(file: Path) -> Iterator[Document]:
    if file.suffix == ".jsonl":
        yield from _read_jsonl(file)
    elif file.suffix == ".json":
        yield from documents_from_squad(file)
    else:
        with open_regular(file, DataError) as opened:
            content = opened.read(LONGEST_DOCUMENT + 1)
        if len(content) > LONGEST_DOCUMENT:
            raise DataError(_too_long(str(file)))
        text = _decode(content, file).replace("\r\n", "\n")
        if text.strip():
            yield _document(text, None, str(file))


def lines_of(file: Path) -> Iterator[Line]:
    """Yield the lines of a file of JSON lines, split at line feeds alone: U+2028 and its like may stand in a string.

    Of a line beyond _LONGEST_LINE bytes one byte more than that is kept, and the rest is passed over.
    """
    number = 0
    with open_regular(file, DataError) as lines:
        while content := lines.readline(_LONGEST_LINE + 1):
            number += 1
            rest = content
            while len(rest) > _LONGEST_LINE and not rest.endswith(b"\n"):
                rest = lines.readline(_LONGEST_LINE + 1)
            yield Line(file, number, content)


def object_in(line: Line, example: str) -> dict[str, Any] | None:
    """The JSON object of a line, None of a blank line; DataError, which shows an `example`, for anything else."""
    if len(line.content) > _LONGEST_LINE:
        raise DataError(_too_long(line.source))
    text = _decode(line.content, line.file, line.number)
    if not text.strip():
        return None
    entry = parse_json(text.rstrip(), shown_path(line.file), DataError, line=line.number)
    if not isinstance(entry, dict):
        raise DataError(f"{line.source}: expected an object such as {example}, got {type(entry).__name__}")
    return entry


def _read_jsonl(file: Path) -> Iterator[Document]:
    for line in lines_of(file):
        source = line.source
        entry = object_in(line, '{"text": "..."}')
        if entry is None:
            continue
        if not isinstance(entry.get("text"), str):
            raise DataError(f'{source}: the key "text" is missing or not a string')
        language = entry.get("language")
        if language is not None and not (isinstance(language, str) and _LANGUAGE_TAG.fullmatch(language)):
            raise DataError(f'{source}: the key "language" must be a tag such as "ar" or "en", got {shown(language)}')
        if entry["text"].strip():
            yield _document(entry["text"], language, source)


def _document(text: str, language: str | None, source: str) -> Document:
    if len(text.encode("utf-8")) > LONGEST_DOCUMENT:
        raise DataError(_too_long(source))
    return Document(text, language or detect_language(text), source)


def _too_long(source: str) -> str:
    return (
        f"{source}: a document of more than {LONGEST_DOCUMENT // MIB} MiB takes a tokenizer too much memory; "
        'cut it into documents: one to a line of a .jsonl file ({"text": ...}), or one to a .txt file'
    )


def _decode(content: bytes, file: Path, line: int | None = None) -> str:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        at = line if line is not None else content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{shown_path(file)}:{at}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
