"""`cerebras-jais vocab` and `tokens`: a vocabulary for one more language, and how tokenizers cut a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cerebras_jais.commandline import Number, standard_input_once
from cerebras_jais.commands.vocab_transfer import transfer
from cerebras_jais.errors import UserError
from cerebras_jais.files import MIB, STANDARD_INPUT, read_text
from cerebras_jais.ranges import VOCABULARY
from cerebras_jais.wording import counted

if TYPE_CHECKING:
    from cerebras_jais.data.documents import Document

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
REPORT, PLOT = "fertility.md", "fertility.png"
LONGEST_TEXT = MIB


@click.group()
def vocab() -> None:
    """Adapt a model's vocabulary, and its embeddings with it, to one more language.

    \b
    An English tokenizer with Arabic tokens of another one:
      cerebras-jais data tokenizer --text xquad.en.json --vocab-size 1000 --output english
      cerebras-jais vocab extend --base english --donor my_tokenizer --add 500 --output extended
      cerebras-jais tokens "السلام عليكم" --tokenizer english --tokenizer extended
    """


vocab.add_command(transfer)


def _paths(option: str, meaning: str) -> Callable[[Decorated], Decorated]:
    return click.option(
        option,
        multiple=True,
        type=click.Path(path_type=Path),
        callback=standard_input_once,
        metavar="PATH",
        help=meaning,
    )


@vocab.command(name="extend")
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
@click.option(
    "--script",
    "scripts",
    multiple=True,
    default=("arabic",),
    show_default=True,
    metavar="NAME",
    help="Script of the tokens, as Unicode names it: arabic, cyrillic, devanagari, ...; repeatable.",
)
@click.option(
    "--add", "room", type=Number(VOCABULARY), required=True, help="New entries; the result has exactly these."
)
@click.option("--only-arabic", is_flag=True, help="Leave out tokens with letters of Persian, Urdu and other languages.")
@_paths("--corpus", "Text whose most used tokens are taken, instead of the donor's first; repeatable.")
@_paths("--text", "Text on which tokens per word are counted; repeatable. Default: the sample.")
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="New folder to write.")
def extend_command(
    base: Path,
    donor: Path,
    scripts: tuple[str, ...],
    room: int,
    only_arabic: bool,
    corpus: tuple[Path, ...],
    text: tuple[Path, ...],
    output: Path,
) -> None:
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
    from cerebras_jais.data.dataset import check_new_folder
    from cerebras_jais.vocabulary.bpe import read_bpe
    from cerebras_jais.vocabulary.choose import count_runs, tokens_of_script
    from cerebras_jais.vocabulary.errors import VocabularyError
    from cerebras_jais.vocabulary.extend import extend, write_extension
    from cerebras_jais.vocabulary.fertility import fertility, fertility_of_words, plot, table
    from cerebras_jais.vocabulary.model_file import count_equal
    from cerebras_jais.vocabulary.scripts import scripts_of
    from cerebras_jais.vocabulary.splice import Reason

    check_new_folder(output)
    if Path(STANDARD_INPUT) in corpus and Path(STANDARD_INPUT) in text:
        raise VocabularyError("--corpus - and --text -: standard input can be read once; name a file in one of them")
    if only_arabic and scripts != ("arabic",):
        raise VocabularyError(f"--only-arabic goes with --script arabic alone (got {', '.join(scripts)}); leave it out")
    script = scripts_of(scripts)
    extended, lender = read_bpe(base, to_extend=True), read_bpe(donor)
    tokens = tokens_of_script(lender, extended, script, only_arabic=only_arabic)
    if not tokens:
        raise VocabularyError(f"{donor}: has no token of the script {' or '.join(scripts)}; give another donor")
    words = count_runs(_documents(corpus), tokens) if corpus else None
    extension = extend(extended, tokens, room, words)
    if lost := extension.unreachable:
        raise VocabularyError(
            f"{base}: {counted(len(lost), 'new token')}, such as {lost[0]!r}, cannot be reached from the own text; "
            "nothing is written: please report it with the two tokenizers"
        )
    kept = list(_documents(text)) if Path(STANDARD_INPUT) in text else None

    def documents() -> Iterable[Document]:
        return _documents(text) if kept is None else kept  # files are read again each time, in bounded memory

    by_name = {"base": extended, "extended": extension.tokenizer, "donor": lender}
    rows = fertility({name: bpe.tokenizer for name, bpe in by_name.items()}, documents())
    alone = fertility_of_words(
        by_name, count_runs(documents(), tokens), script, f"words in {' or '.join(scripts)} letters"
    )
    rows += [alone] if alone else []
    report = {REPORT: "".join(f"{line}\n" for line in table(rows)).encode(), PLOT: plot(rows)}
    write_extension(extension, output, report)

    click.echo(
        f"{output}: {extension.tokenizer.entries} entries: {extended.entries} of the base, "
        f"{counted(extension.count(Reason.LETTER), 'letter')}, "
        f"{counted(extension.count(Reason.TOKEN), 'token')} of the donor, "
        f"{counted(extension.count(Reason.INTERMEDIATE), 'intermediate piece')}"
    )
    click.echo(f"  every new id is reached from its own text: {room} of {room}")
    if extension.model is None:
        click.echo("  no tokenizer.model, as the base has none")
    else:
        equal = count_equal(extension.model, extension.tokenizer.tokenizer, (each.text for each in documents()))
        judged = "sentencepiece is not installed to compare it" if equal is None else f"{equal[0]} of {equal[1]}"
        click.echo(f"  texts with the same tokens by tokenizer.model: {judged}")
    click.echo("tokens per word:")
    for row in rows:
        before, after, by_donor = (row.per_word(name) for name in by_name)
        click.echo(
            f"  {row.text}: {before:.2f} before, {after:.2f} after ({before / after:.2f}x), donor {by_donor:.2f}"
        )


@click.command()
@click.argument("text")
@click.option(
    "--tokenizer",
    "folders",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder with tokenizer.json, of any kind; repeatable.",
)
def tokens(text: str, folders: tuple[Path, ...]) -> None:
    """Show how tokenizers cut TEXT, word by word, and how many tokens each takes.

    TEXT is the text itself, or - for standard input. A piece is shown as the letters that it stands for, ␣ is a space.
    Where several pieces share a character, each is shown as the tokenizer calls it, such as <0xD8>.
    """
    from cerebras_jais.data.tokenizer import load_tokenizer
    from cerebras_jais.vocabulary.side_by_side import cuts, lines

    if text == STANDARD_INPUT:
        text = read_text(STANDARD_INPUT, LONGEST_TEXT)
    if any("\ud800" <= char <= "\udfff" for char in text):  # what Python makes of bytes that are not UTF-8
        raise UserError("TEXT is not UTF-8; give it as UTF-8")
    if not text.strip():
        raise UserError("TEXT is empty; give a text with a word in it")
    loaded = [load_tokenizer(folder) for folder in folders]
    found = cuts(text, loaded)
    for line in lines(found, [str(folder) for folder in folders]):
        click.echo(line)
    for number, folder in enumerate(folders):
        total = sum(len(cut.pieces[number]) for cut in found)
        click.echo(f"{folder}: {counted(total, 'token')}, {total / len(found):.2f} per word")


def _documents(paths: tuple[Path, ...]) -> Iterator[Document]:
    """The documents of all the paths, of the bundled sample when there are none."""
    from cerebras_jais.data.documents import read_documents, sample_corpus_path

    for path in paths or (sample_corpus_path(),):
        yield from read_documents(path)
