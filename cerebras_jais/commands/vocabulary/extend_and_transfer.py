"""The verb `vocab extend-and-transfer`: the tokenizer first, then the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from cerebras_jais.commands.vocabulary.extend import Wish, check_wish, wish_options, write_extended
from cerebras_jais.commands.vocabulary.transfer import run_transfer, start_transfer, transfer_options
from cerebras_jais.errors import UserError
from cerebras_jais.files import MIB, STANDARD_INPUT, identity_of, parse_json, read_text, shown_path
from checkpoint_convert.options import NEW

RECORD = "extension.json"
"""In the folder of the tokenizer: what it was made from, by which a run that resumes knows it."""


@click.command()
@wish_options
@click.option(
    "--tokenizer",
    type=NEW,
    metavar="DIR",
    help="New folder of the extended tokenizer. Default: tokenizer beside the output.",
)
@transfer_options
def extend_and_transfer(
    scripts: tuple[str, ...],
    room: int,
    only_arabic: bool,
    corpus: tuple[Path, ...],
    text: tuple[Path, ...],
    tokenizer: Path | None,
    **transfer: Any,
) -> None:
    """Extend a model's tokenizer by a donor's tokens, and make the checkpoint that has embeddings for them.

    \b
      cerebras-jais vocab extend-and-transfer --base llama-2-7b --donor jais-30b --add 32000 \\
          --config jais-adapted-7b/stage-1 --output model/jais-adapted-7b/extended.mdl

    It is `vocab extend` with the tokenizers of the two models, then `vocab transfer` with the tokenizer so made; their
    help says what each does. What can be known to be wrong of either is refused before the first begins.

    To resume an interrupted run, run the same command again: a tokenizer that is finished is kept, and the transfer
    goes on where it stopped.
    """
    start_transfer(transfer["config"], transfer["vocab_size"])
    wish = Wish(scripts, room, only_arabic, corpus, text)
    folders = _check(wish, transfer)
    with _folder(tokenizer, transfer["output"], dry_run=transfer["dry_run"]) as folder:
        record = _record(folders, wish)
        if _is_kept(folder, record):
            lines = [f"{folder}: made before, and kept"]
        else:
            content = (json.dumps(record, ensure_ascii=False, indent=2) + "\n").encode()
            lines = write_extended(*folders, wish, folder, {RECORD: content})
        for line in lines:
            click.echo(line, err=transfer["as_json"])
        run_transfer(tokenizer=folder, **transfer)


def _check(wish: Wish, transfer: dict[str, Any]) -> tuple[Path, Path]:
    """Raise UserError for what is wrong of either step; the folders of the two models' tokenizers."""
    from cerebras_jais.vocabulary.bpe import read_bpe
    from cerebras_jais.vocabulary.embeddings.transfer import TransferOptions, check_transfer, tokenizer_of
    from cerebras_jais.vocabulary.errors import VocabularyError

    if Path(STANDARD_INPUT) in (*wish.corpus, *wish.text):
        raise VocabularyError("-: standard input cannot be read again by a run that resumes; give a file")
    check_wish(wish)
    for path in (*wish.corpus, *wish.text):
        if not path.exists():
            raise VocabularyError(f"{shown_path(path)}: no such file or folder")
    options = TransferOptions(**{field.name: transfer[field.name] for field in fields(TransferOptions)})
    base = options.base_tokenizer or tokenizer_of(options.base, "--base-tokenizer")
    donor = options.donor_tokenizer or tokenizer_of(options.donor, "--donor-tokenizer")
    check_transfer(options, read_bpe(base, to_extend=True).entries + wish.room)
    return base, donor


@contextmanager
def _folder(tokenizer: Path | None, output: Path, *, dry_run: bool) -> Iterator[Path]:
    """The folder of the extended tokenizer; of a dry run one that is removed."""
    folder = tokenizer or output.with_name("tokenizer")
    if not dry_run or folder.exists():
        yield folder
        return
    with TemporaryDirectory() as temporary:
        yield Path(temporary) / "tokenizer"


def _record(folders: tuple[Path, Path], wish: Wish) -> dict[str, Any]:
    """What an extended tokenizer was made from: options, and the size and time of change of each file."""
    files = [folder if folder.is_file() else folder / "tokenizer.json" for folder in folders]
    texts = [
        file for path in (*wish.corpus, *wish.text) for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
    ]
    read = [[str(file.absolute()), *identity_of(file)] for file in (*files, *texts)]
    options = {name: list(map(str, value)) if isinstance(value, tuple) else value for name, value in vars(wish).items()}
    return {**options, "read": read}


def _is_kept(folder: Path, record: dict[str, Any]) -> bool:
    """Whether a folder holds the tokenizer of the same command; UserError where it holds anything else."""
    file = folder / RECORD
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not file.is_file():
        raise UserError(
            f"{shown_path(folder)}: exists, and this command has not made it; choose another --tokenizer, or remove it"
        )
    if parse_json(read_text(file, MIB, UserError), shown_path(file), UserError) != record:
        raise UserError(
            f"{shown_path(folder)}: holds a tokenizer that was made from other input or with other options; choose "
            "another --tokenizer, or remove it"
        )
    return True
