"""The verb `vocab extend`, which is the first step of `vocab extend-and-transfer`, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cerebras_jais.commandline import Number, standard_input_once
from cerebras_jais.files import STANDARD_INPUT
from cerebras_jais.ranges import VOCABULARY
from cerebras_jais.wording import counted
from checkpoint_convert.printing import progress_bar

if TYPE_CHECKING:
    from cerebras_jais.data.documents import Document

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
REPORT, PLOT = "fertility.md", "fertility.png"
SHOWN_AFTER = 1.0
"""Seconds before a bar appears: most extensions take less for each of their steps."""


@dataclass(frozen=True)
class Wish:
    """What a tokenizer is to be extended by: the options of `wish_options`."""

    scripts: tuple[str, ...]
    room: int
    only_arabic: bool
    corpus: tuple[Path, ...]
    text: tuple[Path, ...]


def wish_options(command: Decorated) -> Decorated:
    """Give a command the options of a Wish, under the names of its fields."""
    paths: dict[str, Any] = {
        "multiple": True,
        "type": click.Path(path_type=Path),
        "callback": standard_input_once,
        "metavar": "PATH",
    }
    options = (
        click.option(
            "--script",
            "scripts",
            multiple=True,
            default=("arabic",),
            show_default=True,
            metavar="NAME",
            help="Script of the tokens, as Unicode names it: arabic, cyrillic, devanagari, ...; repeatable.",
        ),
        click.option(
            "--add", "room", type=Number(VOCABULARY), required=True, help="New entries; the result has exactly these."
        ),
        click.option(
            "--only-arabic", is_flag=True, help="Leave out tokens with letters of Persian, Urdu and other languages."
        ),
        click.option(
            "--corpus",
            **paths,
            help="Text whose most used tokens are taken, instead of the donor's first; repeatable.",
        ),
        click.option(
            "--text",
            **paths,
            help="Text on which tokens per word are counted; repeatable. Default: the sample.",
        ),
    )
    return reduce(lambda made, option: option(made), reversed(options), command)


@click.command()
@click.option(
    "--base", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder of the tokenizer to extend."
)
@click.option(
    "--donor",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder of a tokenizer that is good at the language.",
)
@wish_options
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="New folder to write.")
def extend(base: Path, donor: Path, output: Path, **wish: Any) -> None:
    """Extend a tokenizer with the tokens that a donor has for a script.

    The base is a BPE tokenizer in the way of Llama-2 (SentencePiece, with byte fallback) or byte-level; the donor one
    of either kind. Letters that the base lacks come first, then the donor's tokens: those that the corpus uses most or,
    without one, the first by their rank. Each becomes merges of the base, with the intermediate pieces that it takes;
    letters and intermediate pieces count among --add.

    The base's ids stay, and so do its tokens of every text without that script. Every new id is reached from its own
    text; otherwise nothing is written.

    Writes tokenizer.json and the files that transformers loads with it, tokenizer.model if the base has one, and
    fertility.md and .png: tokens per word before and after. Text is what `cerebras-jais data pack` takes.
    """
    for line in write_extended(base, donor, Wish(**wish), output):
        click.echo(line)


def check_wish(wish: Wish) -> None:
    """Raise UserError for options that do not go together."""
    from cerebras_jais.vocabulary.errors import VocabularyError
    from cerebras_jais.vocabulary.scripts import scripts_of

    if Path(STANDARD_INPUT) in wish.corpus and Path(STANDARD_INPUT) in wish.text:
        raise VocabularyError("--corpus - and --text -: standard input can be read once; name a file in one of them")
    if wish.only_arabic and wish.scripts != ("arabic",):
        given = ", ".join(wish.scripts)
        raise VocabularyError(f"--only-arabic goes with --script arabic alone (got {given}); leave it out")
    scripts_of(wish.scripts)


def write_extended(
    base: Path, donor: Path, wish: Wish, output: Path, others: Mapping[str, bytes] | None = None
) -> list[str]:
    """Write the folder of an extended tokenizer, with the report and other files; the lines that say what it holds.

    Raises UserError, and then nothing is written.
    """
    from cerebras_jais.data.dataset import check_new_folder
    from cerebras_jais.vocabulary.bpe import read_bpe
    from cerebras_jais.vocabulary.choose import count_runs, tokens_of_script
    from cerebras_jais.vocabulary.errors import VocabularyError
    from cerebras_jais.vocabulary.extend import extend as extend_by
    from cerebras_jais.vocabulary.extend import write_extension
    from cerebras_jais.vocabulary.fertility import fertility, fertility_of_words, plot, table
    from cerebras_jais.vocabulary.model_file import count_equal
    from cerebras_jais.vocabulary.scripts import scripts_of
    from cerebras_jais.vocabulary.splice import Reason

    check_new_folder(output)
    check_wish(wish)
    script, named = scripts_of(wish.scripts), " or ".join(wish.scripts)
    extended, lender = read_bpe(base, to_extend=True), read_bpe(donor)
    with progress_bar("choosing", " tokens", delay=SHOWN_AFTER) as progress:
        tokens = tokens_of_script(lender, extended, script, only_arabic=wish.only_arabic, progress=progress)
    if not tokens:
        raise VocabularyError(f"{donor}: has no token of the script {named}; give another donor")
    words = count_runs(_documents(wish.corpus, "reading the corpus"), tokens) if wish.corpus else None
    with progress_bar("dropping unused tokens", " tokens", delay=SHOWN_AFTER) as progress:
        extension = extend_by(extended, tokens, wish.room, words, progress)
    if lost := extension.unreachable:
        raise VocabularyError(
            f"{base}: {counted(len(lost), 'new token')}, such as {lost[0]!r}, cannot be reached from the own text; "
            "nothing is written: please report it with the two tokenizers"
        )
    kept = list(_documents(wish.text, "reading")) if Path(STANDARD_INPUT) in wish.text else None

    def documents() -> Iterable[Document]:
        return (
            _documents(wish.text, "counting tokens") if kept is None else kept
        )  # files are read again each time, in bounded memory

    by_name = {"base": extended, "extended": extension.tokenizer, "donor": lender}
    rows = fertility({name: bpe.tokenizer for name, bpe in by_name.items()}, documents())
    alone = fertility_of_words(by_name, count_runs(documents(), tokens), script, f"words in {named} letters")
    rows += [alone] if alone else []
    report = {REPORT: "".join(f"{line}\n" for line in table(rows)).encode(), PLOT: plot(rows)}
    write_extension(extension, output, {**report, **(others or {})})

    lines = [
        f"{output}: {extension.tokenizer.entries} entries: {extended.entries} of the base, "
        f"{counted(extension.count(Reason.LETTER), 'letter')}, "
        f"{counted(extension.count(Reason.TOKEN), 'token')} of the donor, "
        f"{counted(extension.count(Reason.INTERMEDIATE), 'intermediate piece')}",
        f"  every new id is reached from its own text: {wish.room} of {wish.room}",
    ]
    if extension.model is None:
        lines.append("  no tokenizer.model, as the base has none")
    else:
        equal = count_equal(extension.model, extension.tokenizer.tokenizer, (each.text for each in documents()))
        judged = "sentencepiece is not installed to compare it" if equal is None else f"{equal[0]} of {equal[1]}"
        lines.append(f"  texts with the same tokens by tokenizer.model: {judged}")
    lines.append("tokens per word:")
    for row in rows:
        before, after, by_donor = (row.per_word(name) for name in by_name)
        lines.append(
            f"  {row.text}: {before:.2f} before, {after:.2f} after ({before / after:.2f}x), donor {by_donor:.2f}"
        )
    return lines


def _documents(paths: tuple[Path, ...], doing: str) -> Iterator[Document]:
    """The documents of all the paths, of the bundled sample when there are none, with a bar for a long read."""
    from cerebras_jais.data.documents import TEXT_SUFFIXES, read_documents, sample_corpus_path

    paths = paths or (sample_corpus_path(),)
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    size = sum(file.stat().st_size for file in files if file.suffix in TEXT_SUFFIXES and file.is_file())
    with progress_bar(doing, delay=SHOWN_AFTER) as progress:
        for path in paths:
            for document in read_documents(path):
                yield document
                progress(len(document.text.encode()), size)
