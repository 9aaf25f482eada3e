"""What was measured beside what was published: differences, and where two numbers can be told apart.

A difference is judged only where the comparison is fair: the column's class is comparable, the whole data was asked
without a chat template and with the column's number of examples, and the card's number is no likely copy. Both numbers
have a standard error. Ours is lm_eval's. That of a published score p of n questions is at most that of n independent
answers right or wrong, p(1 - p) / (n - 1) as a variance, and rounding to a tenth adds 0.1² / 12. Two scores are told
apart where they differ by more than 1.96 times the root of the sum, as chance alone makes 1 in 20 differ.

The rule is careful: both models answer the same questions, so true differences have a smaller error. But it knows of
chance alone, and not of another release of the harness or another prompt, which can move a score by points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from cerebras_jais.catalog.types import Model
from cerebras_jais.evaluate.report.card import AVERAGE, CLASSES, LANGUAGES, Column, average, columns, copied_cells
from cerebras_jais.evaluate.report.results import HARNESS, Metric, ResultsError, Run, Task
from cerebras_jais.files import shown_path
from cerebras_jais.wording import counted

Z = 1.96
"""Standard errors of a normal distribution that 95% of it lie within."""
SAME, HIGHER, LOWER = "cannot be told apart", "higher", "lower"
VERDICTS = (SAME, HIGHER, LOWER)
NOT_MEASURED = "not measured"
_ROUNDING = 0.1**2 / 12  # the variance of rounding to a tenth of a percent
_FRACTIONS = ("acc", "acc_norm", "acc_bytes", "exact_match", "f1", "pct_stereotype")


@dataclass(frozen=True)
class Judged:
    """A score of ours beside a published one, in percent.

    Attributes:
        ours, error: None where nothing was measured, or lm_eval has no error.
        published: None where no model is compared with.
        joint: the standard error of the difference; None where it is not judged.
        verdict: one of VERDICTS, or why there is none; empty where no model is compared with.
    """

    ours: float | None
    error: float | None
    published: float | None
    joint: float | None
    verdict: str

    @property
    def difference(self) -> float | None:
        return None if self.ours is None or self.published is None else self.ours - self.published


@dataclass(frozen=True)
class Row:
    """A column of the card: what was measured, in which task, and what came of the comparison.

    `copied` names the model whose row of the card has the same number, where one of the two is likely a copy.
    """

    column: Column
    task: Task | None
    judged: Judged
    copied: str | None

    @property
    def is_fair(self) -> bool:
        """Whether the column counts in the average over columns that can be compared."""
        return self.judged.joint is not None


@dataclass(frozen=True)
class Average:
    """The mean of some columns on both sides; `whole` where they are all that the card's average is of."""

    names: tuple[str, ...]
    judged: Judged
    whole: bool


@dataclass(frozen=True)
class Other:
    """A metric of a task that is no column of the card; in percent where `percent`, else as lm_eval has it."""

    task: Task
    metric: str
    value: float
    error: float | None
    percent: bool


@dataclass(frozen=True)
class Comparison:
    """One model of ours beside a published one, by language, and what else was measured of it.

    `averages` is None for a language in which no column can be compared.
    """

    run: Run
    against: Model | None
    rows: dict[str, tuple[Row, ...]]
    averages: dict[str, Average | None]
    others: tuple[Other, ...]


def compare(run: Run, against: Model | None) -> Comparison:
    """Put a model of ours beside a published one.

    Raises:
        ResultsError: a score of a column that is no share of 1.
    """
    rows = {language: tuple(_row(column, run, against) for column in columns(language)) for language in LANGUAGES}
    averages = {language: _average(found, against, language) for language, found in rows.items()}
    shown = {row.task.name for found in rows.values() for row in found if row.task is not None}
    others = (task for name, task in run.tasks.items() if name not in shown | run.inner)
    return Comparison(run, against, rows, averages, tuple(other for task in others for other in _others(task)))


def joint_error(error: float, published: float, questions: int) -> float:
    """The standard error of the difference between a score and a published one, in percent (see above).

    Args:
        error: standard error of ours, in percent.
        published: in percent, rounded to a tenth.
        questions: how many the published score is of.
    """
    return sqrt(error**2 + published * (100 - published) / max(questions - 1, 1) + _ROUNDING)


def verdict(difference: float, joint: float) -> str:
    """One of VERDICTS for a difference and its standard error."""
    if abs(difference) <= Z * joint:
        return SAME
    return HIGHER if difference > 0 else LOWER


def _row(column: Column, run: Run, against: Model | None) -> Row:
    task = run.tasks.get(column.task or "")
    metric = None if task is None else task.metrics.get(column.metric or "")
    published = None if against is None else against.scores[column.language][column.name]
    copied = None if against is None else copied_cells(column.language).get(against.name, {}).get(column.name)
    if task is not None and metric is not None and not (0 <= metric.value <= 1 and 0 <= (metric.error or 0) <= 1):
        raise ResultsError(
            f"{shown_path(run.folder)}: {task.name} has {column.metric} {metric.value:g} ± {metric.error}, no share "
            f"between 0 and 1; this is not what lm_eval {HARNESS} writes, evaluate with that release"
        )
    ours = None if metric is None else 100 * metric.value
    error = None if metric is None or metric.error is None else 100 * metric.error
    problem = _unfair(column, task, metric) or (f"the card has it for {copied} too, a likely copy" if copied else None)
    joint = None
    if problem is None and task is not None and error is not None:
        joint = error if published is None else joint_error(error, published, task.total)
    if ours is None or problem is not None:
        said = NOT_MEASURED if metric is None and column.task else f"not judged: {problem}"
    else:
        said = "" if published is None or joint is None else verdict(ours - published, joint)
    return Row(column, task if metric is not None else None, Judged(ours, error, published, joint, said), copied)


def _unfair(column: Column, task: Task | None, metric: Metric | None) -> str | None:
    """Why a score of a column cannot be judged, in words; None where it can."""
    if column.kind != "comparable":
        return CLASSES[column.kind]
    if task is None or metric is None:
        return NOT_MEASURED
    if task.template is not None:
        return "asked with a chat template"
    if task.shots != column.shots:
        return "examples before the questions" if task.shots is None else counted(task.shots, "example") + " shown"
    if task.count < task.total:
        return f"{task.count:,} of {task.total:,} questions"
    if metric.error is None:
        return "no standard error"
    return None


def _average(rows: Sequence[Row], against: Model | None, language: str) -> Average | None:
    """The mean over the columns that can be compared; their errors are independent, as are the questions."""
    fair = [row for row in rows if row.is_fair]
    if not fair:
        return None
    names = tuple(row.column.name for row in fair)
    ours = average({row.column.name: row.judged.ours or 0.0 for row in fair})
    error, joint = (
        sqrt(sum(value**2 for value in values)) / len(fair)
        for values in ([row.judged.error or 0.0 for row in fair], [row.judged.joint or 0.0 for row in fair])
    )
    if against is None:
        return Average(names, Judged(ours, error, None, joint, ""), len(fair) == len(rows))
    published = average(against.scores[language], names)
    whole = len(fair) == len(rows)
    if whole:  # as the card has it, rounded
        published = against.scores[language][AVERAGE]
    return Average(names, Judged(ours, error, published, joint, verdict(ours - published, joint)), whole)


def _others(task: Task) -> list[Other]:
    found = []
    for name, metric in task.metrics.items():
        percent = name in _FRACTIONS and 0 <= metric.value <= 1
        scale = 100 if percent else 1
        error = None if metric.error is None else scale * metric.error
        found.append(Other(task, name, scale * metric.value, error, percent))
    return found
