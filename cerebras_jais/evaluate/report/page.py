"""The report as one HTML page: no script, nothing fetched, text of models and data shown as text alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import sqrt

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cerebras_jais.catalog.models import MODELS
from cerebras_jais.data.clean.languages import is_arabic_script
from cerebras_jais.evaluate.report import wording
from cerebras_jais.evaluate.report.card import (
    AVERAGE,
    CLASSES,
    LANGUAGES,
    SOURCE,
    average,
    card_rows,
    columns,
    copied_cells,
)
from cerebras_jais.evaluate.report.compare import Comparison, Row, Z
from cerebras_jais.evaluate.report.markdown import title
from cerebras_jais.evaluate.report.plot import Point, scatter
from cerebras_jais.evaluate.report.results import Run, Task
from cerebras_jais.evaluate.report.samples import Samples, pick_samples


@dataclass(frozen=True)
class _Figure:
    """A plot as SVG, and what it shows; no SVG where nothing was measured that can be compared."""

    language: str
    caption: str
    svg: str | None


@dataclass(frozen=True)
class _Shown:
    """Questions of a task and metric, with the name that the report has for it."""

    name: str
    task: Task
    samples: Samples


def page(comparisons: Sequence[Comparison], samples: int) -> str:
    """The page of one or several models, each beside the same published one.

    Args:
        samples: questions answered right, and as many answered wrong, shown of each task.

    Raises:
        ResultsError: samples that are not what lm_eval writes.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string((files(__package__) / "report.html").read_text(encoding="utf-8"))
    return template.render(
        title=title(comparisons),
        comparisons=comparisons,
        against=comparisons[0].against,
        figures=[_figure(comparisons, language) for language in LANGUAGES],
        shown={id(comparison): list(_samples(comparison, samples)) for comparison in comparisons},
        card=[(language, columns(language), list(card_rows(language))) for language in LANGUAGES],
        average=average,
        copied_cells=copied_cells,
        is_arabic=is_arabic_script,
        parts=_parts,
        wording=wording,
        AVERAGE=AVERAGE,
        CLASSES=CLASSES,
        LANGUAGES=LANGUAGES,
        SOURCE=SOURCE,
        id=id,
        Markup=Markup,
    )


def _samples(comparison: Comparison, number: int) -> Iterator[_Shown]:
    """The columns of the card that were measured, then the other tasks by their first metric, where they have any."""
    rows = [row for language in LANGUAGES for row in comparison.rows[language] if row.task is not None]
    wanted = [
        (f"{row.column.name} ({LANGUAGES[row.column.language]})", row.task, row.column.metric or "")
        for row in rows
        if row.task is not None
    ]
    others = {other.task.name: (other.task.name, other.task, other.metric) for other in reversed(comparison.others)}
    for name, task, metric in [*wanted, *reversed(others.values())]:
        found = pick_samples(task, metric, number)
        if found.right or found.wrong:
            yield _Shown(name, task, found)


def _parts(run: Run, row: Row) -> list[tuple[Task, float, float | None]]:
    """The tasks of a group with their scores and errors in percent."""
    metric = row.column.metric or ""
    tasks = [run.tasks[part] for part in (row.task.parts if row.task else ()) if part in run.tasks]
    found = [(task, task.metrics[metric]) for task in tasks if metric in task.metrics]
    return [(task, 100 * one.value, None if one.error is None else 100 * one.error) for task, one in found]


def _figure(comparisons: Sequence[Comparison], language: str) -> _Figure:
    """Scores against parameters, over the comparable columns that were measured of every model of ours."""
    measured = [
        {row.column.name: row for row in comparison.rows[language] if _is_plotted(row)} for comparison in comparisons
    ]
    names = [column.name for column in columns(language) if all(column.name in rows for rows in measured)]
    if not names:
        return _Figure(language, f"{LANGUAGES[language]}: no column that can be compared was measured.", None)
    points = []
    for model in MODELS:
        kind = ("adapted" if "adapted" in model.name else "family") + ("-chat" if model.is_chat else "")
        score = average(model.scores[language], names)
        points.append(Point(model.name, model.parameters, score, kind, ring=model is comparisons[0].against))
    for comparison, rows in zip(comparisons, measured, strict=True):
        score = average({name: rows[name].judged.ours or 0.0 for name in names})
        error = Z * sqrt(sum((rows[name].judged.error or 0.0) ** 2 for name in names)) / len(names)
        points.append(Point(comparison.run.name, comparison.run.parameters, score, "ours", error))
    what = names[0] if len(names) == 1 else f"mean of {', '.join(names)}"
    caption = f"{LANGUAGES[language]}: {what}"
    return _Figure(language, caption, scatter(points, f"Scores against parameters, {caption}"))


def _is_plotted(row: Row) -> bool:
    return row.column.kind == "comparable" and row.judged.ours is not None
