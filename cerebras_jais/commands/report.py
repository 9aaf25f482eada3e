"""The verb `report`."""

from __future__ import annotations

from pathlib import Path

import click

from cerebras_jais.commandline import Number
from cerebras_jais.ranges import COUNT_OR_NONE

_FORMATS = {".html": "html", ".htm": "html"}


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--against", metavar="MODEL", help="Published model to compare with, such as jais-family-13b.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["md", "html"]),
    help="Markdown or one HTML page. Default: html for an --output named .html, else md.",
)
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write to a file, and print nothing.")
@click.option(
    "--samples",
    type=Number(COUNT_OR_NONE),
    default=3,
    show_default=True,
    help="Questions answered right, and as many wrong, that the HTML page shows of each task.",
)
def report(folders: tuple[Path, ...], against: str | None, form: str | None, output: Path | None, samples: int) -> None:
    """Put results of `evaluate` or lm_eval beside the scores that the model card publishes.

    \b
      cerebras-jais report scores --against jais-family-13b
      cerebras-jais report scores --against jais-family-13b --output report.html

    Each DIR has the results of one model; of several, the page shows one after the other, and all in the plots. A
    verdict is given where a comparison is fair. docs/report.md has the rule.
    """
    from cerebras_jais.atomic import write_text
    from cerebras_jais.evaluate.report.card import published_model
    from cerebras_jais.evaluate.report.compare import compare
    from cerebras_jais.evaluate.report.markdown import markdown
    from cerebras_jais.evaluate.report.page import page
    from cerebras_jais.evaluate.report.results import read_run, with_own_names

    model = None if against is None else published_model(against)
    runs = with_own_names([read_run(folder) for folder in folders])
    comparisons = [compare(run, model) for run in runs]
    if form is None:
        form = "md" if output is None else _FORMATS.get(output.suffix.lower(), "md")
    text = page(comparisons, samples) if form == "html" else markdown(comparisons)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_text(output, text)
