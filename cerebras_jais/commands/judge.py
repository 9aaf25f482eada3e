"""The verbs `answers` and `judge`: open questions answered by a model, and another model's judgement of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cerebras_jais.commandline import Number
from cerebras_jais.commands.model_options import ALLOW_PICKLE, CONFIG, DEVICE, TOKENIZER, WEIGHTS
from cerebras_jais.ranges import SEED, SHARE, SIZE, TEMPERATURE, WEIGHT, Range, shown
from cerebras_jais.wording import counted

if TYPE_CHECKING:
    from cerebras_jais.chat.batch import Prompt
    from cerebras_jais.chat.sampling import Sampling
    from cerebras_jais.chat.weights import Weights
    from cerebras_jais.endpoint.client import Endpoint
    from cerebras_jais.evaluate.judge.answers import Answered
    from cerebras_jais.evaluate.judge.asking import Judging
    from cerebras_jais.evaluate.judge.judgements import Judgement, Kind
    from cerebras_jais.evaluate.judge.questions import Question

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)
_CONCURRENCY = Range(1, 1024, whole=True)
_TIMEOUT = Range(1, 86_400)


def _endpoint_options(required: bool) -> Callable[[Decorated], Decorated]:
    """The options of an endpoint that is asked."""
    options = (
        click.option(
            "--base-url", required=required, metavar="URL", help="What stands before /chat/completions of an endpoint."
        ),
        click.option("--model", "model", required=required, metavar="NAME", help="Model to ask for at the endpoint."),
        click.option("--key-variable", metavar="NAME", help="Environment variable with the key of the endpoint."),
        click.option(
            "--concurrency", type=Number(_CONCURRENCY), default=8, show_default=True, help="Requests at a time."
        ),
        click.option(
            "--timeout",
            type=Number(_TIMEOUT),
            default=600.0,
            show_default=True,
            help="Seconds that a request may take.",
        ),
    )

    def add(function: Decorated) -> Decorated:
        for option in reversed(options):
            function = option(function)
        return function

    return add


@click.command()
@click.argument("path", metavar="[MODEL]", required=False, type=FILE)
@click.option("--questions", required=True, metavar="SET", help="vicuna-en, vicuna-ar, or a file in FastChat's format.")
@click.option("--output", type=FILE, metavar="FILE.jsonl", help="Where the answers go. Default: NAME-SET.jsonl.")
@click.option("--name", help="Of the model in reports. Default: that of its file, folder, or at the endpoint.")
@TOKENIZER
@CONFIG
@ALLOW_PICKLE
@click.option("--run-code", is_flag=True, help="Let the code in a release that transformers opens run.")
@click.option("--chat", "as_chat", is_flag=True, help="Give a model without a chat template the family's prompt.")
@DEVICE
@WEIGHTS
@_endpoint_options(required=False)
@click.option("--max-new-tokens", type=Number(SIZE), default=1024, show_default=True, help="Of an answer at most.")
@click.option("--temperature", type=Number(TEMPERATURE), help="0 takes the likeliest token. Default: the model's own.")
@click.option("--top-p", type=Number(SHARE), help="Sample from the likeliest tokens of this total. Default: as above.")
@click.option("--seed", type=Number(SEED), default=0, show_default=True, help="Of a model on this machine.")
@click.option("--fastchat", is_flag=True, help="Temperatures of FastChat: 0.7, and 0 for coding and mathematics.")
def answers(
    path: Path | None,
    questions: str,
    output: Path | None,
    name: str | None,
    tokenizer: Path | None,
    config: Path | None,
    allow_pickle: bool,
    run_code: bool,
    as_chat: bool,
    device: str,
    weights: Weights,
    base_url: str | None,
    model: str | None,
    key_variable: str | None,
    concurrency: int,
    timeout: float,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int,
    fastchat: bool,
) -> None:
    """Have a chat model answer a set of questions, for a judge.

    \b
      cerebras-jais answers chat-release --questions vicuna-ar
      cerebras-jais answers chat-release --questions vicuna-en --fastchat --device cuda --weights bfloat16
      cerebras-jais answers --base-url http://localhost:8000/v1 --model NAME --questions vicuna-en

    MODEL is a checkpoint (.mdl) or a release of the family, or another release that transformers opens. Without one
    the endpoint answers. Answers are kept in OUTPUT.asked as they come, so the same command goes on with a run that
    was ended, and asks nothing twice; OUTPUT is written once all are there. docs/judge.md says more.
    """
    from dataclasses import replace

    from cerebras_jais.commands.data_build import print_note
    from cerebras_jais.errors import UserError
    from cerebras_jais.evaluate.judge.answering import answer_here, answer_there, check_output, fastchat_temperature
    from cerebras_jais.evaluate.judge.questions import BUNDLED, NOTES, read_questions

    if (path is None) == (base_url is None) or (base_url is None) != (model is None):
        raise UserError("give either a MODEL, or --base-url and --model of an endpoint")
    if fastchat and temperature is not None:
        raise UserError("--fastchat sets the temperatures; leave --temperature out")
    found = read_questions(questions)
    print_note(NOTES.get(questions))
    name = name or str(model if path is None else path.resolve().name)
    of_set = questions if questions in BUNDLED else Path(questions).stem
    output = output or Path(f"{name.replace('/', '_')}-{of_set}.jsonl")
    check_output(output)

    def temperature_of(question: Question) -> float | None:
        return fastchat_temperature(question) if fastchat else temperature

    if path is None:
        endpoint = _endpoint(str(base_url), key_variable, timeout)

        def options_of(question: Question) -> dict[str, Any]:
            said = {"max_tokens": max_new_tokens, "temperature": temperature_of(question), "top_p": top_p}
            return {key: value for key, value in said.items() if value is not None}

        made, refused = answer_there(
            endpoint, str(model), name, found, of_set, options_of, output, concurrency, _progress("answers", len(found))
        )
        if refused:
            print_note(f"{counted(refused, 'question')} refused by the endpoint: the answers are empty")
    else:
        from cerebras_jais.evaluate.judge.writers import open_writer

        writer = open_writer(
            path,
            tokenizer=tokenizer,
            config=config,
            allow_pickle=allow_pickle,
            weights=weights,
            device=device,
            run_code=run_code,
            as_chat=as_chat,
        )

        def sampling_of(question: Question) -> Sampling:
            said = {"temperature": temperature_of(question), "top_p": top_p}
            given: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
            return replace(writer.sampling, **given, max_new_tokens=max_new_tokens, seed=seed)

        def progress(left: Sequence[Prompt], total: int) -> Iterable[Prompt]:
            say = _progress("answers", len(left))
            for number, prompt in enumerate(left):
                say(number)
                yield prompt

        made = answer_here(writer, name, found, of_set, sampling_of, output, progress)
    click.echo(f"{output}: {counted(len(found), 'answer')} of {name}, {made} of them new")


@click.group()
def judge() -> None:
    """Have a model behind an OpenAI-style endpoint judge answers.

    \b
      cerebras-jais judge pairwise A.jsonl B.jsonl --base-url https://HOST/v1 --model NAME --key-variable KEY
      cerebras-jais judge single A.jsonl --base-url http://localhost:8000/v1 --model NAME
      cerebras-jais judge plot A-against-B C-against-B --output rates.png

    The files are those of `cerebras-jais answers`. The prompts are FastChat's. docs/judge.md says more.
    """


def _judging_options(function: Decorated) -> Decorated:
    """The options of both ways of judging."""
    options = (
        _endpoint_options(required=True),
        click.option("--output", type=FILE, metavar="DIR", help="Folder of the record. Default: by the files' names."),
        click.option("--reference", type=FILE, metavar="FILE", help="Reference answers, in FastChat's format."),
        click.option(
            "--options", metavar="JSON", help='Keys of each request. Default: {"temperature": 0, "max_tokens": 2048}.'
        ),
        click.option("--price-in", type=Number(WEIGHT), help="Of a million tokens of questions, for the estimate."),
        click.option("--price-out", type=Number(WEIGHT), help="Of a million tokens of judgements."),
        click.option("--dry-run", is_flag=True, help="Print the estimate and ask nothing."),
        _FASTCHAT,
        _JSON,
    )
    for option in reversed(options):
        function = option(function)
    return function


_FASTCHAT = click.option("--fastchat", is_flag=True, help="Print too what FastChat's parsing and averaging give.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the report.")


@judge.command()
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@_judging_options
def pairwise(a: Path, b: Path, **options: Any) -> None:
    """Compare two models' answers to the same questions, each pair in both orders.

    A model wins a question only if the judge prefers it in both orders. Whatever the judge says is kept in
    DIR/asked.jsonl, so nothing is asked twice, also where A and B are exchanged.
    """
    from cerebras_jais.errors import UserError
    from cerebras_jais.evaluate.judge.answers import read_answers, same_questions

    first = read_answers(a)
    second = same_questions(first, read_answers(b), (a, b))
    names = (first[0].model, second[0].model)
    labels = names if names[0] != names[1] else (a.stem, b.stem)
    if labels[0] == labels[1]:
        raise UserError(f"{a} and {b}: are both of {names[0]!r}, and have one name; rename one of the files")
    _judge("pairwise", (first, second), labels, Path(f"{a.stem}-against-{b.stem}"), **options)


@judge.command()
@click.argument("a", type=FILE)
@_judging_options
def single(a: Path, **options: Any) -> None:
    """Rate a model's answers from 1 to 10, each by itself."""
    from cerebras_jais.evaluate.judge.answers import read_answers

    found = read_answers(a)
    _judge("single", (found,), (found[0].model,), Path(f"{a.stem}-rated"), **options)


@judge.command()
@click.argument("folder", metavar="DIR", type=FILE)
@_FASTCHAT
@_JSON
def report(folder: Path, fastchat: bool, as_json: bool) -> None:
    """Print the report of judgements again; nothing is asked."""
    from cerebras_jais.evaluate.judge.judgements import read_judgements

    _print_report(read_judgements(folder), fastchat, as_json)


@judge.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=FILE)
@click.option("--output", required=True, type=FILE, metavar="FILE", help="Ends in .png or .svg.")
def plot(folders: tuple[Path, ...], output: Path) -> None:
    """Draw the judgements of folders as the card does: win rates or ratings, Arabic and English."""
    from cerebras_jais.atomic import replacing
    from cerebras_jais.evaluate.judge.judgements import read_judgements
    from cerebras_jais.evaluate.judge.plots import plot as draw

    content = draw([read_judgements(folder) for folder in folders], output)
    with replacing(output, overwrite=True) as partial:
        partial.write_bytes(content)
    click.echo(str(output))


def _judge(
    kind: Kind,
    answers: tuple[list[Answered], ...],
    names: tuple[str, ...],
    folder: Path,
    *,
    base_url: str,
    model: str,
    key_variable: str | None,
    concurrency: int,
    timeout: float,
    output: Path | None,
    reference: Path | None,
    options: str | None,
    price_in: float | None,
    price_out: float | None,
    dry_run: bool,
    fastchat: bool,
    as_json: bool,
) -> None:
    from cerebras_jais.evaluate.judge.answers import with_references
    from cerebras_jais.evaluate.judge.asking import OPTIONS, Judging, estimate
    from cerebras_jais.evaluate.judge.asking import judge as judge_answers

    folder = output or folder
    judging = Judging(
        kind,
        tuple(with_references(each, reference) for each in answers),
        names,
        model,
        OPTIONS if options is None else _options(options),
    )
    endpoint = _endpoint(base_url, key_variable, timeout)
    found = estimate(judging, folder)
    click.echo(
        _estimate_line(judging, found.requests, found.left, found.question_tokens, found.answer_tokens), err=True
    )
    if price_in is not None or price_out is not None:
        click.echo(f"at the prices given: about {found.price(price_in or 0, price_out or 0):.2f}", err=True)
    if dry_run:
        click.echo("nothing was asked", err=True)
        return
    judgements = judge_answers(judging, endpoint, folder, concurrency, _progress("judge", found.left))
    _print_report(judgements, fastchat, as_json)
    if not as_json:
        click.echo(f"\njudgements: {folder}")


def _estimate_line(judging: Judging, requests: int, left: int, question_tokens: int, answer_tokens: int) -> str:
    return (
        f"{counted(requests, 'judgement')} by {judging.judge}, {left} to ask: about {question_tokens} tokens of "
        f"questions, {answer_tokens} of judgements (assumed)"
    )


def _print_report(judgements: Sequence[Judgement], fastchat: bool, as_json: bool) -> None:
    from cerebras_jais.evaluate.judge.report import (
        compare,
        fastchat_compare,
        fastchat_rate,
        rate,
        report_lines,
    )

    if not as_json:
        for line in report_lines(judgements, fastchat=fastchat):
            click.echo(line)
        return
    pairwise = judgements[0].kind == "pairwise"
    found = asdict(compare(judgements) if pairwise else rate(judgements))
    if fastchat:
        found["fastchat"] = asdict(fastchat_compare(judgements) if pairwise else fastchat_rate(judgements))
    click.echo(json.dumps(found, ensure_ascii=False))


def _endpoint(base_url: str, key_variable: str | None, timeout: float) -> Endpoint:
    from cerebras_jais.endpoint.client import Endpoint, key_from

    return Endpoint(base_url, key_from(key_variable), timeout)


def _options(text: str) -> dict[str, Any]:
    from cerebras_jais.endpoint.asking import RESERVED
    from cerebras_jais.errors import UserError
    from cerebras_jais.files import parse_json

    found = parse_json(text, "--options")
    if not isinstance(found, dict):
        raise UserError(f'--options: must be a JSON object such as {{"temperature": 0}} (got {shown(found)})')
    if taken := [name for name in RESERVED if name in found]:
        raise UserError(f"--options: {taken[0]} is no option, since the request sets it; remove it")
    return found


def _progress(stage: str, total: int) -> Callable[[int], None]:
    from cerebras_jais.commands.data_build import StageProgress

    progress = StageProgress()
    progress.say(stage, 0, total, "answer")
    return lambda done: progress.say(stage, done, total, "answer")
