"""`cerebras-jais data build` and `data rewrite`: what a YAML describes, with progress by stages."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cerebras_jais.commandline import Number
from cerebras_jais.ranges import COUNT
from cerebras_jais.wording import counted

if TYPE_CHECKING:
    from cerebras_jais.data.recipe.workers import Stage


@click.command()
@click.argument("settings", type=click.Path(path_type=Path), metavar="FILE.yaml")
@click.option("--workers", type=Number(COUNT), help="Processes, or tasks at a time, instead of the YAML's.")
@click.option("--output", type=click.Path(), metavar="DIR", help="Folder of the run, instead of the YAML's.")
@click.option("--dry-run", is_flag=True, help="Read the YAML and list the inputs; write nothing.")
def build(settings: Path, workers: int | None, output: str | None, dry_run: bool) -> None:
    """Make packed pretraining data from the sources of a YAML: cleaned, without duplicates, mixed by tokens.

    Writes OUTPUT/PHASE for each phase of the YAML, to be named as data_dir in the trainer YAML; OUTPUT/report.json and
    OUTPUT/dropped say what became of the documents. configs/data has examples, docs/data.md has every key.

    The same command goes on with a run that was ended, on this machine, Slurm or Ray. The same files and settings give
    the same bytes, whoever does the work. Needs the extra `pipeline`.
    """
    from cerebras_jais.data.recipe.workers import Workers

    with Workers() as processes:
        if not dry_run and workers != 1:
            processes.start()
        from cerebras_jais.data.recipe.settings import read_settings

        changes = {"workers": workers, "output": output}
        given = {key: value for key, value in changes.items() if value is not None}
        run = read_settings(settings).model_copy(update=given)
        from cerebras_jais.data.recipe.runner import build as build_data
        from cerebras_jais.data.recipe.runner import input_lines
        from cerebras_jais.data.recipe.summary import report_lines

        if dry_run:
            for line in input_lines(run):
                click.echo(line)
            return
        found = build_data(run, StageProgress(), print_note, processes)
    if isinstance(found, list):
        click.echo(f"submitted to Slurm: jobs {', '.join(found)}")
        click.echo("once they have ended the same command prints the report, or submits again what failed")
        return
    for line in report_lines(found):
        click.echo(line)


@click.command()
@click.argument("settings", type=click.Path(path_type=Path), metavar="FILE.yaml")
@click.option("--yes", is_flag=True, help="Ask the endpoint; without it the estimate alone is printed.")
def rewrite(settings: Path, yes: bool) -> None:
    """Have a model rewrite each document of a source, such as translate it; the answers are a new source.

    Prints first how many documents and tokens that takes. With --yes each document goes through the OpenAI-style
    endpoint of the YAML. Its `output` is then a .jsonl file for `data build`, with text, language and provenance
    (model, hash of the prompt, place in the source). docs/data.md has every key.

    Answers are kept in OUTPUT.asked as they come, so the same command goes on with a run that was ended, and asks
    nothing twice. Needs the extra `pipeline`.
    """
    from cerebras_jais.data.synthetic.rewrite import estimate
    from cerebras_jais.data.synthetic.rewrite import rewrite as rewrite_source
    from cerebras_jais.data.synthetic.settings import read_rewriting

    run = read_rewriting(settings)
    endpoint = run.endpoint.endpoint() if yes else None  # a key that is not set is said before text is tokenised
    found = estimate(run, print_note)
    click.echo(
        f"{counted(found.documents, 'document')}, {found.left} to ask: about {found.question_tokens} tokens of "
        f"questions, {found.answer_tokens} of answers (assumed: {run.answer_tokens:g} for each of a document)"
    )
    if endpoint is None:
        click.echo("nothing was asked; give --yes to ask")
        return
    progress = StageProgress()
    progress.say("rewrite", 0, found.left, "document")
    outcome = rewrite_source(run, endpoint, lambda done: progress.say("rewrite", done, found.left, "document"))
    click.echo(f"{run.output}: {counted(outcome.written, 'document')}")
    for reason, count in sorted(outcome.left_out.items()):
        click.echo(f"  left out: {count}, {reason}")


class StageProgress:
    """Says on standard error how far a stage is and how long it will take at this rate, in stages that take a while."""

    EVERY = 10.0  # seconds

    def __init__(self) -> None:
        self._stage, self._began, self._first, self._said = "", 0.0, 0, 0.0

    def __call__(self, stage: Stage, done: int) -> None:
        self.say(stage.name, done, stage.tasks, "task")

    def say(self, stage: str, done: int, total: int, noun: str) -> None:
        """Say that so many of the things that a stage consists of are done, where it is time to."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._first, self._said = stage, now, done, now
        over = done == total
        if now - (self._began if over else self._said) < self.EVERY:
            return
        self._said = now
        seconds = (now - self._began) / max(1, done - self._first) * (total - done)
        left = f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"
        click.echo(f"{stage}: {done} of {counted(total, noun)}{'' if over else left}", err=True)


def print_note(note: str | None) -> None:
    if note is not None:
        click.echo(f"note: {note}", err=True)
