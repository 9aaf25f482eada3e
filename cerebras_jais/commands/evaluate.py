"""The verb `evaluate`: a model's scores on the tasks of lm_eval."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cerebras_jais.commandline import Number
from cerebras_jais.commands.model_options import ALLOW_PICKLE, CONFIG, DEVICE, MODEL, TOKENIZER, WEIGHTS
from cerebras_jais.evaluate.suites import SUITES
from cerebras_jais.ranges import SIZE

if TYPE_CHECKING:
    from cerebras_jais.chat.engine import Engine
    from cerebras_jais.chat.forward import Forward
    from cerebras_jais.chat.weights import Weights


@click.command()
@MODEL
@TOKENIZER
@CONFIG
@ALLOW_PICKLE
@click.option(
    "--suite", type=click.Choice(SUITES), help="The card's columns, the Arabic leaderboards', or a small one."
)
@click.option("--tasks", help="Names of lm_eval's tasks, with commas; beside those of --suite, if it is given.")
@click.option(
    "--reading",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Reading comprehension on a file in SQuAD's format: exact match and F1.",
)
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder with clones of data sets, under their names on the hub. Default: the hub and its cache.",
)
@click.option("--chat-template", is_flag=True, help="Ask as in a conversation, by the model's chat template.")
@click.option("--limit", type=Number(SIZE), help="So many questions of each task, for a trial.")
@WEIGHTS
@DEVICE
@click.option(
    "--processes",
    type=Number(SIZE),
    default=1,
    show_default=True,
    help="That score options, each with the model in memory; with cuda each on a GPU of its own.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Where answers and results go; the same command goes on where it was ended.",
)
def evaluate(
    path: Path,
    tokenizer: Path | None,
    config: Path | None,
    allow_pickle: bool,
    suite: str | None,
    tasks: str | None,
    reading: Path | None,
    data_root: Path | None,
    chat_template: bool,
    limit: int | None,
    weights: Weights,
    device: str,
    processes: int,
    output: Path,
) -> None:
    """Score a checkpoint (.mdl) or a release on the tasks of lm_eval, zero-shot unless a task says otherwise.

    \b
      cerebras-jais evaluate release --suite demo --output scores
      cerebras-jais evaluate release --suite card --data-root data-sets --output scores
      cerebras-jais evaluate release --tasks arabicmmlu,hellaswag --limit 100 --output trial

    No data set comes with this project; docs/evaluation.md has the command that fetches each. The results are files as
    lm_eval writes them.
    """
    from functools import partial

    import torch

    from cerebras_jais.chat.engine import tokenizer_of
    from cerebras_jais.endpoint.record import open_record
    from cerebras_jais.errors import UserError
    from cerebras_jais.evaluate.harness.lm import JaisLM, tokens_before
    from cerebras_jais.evaluate.harness.run import RECORD, load_tasks, model_digest, run
    from cerebras_jais.evaluate.suites import tasks_of

    names = _names(tasks_of(suite) if suite else (), tasks, reading is not None)
    if not names:
        raise UserError("give --suite, --tasks or --reading: there is nothing to evaluate on")
    folder = tokenizer_of(path, tokenizer)
    plan = load_tasks(names, data_root=data_root, reading=reading)
    open_model = partial(
        _open,
        path=path,
        tokenizer=tokenizer,
        config=config,
        weights=weights,
        device=device,
        allow_pickle=allow_pickle,
        threads=max(1, torch.get_num_threads() // processes),
        processes=processes,
    )
    engine = open_model(0)
    if chat_template:
        engine.check_chats()
    output.mkdir(parents=True, exist_ok=True)
    with open_record(output / RECORD) as record:
        lm = JaisLM(
            engine,
            record,
            model_digest(path, tokenizer=tokenizer, config=config),
            before=tokens_before(folder),
            chat=chat_template,
            progress=_with_time_left,
            processes=processes,
            open_forward=partial(_forward, open_model),
        )
        results = run(lm, plan, output, limit=limit)
    _show(results)


def _open(
    number: int,
    *,
    path: Path,
    tokenizer: Path | None,
    config: Path | None,
    weights: Weights,
    device: str,
    allow_pickle: bool,
    threads: int,
    processes: int,
) -> Engine:
    """The model of a process, by its number."""
    import torch

    from cerebras_jais.chat.engine import open_engine

    torch.set_num_threads(threads)
    if device == "cuda" and processes > 1:
        device = f"cuda:{number}"
    return open_engine(
        path, tokenizer=tokenizer, config=config, weights=weights, device=device, allow_pickle=allow_pickle
    )


def _forward(open_model: Callable[[int], Engine], number: int) -> Forward:
    return open_model(number).forward


def _names(suite: Iterable[str], tasks: str | None, reading: bool) -> list[str]:
    """The tasks asked for, each once; that of reading comprehension where it has a file."""
    given = [name.strip() for name in (tasks or "").split(",")]
    wanted = dict.fromkeys([*suite, *given, *(["reading"] if reading else [])])
    return [name for name in wanted if name and (name != "reading" or reading or name in given)]


def _with_time_left(items: Iterable[Any], done: int, total: int, what: str) -> Iterator[Any]:
    from tqdm import tqdm

    yield from tqdm(items, what, total, initial=done, disable=None, smoothing=0.05)


def _show(results: dict[str, Any]) -> None:
    """Print a line for each number: tasks and groups that were asked for, their metrics and standard errors."""
    click.echo(f"{'task':<36}{'questions':>10}  {'metric':<14}{'score':>8}{'error':>8}")
    rows = {**results["results"], **results.get("groups", {})}
    for name in results["config"]["tasks"]:
        for task in [name] if name in rows else [task for task in rows if task in results["n-samples"]]:
            row = rows[task]
            for key, value in row.items():
                metric, _, which = key.partition(",")
                if which and not metric.endswith("_stderr") and isinstance(value, float | int):
                    error = row.get(f"{metric}_stderr,{which}")
                    shown = f"{100 * error:>8.2f}" if isinstance(error, float) else f"{'':>8}"
                    click.echo(f"{task:<36}{row.get('sample_len', ''):>10}  {metric:<14}{100 * value:>8.2f}{shown}")
