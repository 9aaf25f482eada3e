"""`cerebras-jais data`: text to a tokenizer and to packed training data."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from cerebras_jais.commandline import Number, standard_input_once
from cerebras_jais.commands.data_build import build, print_note, rewrite
from cerebras_jais.ranges import COUNT_OR_NONE, SEED, SIZE, VOCABULARY
from cerebras_jais.wording import counted

if TYPE_CHECKING:
    from cerebras_jais.data.chat.reading import Conversation
    from cerebras_jais.data.documents import Document

T = TypeVar("T")
TOO_LONG = ("drop", "cut-turns", "cut-response")  # those of data.chat.examples.TooLong, whose import needs numpy
ENGINES = ("auto", "fastokens", "tokenizers")  # those of encoding.Engine, whose import does, too


@click.group()
def data() -> None:
    """Text to tokens: train a tokenizer, pack documents or conversations for training, look at what was packed.

    \b
    The usual way:
      cerebras-jais data tokenizer --text my_texts/ --vocab-size 16000 --output my_tokenizer
      cerebras-jais data pack --text my_texts/ --tokenizer my_tokenizer \\
          --max-sequence-length 512 --output my_data
      cerebras-jais data show my_data --tokenizer my_tokenizer

    Text is a folder of .txt and .jsonl files ({"text": ..., "language": "ar"} per line), one such file, or a
    question-answering file in SQuAD format (.json, contexts are taken). Several --text may be given. Without any, the
    small Arabic-English sample that comes with the package is used.
    """


_text = click.option(
    "--text",
    "texts",
    multiple=True,
    type=click.Path(path_type=Path),
    callback=standard_input_once,
    metavar="PATH",
    help="Folder or file of .txt, .jsonl or SQuAD .json; - is text on standard input; repeatable. Default: the sample.",
)
_held_out = click.option(
    "--held-out",
    type=Number(COUNT_OR_NONE),
    default=10,
    show_default=True,
    metavar="EVERY",
    help="Keep every EVERY-th document of each language out of training; 0 keeps none.",
)
_tokenizer = click.option(
    "--tokenizer",
    "tokenizer_dir",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder with tokenizer.json, such as a Hugging Face release.",
)
_output = click.option(
    "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="New folder to write."
)
_engine = click.option(
    "--engine",
    type=click.Choice([*ENGINES]),
    default="auto",
    show_default=True,
    help="What encodes text: auto is fastokens where it is installed, which gives the ids of tokenizers faster.",
)
_length = click.option("--max-sequence-length", type=Number(SIZE), required=True, help="Tokens per row, e.g. 2048.")


@data.command()
@_text
@click.option(
    "--vocab-size", type=Number(VOCABULARY), required=True, help="Entries wanted, 257 or more; Jais has 84992."
)
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write.")
@click.option(
    "--model-max-length", type=Number(SIZE), default=2048, show_default=True, help="Context length to record."
)
@_held_out
@click.option("--overwrite", is_flag=True, help="Replace the tokenizer that is there.")
def tokenizer(
    texts: tuple[Path, ...], vocab_size: int, output: Path, model_max_length: int, held_out: int, overwrite: bool
) -> None:
    """Train a byte-level BPE tokenizer on text.

    It is built as the Jais tokenizer is: GPT-2's splitting pattern, no normalisation (tashkeel is kept), end of text
    as token 0. transformers.AutoTokenizer loads the folder. Documents that `data pack` will hold out (give the same
    --held-out) are not learnt from. Prints tokens per word on the held-out documents, or on all without any.
    """
    from cerebras_jais.data.documents import language_of
    from cerebras_jais.data.tokenizer import check_folder, save_tokenizer, tokens_per_word, train_tokenizer

    check_folder(output, overwrite)
    training, kept = _read(texts, held_out)
    trained = train_tokenizer(_progress(training, "learning"), vocab_size)
    save_tokenizer(trained, output, model_max_length, overwrite=overwrite)
    click.echo(f"{output}: {trained.get_vocab_size()} entries from {counted(len(training), 'document')}")
    if trained.get_vocab_size() < vocab_size:
        click.echo(f"  (fewer than the requested {vocab_size}: the text has no more merges)")
    judged = kept or training
    for language in sorted({language_of(document) for document in judged}):
        fertility = tokens_per_word(trained, (d for d in judged if language_of(d) == language))
        click.echo(f"  {language}: {fertility:.2f} tokens per word{' (held out)' if kept else ''}")


@data.command()
@_text
@_tokenizer
@_length
@_output
@click.option("--vsl", is_flag=True, help="Pack whole documents that attend to themselves alone (use_vsl: True).")
@_held_out
@click.option("--seed", type=Number(SEED), default=0, show_default=True, help="Order of the training documents.")
@_engine
def pack(
    texts: tuple[Path, ...],
    tokenizer_dir: Path,
    max_sequence_length: int,
    output: Path,
    vsl: bool,
    held_out: int,
    seed: int,
    engine: str,
) -> None:
    """Tokenise text and pack it into the Model Zoo's HDF5 files.

    Writes OUTPUT/train and, for each language, OUTPUT/held_out/LANGUAGE; name them as data_dir in the trainer YAML.
    OUTPUT/held_out.jsonl has the text of the documents held out, for `cerebras-jais score --data OUTPUT`.
    Without --vsl the documents are joined, each followed by the end-of-text token, and cut into rows: no position is
    wasted, but a row can begin inside a document. With --vsl each document stays whole and sees only itself.
    """
    from cerebras_jais.data.documents import language_of, not_held_out
    from cerebras_jais.data.pipeline import pack_documents
    from cerebras_jais.encoding import Engine

    languages: Counter[str] = Counter()

    def documents() -> Iterator[Document]:
        for document in _documents(texts):
            languages[language_of(document)] += 1
            yield document

    splits = pack_documents(
        documents(),
        tokenizer_dir,
        max_sequence_length,
        output,
        vsl=vsl,
        held_out=held_out,
        seed=seed,
        engine=Engine(engine),
        progress=_progress,
    )
    if texts and held_out:
        print_note(not_held_out(languages, held_out))
    for split in splits:
        report = split.report
        click.echo(
            f"{split.directory}: {counted(split.documents, 'document')}, {counted(split.n_bytes, 'byte')}, "
            f"{counted(report.tokens, 'token')}, {counted(report.rows, 'row')} of {max_sequence_length} "
            f"({report.fill:.1%} full)"
        )


@data.command()
@click.option(
    "--text",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    callback=standard_input_once,
    metavar="FILE",
    help="JSON lines; - is standard input; repeatable. Default: the conversations that come with the package.",
)
@_tokenizer
@_length
@_output
@click.option(
    "--too-long",
    type=click.Choice([*TOO_LONG]),
    default="drop",
    show_default=True,
    help="An example longer than a row is left out, loses its oldest turns, or the end of its last response.",
)
@click.option("--ignore", multiple=True, metavar="FIELD", help="Field of the lines to pass over; repeatable.")
@click.option("--skip-malformed", is_flag=True, help="Count lines that cannot be used instead of stopping.")
@_held_out
@click.option("--seed", type=Number(SEED), default=0, show_default=True, help="Order of the examples.")
@_engine
def chat(
    files: tuple[Path, ...],
    tokenizer_dir: Path,
    max_sequence_length: int,
    output: Path,
    too_long: str,
    ignore: tuple[str, ...],
    skip_malformed: bool,
    held_out: int,
    seed: int,
    engine: str,
) -> None:
    """Pack conversations into the Model Zoo's HDF5 files: instruction data.

    \b
    A line of a file is one conversation, in one of these forms:
      {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
      {"prompt": ..., "response": ...}
      {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}
      {"instruction": ..., "input": ..., "output": ...}

    Each may have a "system" message, a "source", and a "language", "ar" or "en", of the prompt. Without a language the
    prompt is Arabic if at least half of the letters of the user's last message are.

    Several examples share a row and do not see one another (use_vsl: True). The loss counts the tokens of responses and
    the end of text behind the last one. Of equal examples the first is kept. Markers of the prompt, such as [|Human|],
    that stand in a message get a space after their first character.

    Writes OUTPUT/train and, for each language, OUTPUT/held_out/LANGUAGE; OUTPUT/held_out.jsonl has the conversations
    held out. `cerebras-jais data show OUTPUT` shows the rows.
    """
    from cerebras_jais.data.chat.examples import TooLong
    from cerebras_jais.data.chat.pipeline import pack_conversations
    from cerebras_jais.data.chat.reading import read_conversations, sample_conversations_path
    from cerebras_jais.data.documents import DataError
    from cerebras_jais.encoding import Engine

    malformed = Malformed()
    without: list[Path] = []

    def conversations() -> Iterator[Conversation]:
        for file in files or (sample_conversations_path(),):
            found = False
            for conversation in read_conversations(
                file, ignored=ignore, malformed=malformed.count if skip_malformed else None
            ):
                found = True
                yield conversation
            if not found:
                without.append(file)

    try:
        splits, counts = pack_conversations(
            conversations(),
            tokenizer_dir,
            max_sequence_length,
            output,
            too_long=TooLong(too_long),
            held_out=held_out,
            seed=seed,
            engine=Engine(engine),
            progress=_progress,
        )
    except DataError:
        if malformed.number:
            print_note(f"lines left out as malformed: {malformed.number}")
        raise
    finally:
        for error in malformed.first:
            print_note(f"left out: {error}")
        for file in without:
            print_note(f"{file}: has no conversation")
    for split in splits:
        report = split.report
        click.echo(
            f"{split.directory}: {counted(report.documents, 'example')}, {counted(report.tokens, 'token')}, "
            f"{report.trained_positions} in the loss, {counted(report.rows, 'row')} of {max_sequence_length} "
            f"({report.fill:.1%} full)"
        )
    for count, what in (
        (malformed.number, "malformed"),
        (counts.duplicates, "equal to an earlier one"),
        (counts.too_long, f"longer than {counted(max_sequence_length, 'position')}"),
    ):
        if count:
            click.echo(f"left out: {count} of {counts.read + malformed.number}, {what}")
    for count, what in ((counts.cut_turns, "the oldest turns"), (counts.cut_responses, "the end of the last response")):
        if count:
            click.echo(f"cut: {what} of {count}")
    names = {split.name for split in splits}
    for language, count in sorted(counts.by_language.items()) if held_out else ():
        if f"held_out/{language}" in names:
            continue
        of = f"nothing is held out of {language} ({counted(count, 'example')})"
        remedy = "or leave its held_out folder out of the trainer YAML"
        if count < held_out:
            print_note(f"{of}: every {held_out}th of a language is; give a smaller --held-out, {remedy}")
        else:
            print_note(f"{of}: those that would be are too long; give a larger --max-sequence-length, {remedy}")


@data.command()
@click.argument("path", type=click.Path(path_type=Path))
@_tokenizer
@click.option("--rows", default="0-2", show_default=True, metavar="ROWS", help="Which rows, such as 0-2,7.")
@click.option(
    "--html", "page", type=click.Path(path_type=Path), metavar="FILE", help="Write them as one HTML page instead."
)
@click.option("--overwrite", is_flag=True, help="Replace a page that is there.")
def show(path: Path, tokenizer_dir: Path, rows: str, page: Path | None, overwrite: bool) -> None:
    """Show packed rows: the text, where each example ends, what counts in the loss.

    PATH is a folder that `data chat` or `data pack` wrote, its train folder is then shown, or a folder of .h5 files, or
    one such file. Arabic stands in logical order, as a terminal or a browser expects it.
    """
    from cerebras_jais.atomic import write_text
    from cerebras_jais.data.documents import DataError
    from cerebras_jais.data.show import (
        LEGEND,
        html_page,
        open_rows,
        piece_title,
        read_rows,
        row_numbers,
        terminal_lines,
        title,
    )
    from cerebras_jais.data.tokenizer import end_of_text_id, load_tokenizer
    from cerebras_jais.files import shown_path

    if page is not None and page.exists() and not overwrite:
        raise DataError(f"{shown_path(page)}: exists; choose another --html or give --overwrite")
    numbers = row_numbers(rows)
    source, encoder = open_rows(path), load_tokenizer(tokenizer_dir)
    if click.get_current_context().get_parameter_source("rows") is click.core.ParameterSource.DEFAULT:
        numbers = numbers[: len(source)]
    found = read_rows(source, numbers, encoder, end_of_text_id(encoder, tokenizer_dir))
    if page is not None:
        write_text(page, "".join(html_page(found, shown_path(path))))
        click.echo(f"{shown_path(page)}: {len(numbers)} of {counted(len(source), 'row')}")
        return
    click.echo(f"{counted(len(source), 'row')} of {source.sequence_length}; {LEGEND}")
    for row in found:
        click.echo(f"\n{title(row)}")
        for number, piece in enumerate(row.pieces, 1):
            click.echo(f"  {piece_title(number, piece)}")
            for line, trained in terminal_lines(piece):
                click.echo(f"  {click.style(line, fg='green') if trained else line}")


@data.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="FOLDER")
@click.option(
    "--tokenizer",
    "tokenizer_dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder with tokenizer.json; without it languages are not told.",
)
def stats(path: Path, tokenizer_dir: Path | None) -> None:
    """Count what FOLDER holds: rows, fill, documents, tokens, lengths, duplicates, languages.

    FOLDER is what a `data` command wrote, or a token store. Each folder of packed rows, and each store, below it is
    counted by itself. A document that a row holds a part of counts as that part.
    """
    from cerebras_jais.data.stats import count, data_folders, lines
    from cerebras_jais.data.tokenizer import load_tokenizer

    encoder = None if tokenizer_dir is None else load_tokenizer(tokenizer_dir)
    for folder in data_folders(path):
        click.echo(f"{folder}:")
        for line in lines(count(folder, encoder)):
            click.echo(f"  {line}")


data.add_command(build)
data.add_command(rewrite)


class Malformed:
    """Lines that were left out: their number, and what was wrong with the first of them."""

    SHOWN = 10

    def __init__(self) -> None:
        self.number = 0
        self.first: list[str] = []

    def count(self, error: Exception) -> None:
        self.number += 1
        if self.number <= self.SHOWN:
            self.first.append(str(error))


def _read(texts: tuple[Path, ...], held_out: int) -> tuple[list[Document], list[Document]]:
    """Return (training, held out) documents of all the paths, of the bundled sample when there are none."""
    from cerebras_jais.data.documents import split_held_out

    documents = list(_documents(texts))
    return split_held_out(documents, held_out) if held_out else (documents, [])


def _documents(texts: tuple[Path, ...]) -> Iterator[Document]:
    """The documents of all the paths, of the bundled sample when there are none."""
    from cerebras_jais.data.documents import passed_over, read_documents, sample_corpus_path

    for path in texts:
        print_note(passed_over(path))
    for path in texts or (sample_corpus_path(),):
        yield from read_documents(path)


def _progress(items: Iterable[T], name: str) -> Iterable[T]:
    """The items, with a bar on a terminal. It has a descriptor of its own, since encoding silences standard error."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield from items
        return
    from tqdm import tqdm

    with open(os.dup(sys.stderr.fileno()), "w", encoding="utf-8", errors="replace") as terminal:
        yield from tqdm(items, desc=name, unit=" documents", leave=False, file=terminal, dynamic_ncols=True)
