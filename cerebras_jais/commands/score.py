"""The verb `score`: loss and bits per byte on text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from cerebras_jais.commandline import Number, standard_input_once
from cerebras_jais.commands.model_options import ALLOW_PICKLE, CONFIG, MODEL, TOKENIZER
from cerebras_jais.ranges import SIZE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from cerebras_jais.data.chat.reading import Conversation
    from cerebras_jais.evaluate.score import Scored
    from cerebras_jais.model.decoder import LanguageModel


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
@click.option(
    "--weights",
    type=click.Choice(["bfloat16", "int4"]),
    help="Score the model with these weights of `generate`, too, and say what is lost.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option(
    "--by-position",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="The loss by position instead, as a table and a plot; with ALiBi up to 4 times the context.",
)
@click.option("--rows", type=Number(SIZE), default=8, show_default=True, help="Of --by-position: rows of text at most.")
def score(
    path: Path,
    tokenizer: Path | None,
    config: Path | None,
    allow_pickle: bool,
    data: Path | None,
    text: tuple[Path, ...],
    weights: Literal["bfloat16", "int4"] | None,
    as_json: bool,
    by_position: Path | None,
    rows: int,
) -> None:
    """Loss and bits per byte of a checkpoint (.mdl) or a release on text, language by language.

    \b
      cerebras-jais score jais/checkpoint_100.mdl --tokenizer tokenizer --data data
      cerebras-jais score release --text TEXT
      cerebras-jais score release --text TEXT --by-position positions.png
      cerebras-jais score release --text TEXT --weights int4

    A model is worth what it makes of text that it has not seen: give --data, or --text that was not trained on. Of
    conversations that `data chat` held out the responses alone are scored.
    """
    import torch

    from cerebras_jais.chat.forward import Forward
    from cerebras_jais.chat.weights import check_weights
    from cerebras_jais.data.chat.pipeline import held_out_conversations
    from cerebras_jais.data.documents import passed_over, read_documents
    from cerebras_jais.data.pipeline import held_out_documents
    from cerebras_jais.data.tokenizer import encode_document, end_of_text_id, load_tokenizer
    from cerebras_jais.errors import UserError
    from cerebras_jais.evaluate.score import Score, score_documents, score_texts
    from cerebras_jais.evaluate.scoring.positions import check_plot

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
    if by_position is not None and conversations is not None:
        raise UserError("--by-position reads documents one behind the other; give --text, or --data of `data pack`")
    if by_position is not None:
        if weights is not None:
            raise UserError("--by-position reads the model in float32; leave --weights out")
        check_plot(by_position)
    if weights is not None:
        check_weights(weights, torch.device("cpu"))
    model, encoder = load(path, config, allow_pickle), load_tokenizer(tokenizer)
    eos = end_of_text_id(encoder, tokenizer)
    if by_position is not None:
        _by_position(model, (encode_document(encoder, d, eos) for d in documents), eos, rows, by_position, as_json)
        return

    def scores_of(model: LanguageModel | Forward) -> list[Score]:
        if conversations is not None:
            return score_texts(model, _scored(conversations, encoder, eos), model.config.max_position_embeddings)
        return score_documents(model, documents, lambda document: encode_document(encoder, document, eos), eos)

    scores = scores_of(model)
    rounded = [] if weights is None else scores_of(Forward(model, weights))  # which takes the model's weights
    if as_json:
        found = {
            s.language: {
                "documents": s.documents,
                "tokens": s.tokens,
                "bytes": s.n_bytes,
                "loss": s.loss,
                "bits_per_byte": s.bits_per_byte,
            }
            for s in scores
        }
        for s in rounded:
            found[s.language][f"bits_per_byte_{weights}"] = s.bits_per_byte
        click.echo(json.dumps(found))
        return
    added = "" if weights is None else f"{weights:>11}{'more':>8}"
    click.echo(f"{'language':<10}{'documents':>10}{'tokens':>10}{'bytes':>10}{'loss':>8}{'bits/byte':>11}{added}")
    for s, r in zip_longest(scores, rounded):
        added = "" if r is None else f"{r.bits_per_byte:>11.3f}{r.bits_per_byte / s.bits_per_byte - 1:>8.2%}"
        click.echo(
            f"{s.language:<10}{s.documents:>10}{s.tokens:>10}{s.n_bytes:>10}{s.loss:>8.3f}{s.bits_per_byte:>11.3f}"
            f"{added}"
        )


def _by_position(
    model: LanguageModel, documents: Iterator[list[int]], eos: int, rows: int, plot_file: Path, as_json: bool
) -> None:
    """Print the loss by position of documents' tokens, and draw it."""
    from dataclasses import asdict

    from cerebras_jais.chat.forward import Forward
    from cerebras_jais.evaluate.scoring.positions import longest_row, loss_by_position, plot, rows_of

    forward = Forward(model.eval())
    context = forward.config.max_position_embeddings
    ranges = loss_by_position(forward, rows_of(documents, eos, longest_row(forward), rows))
    plot(ranges, context, plot_file)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in ranges]))
        return
    click.echo(f"{'positions':<18}{'of the context':>15}{'tokens':>10}{'loss':>8}{'error':>8}")
    for one in ranges:
        where = f"{one.first:,} to {one.last:,}"
        click.echo(f"{where:<18}{one.last / context:>14.2f}x{one.tokens:>10}{one.loss:>8.3f}{one.error:>8.3f}")
    click.echo(f"plot: {plot_file}")


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
