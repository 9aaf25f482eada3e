"""`cerebras-jais vocab` and `tokens`: a vocabulary for one more language, and how tokenizers cut a text."""

from __future__ import annotations

from pathlib import Path

import click

from cerebras_jais.commands.vocabulary.extend import extend
from cerebras_jais.commands.vocabulary.extend_and_transfer import extend_and_transfer
from cerebras_jais.commands.vocabulary.transfer import transfer
from cerebras_jais.errors import UserError
from cerebras_jais.files import MIB, STANDARD_INPUT, read_text
from cerebras_jais.wording import counted

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


for _verb in (extend, transfer, extend_and_transfer):
    vocab.add_command(_verb)


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
