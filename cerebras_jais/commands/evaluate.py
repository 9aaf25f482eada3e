"""The verbs `generate` and `score`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cerebras_jais.commandline import Number, standard_input_once
from cerebras_jais.ranges import SEED, SHARE, SIZE, TEMPERATURE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from cerebras_jais.data.chat.reading import Conversation
    from cerebras_jais.evaluate.score import Scored
    from cerebras_jais.model.decoder import LanguageModel

MODEL = click.argument("path", metavar="MODEL", type=click.Path(path_type=Path))
TOKENIZER = click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="Folder of the tokenizer. Default: the release's own."
)
CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Trainer YAML of the model, where the checkpoint does not record it.",
)
ALLOW_PICKLE = click.option(
    "--allow-pickle", is_flag=True, help="Read a release's weights in pickle files too (.bin); nothing in them is run."
)


@click.command()
@MODEL
@TOKENIZER
@CONFIG
@ALLOW_PICKLE
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
    engine = open_engine(path, tokenizer=tokenizer, config=config, allow_pickle=allow_pickle)
    said: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
    sampling = replace(
        engine.chat_sampling if as_chat else Sampling(),
        **{name: value for name, value in said.items() if value is not None},
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    if batch is not None and output is not None:
        from tqdm import tqdm

        from cerebras_jais.chat.batch import answer_all, read_prompts

        prompts = read_prompts(batch, engine, as_chat=as_chat, language=language)
        made = answer_all(
            engine,
            prompts,
            sampling,
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
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder that `data pack` or `data chat` wrote: score what it held out of training.",
)
@click.option(
    "--text",
    multiple=True,
    type=click.Path(path_type=Path),
    callback=standard_input_once,
    metavar="PATH",
    help="Score all of this text: folder or file of .txt, .jsonl or SQuAD .json; - is standard input; repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def score(
    path: Path,
    tokenizer: Path | None,
    config: Path | None,
    allow_pickle: bool,
    data: Path | None,
    text: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Loss and bits per byte of a checkpoint (.mdl) or a release on text, language by language.

    \b
      cerebras-jais score jais/checkpoint_100.mdl --tokenizer tokenizer --data data
      cerebras-jais score release --text TEXT

    A model is worth what it makes of text that it has not seen: give --data, or --text that was not trained on. Of
    conversations that `data chat` held out the responses alone are scored.
    """
    from cerebras_jais.data.chat.pipeline import held_out_conversations
    from cerebras_jais.data.documents import passed_over, read_documents
    from cerebras_jais.data.pipeline import held_out_documents
    from cerebras_jais.data.tokenizer import encode_document, end_of_text_id, load_tokenizer
    from cerebras_jais.errors import UserError
    from cerebras_jais.evaluate.score import score_documents, score_texts

    tokenizer = tokenizer_of(path, tokenizer)
    if (data is None) == (not text):
        raise UserError(
            "give exactly one of --data and --text: --data the folder that `data pack` wrote, for the documents that "
            "it held out, --text other text that was not trained on"
        )
    for note in filter(None, map(passed_over, text)):
        click.echo(f"note: {note}", err=True)
    conversations = held_out_conversations(data) if data is not None else None
    documents = [document for source in text for document in read_documents(source)]
    if data is not None and conversations is None:
        documents = held_out_documents(data)
    model, encoder = load(path, config, allow_pickle), load_tokenizer(tokenizer)
    eos = end_of_text_id(encoder, tokenizer)
    if conversations is not None:
        scores = score_texts(model, _scored(conversations, encoder, eos), model.config.max_position_embeddings)
    else:
        scores = score_documents(model, documents, lambda document: encode_document(encoder, document, eos), eos)
    if as_json:
        click.echo(
            json.dumps(
                {
                    s.language: {
                        "documents": s.documents,
                        "tokens": s.tokens,
                        "bytes": s.n_bytes,
                        "loss": s.loss,
                        "bits_per_byte": s.bits_per_byte,
                    }
                    for s in scores
                }
            )
        )
        return
    click.echo(f"{'language':<10}{'documents':>10}{'tokens':>10}{'bytes':>10}{'loss':>8}{'bits/byte':>11}")
    for s in scores:
        click.echo(
            f"{s.language:<10}{s.documents:>10}{s.tokens:>10}{s.n_bytes:>10}{s.loss:>8.3f}{s.bits_per_byte:>11.3f}"
        )


def _scored(conversations: list[Conversation], encoder: Tokenizer, eos: int) -> Iterator[Scored]:
    """The conversations as texts to score: their responses and the end behind the last one count."""
    from cerebras_jais.data.chat.examples import PromptEncoder
    from cerebras_jais.encoding import Encoder
    from cerebras_jais.evaluate.score import Scored

    prompts = PromptEncoder(Encoder(encoder), eos)
    rendered = [prompts.render(conversation) for conversation in conversations]
    for conversation, text, (ids, trained) in zip(conversations, rendered, prompts.encode(rendered), strict=True):
        responses = [content for content, response in zip(text.contents, text.responses, strict=True) if response]
        size = sum(len(content.encode("utf-8")) for content in responses)
        yield Scored(conversation.language, ids.tolist(), trained.tolist(), size)


def tokenizer_of(path: Path, given: Path | None) -> Path:
    """The folder of the tokenizer: the one given, or the release itself."""
    from cerebras_jais.errors import UserError

    if given is not None:
        return given
    if not path.is_dir():
        raise UserError(f"{path}: a checkpoint has no tokenizer in it; give its folder with --tokenizer")
    if not (path / "tokenizer.json").is_file():
        raise UserError(f"{path}: has no tokenizer.json; give the folder of one with --tokenizer")
    return path


def load(path: Path, config: Path | None, allow_pickle: bool) -> LanguageModel:
    """The model of a release, or of a checkpoint by the config it records or by the YAML given."""
    from cerebras_jais.catalog.reader import read_trainer_yaml
    from cerebras_jais.errors import UserError
    from cerebras_jais.model.load import load_model
    from checkpoint_convert.load import load_release

    if not path.is_dir():
        return load_model(path, read_trainer_yaml(config)[-1].init.model if config else None)
    if config is not None:
        raise UserError(f"{config}: a release is read by its own config.json; leave --config out")
    return load_release(path, allow_pickle=allow_pickle)
