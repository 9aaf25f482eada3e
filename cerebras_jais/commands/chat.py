"""The verbs `generate` and `chat`: what a model answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cerebras_jais.commandline import Number
from cerebras_jais.commands.model_options import ALLOW_PICKLE, CONFIG, MODEL, TOKENIZER, WEIGHTS
from cerebras_jais.ranges import SEED, SHARE, SIZE, TEMPERATURE

if TYPE_CHECKING:
    from cerebras_jais.chat.weights import Weights


@click.command()
@MODEL
@TOKENIZER
@CONFIG
@ALLOW_PICKLE
@WEIGHTS
@click.option("--prompt", multiple=True, help="Text to continue; may be given several times.")
@click.option(
    "--batch",
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help='Answer each line of a file, {"prompt": ...} or, with --chat, {"messages": [...]}.',
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help="Where the answers of --batch go; the same command goes on where it was ended.",
)
@click.option("--max-new-tokens", type=Number(SIZE), default=64, show_default=True, help="Tokens to add at most.")
@click.option(
    "--temperature",
    type=Number(TEMPERATURE),
    help="0 takes the likeliest token each time. Default: 0; with --chat the model's own.",
)
@click.option(
    "--top-p",
    type=Number(SHARE),
    help="Sample from the likeliest tokens of this total. Default: 1; with --chat the model's own.",
)
@click.option("--seed", type=Number(SEED), default=0, show_default=True, help="Seed of the sampling.")
@click.option("--chat", "as_chat", is_flag=True, help="Answer each prompt as a question, by the model's chat template.")
@click.option("--language", type=click.Choice(["ar", "en"]), help="Of the chat prompt. Default: that of each question.")
def generate(
    path: Path,
    tokenizer: Path | None,
    config: Path | None,
    allow_pickle: bool,
    weights: Weights,
    prompt: tuple[str, ...],
    batch: Path | None,
    output: Path | None,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int,
    as_chat: bool,
    language: str | None,
) -> None:
    """Continue prompts with a trained model: a checkpoint (.mdl) or a Hugging Face release.

    \b
      cerebras-jais generate jais/checkpoint_100.mdl --tokenizer tokenizer --prompt "الشمس"
      cerebras-jais generate release --prompt "الشمس"
      cerebras-jais generate chat-release --chat --prompt "ما هي عاصمة الإمارات؟"
      cerebras-jais generate chat-release --chat --batch QUESTIONS.jsonl --output ANSWERS.jsonl

    A release is read without running its code, and brings its tokenizer.
    """
    from dataclasses import replace

    from cerebras_jais.chat.engine import open_engine
    from cerebras_jais.chat.sampling import Sampling
    from cerebras_jais.errors import UserError

    if bool(prompt) == (batch is not None):
        raise UserError("give either --prompt or --batch")
    if (batch is None) != (output is None):
        raise UserError("--batch and --output belong together: the answers to a file go to a file")
    if batch is not None and not batch.exists():
        raise UserError(f"{batch}: does not exist; give a file of JSON lines")
    engine = open_engine(path, tokenizer=tokenizer, config=config, weights=weights, allow_pickle=allow_pickle)
    said: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
    sampling = replace(
        engine.chat_sampling if as_chat else Sampling(),
        **{name: value for name, value in said.items() if value is not None},
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    if batch is not None and output is not None:
        from tqdm import tqdm

        from cerebras_jais.chat.batch import answer_all, identity_of_model, read_prompts

        prompts = read_prompts(batch, engine, as_chat=as_chat, language=language)
        made = answer_all(
            engine,
            [weights, identity_of_model(path, tokenizer=tokenizer, config=config)],
            prompts,
            [sampling] * len(prompts),
            output,
            lambda left, total: tqdm(left, "answering", total, initial=total - len(left), unit="prompt", disable=None),
        )
        click.echo(f"{output}: {len(prompts)} answers, {made} of them new")
    for text in prompt:
        ids = engine.chat_ids([{"role": "user", "content": text}], language) if as_chat else engine.encode(text)
        note = engine.note_on(len(ids))
        if note is not None:
            click.echo(f"note: {note}", err=True)
        (done,) = engine.complete([ids], [sampling])
        click.echo(done.text.strip() if as_chat else text + done.text)


@click.command()
@MODEL
@TOKENIZER
@CONFIG
@ALLOW_PICKLE
@WEIGHTS
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
    weights: Weights,
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

    engine = open_engine(path, tokenizer=tokenizer, config=config, weights=weights, allow_pickle=allow_pickle)
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
