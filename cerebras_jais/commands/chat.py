"""The verb `chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cerebras_jais.commandline import Number
from cerebras_jais.commands.evaluate import ALLOW_PICKLE, CONFIG, MODEL, TOKENIZER
from cerebras_jais.ranges import SEED, SHARE, SIZE, TEMPERATURE


@click.command()
@MODEL
@TOKENIZER
@CONFIG
@ALLOW_PICKLE
@click.option("--language", type=click.Choice(["ar", "en"]), help="Of the prompt. Default: that of each question.")
@click.option("--system", help="System message, in place of the model's own.")
@click.option("--max-new-tokens", type=Number(SIZE), default=512, show_default=True, help="Of an answer at most.")
@click.option("--temperature", type=Number(TEMPERATURE), help="0 takes the likeliest token. Default: the model's own.")
@click.option("--top-p", type=Number(SHARE), help="Sample from the likeliest tokens of this total. Default: as above.")
@click.option("--seed", type=Number(SEED), help="Seed of the sampling. Default: another one each time.")
def chat(
    path: Path,
    tokenizer: Path | None,
    config: Path | None,
    allow_pickle: bool,
    language: str | None,
    system: str | None,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
) -> None:
    """Talk to a chat model, a checkpoint (.mdl) or a Hugging Face release, in the terminal.

    \b
      cerebras-jais chat chat-release
      cerebras-jais chat chat-release --temperature 0 < questions.txt

    Each line is a question; /help lists what else a line can ask. Ctrl-C stops an answer, and ends the program where
    none is under way. The model samples as its generation_config.json says, else as the card of the family.
    """
    from dataclasses import replace

    from cerebras_jais.chat.engine import open_engine
    from cerebras_jais.chat.session import HELP, Session
    from cerebras_jais.errors import UserError

    engine = open_engine(path, tokenizer=tokenizer, config=config, allow_pickle=allow_pickle)
    engine.check_chats()
    said: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed, "max_new_tokens": max_new_tokens}
    sampling = replace(engine.chat_sampling, **{key: value for key, value in said.items() if value is not None})
    session = Session(engine, sampling, lambda text: click.echo(text, nl=False), language=language)
    if system:
        session.take(f"/system {system}")
    asked = sys.stdin.isatty()
    if asked:
        import readline  # noqa: F401  # input() edits lines and keeps a history where it is imported

        click.echo(HELP)
    while True:
        try:
            line = input("> " if asked else "")
        except EOFError:
            return
        try:
            if not session.take(line):
                return
        except UserError as error:
            if not asked:
                raise
            click.echo(f"error: {error}", err=True)
