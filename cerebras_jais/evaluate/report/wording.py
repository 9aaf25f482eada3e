"""The words and numbers that both forms of the report show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from cerebras_jais.evaluate.report.card import AVERAGE, LANGUAGES
from cerebras_jais.evaluate.report.compare import HIGHER, LOWER, SAME, VERDICTS, Average, Comparison, Other, Row
from cerebras_jais.evaluate.report.results import Run, Task

RULE = (
    "A verdict is given where the whole data of a comparable column was asked, without a chat template, with the "
    "card's number of examples. Two scores are told apart where they differ by more than 1.96 standard errors of the "
    "difference. Both errors count: lm_eval's of ours, and that of the published score, which is of as many questions "
    "and rounded to a tenth. Of 20 true equals about 1 is told apart by chance. The card names neither its prompts nor "
    "its release of the harness; these can move a score by more than chance."
)
AVERAGES = (
    "The card's average is the plain mean of all its columns of a language. Where not all of them can be compared, "
    "both sides are averaged over those that can."
)
NOTHING = "–"


def score(value: float | None, error: float | None = None) -> str:
    """`31.2 ± 0.4`, or a dash for nothing."""
    if value is None:
        return NOTHING
    return f"{value:.1f}" + ("" if error is None else f" ± {error:.1f}")


def difference(value: float | None) -> str:
    """With its sign, which is a true minus."""
    return NOTHING if value is None else f"{round(value, 1) + 0.0:+.1f}".replace("-", "−")


def other_score(other: Other) -> str:
    """A score of a task that is no column: in percent, or as lm_eval has it."""
    if other.percent:
        return f"{score(other.value, other.error)} %"
    return f"{other.value:.4g}" + ("" if other.error is None else f" ± {other.error:.2g}")


def conditions(task: Task, metric: str, run: Run) -> str:
    """How a number was made: task, version, metric, examples, questions, template, precision, digest."""
    asked = f"{task.count:,} questions" if task.count == task.total else f"{task.count:,} of {task.total:,} questions"
    shots = "examples differ" if task.shots is None else f"{task.shots}-shot"
    template = f"chat template {task.template[:8]}" if task.template else "no chat template"
    precision = run.precision or "precision not recorded"
    digest = f"prompts {task.digest[:12]}" if task.digest else "prompts not kept"
    return f"{task.name} v{task.version}, {metric}, {shots}, {asked}, {template}, {precision}, {digest}"


def settings(run: Run) -> Iterator[tuple[str, str]]:
    """What holds for all numbers of a run: name and value."""
    tasks = list(run.tasks.values())
    yield "results", str(run.folder)
    yield "parameters", "not recorded" if run.parameters is None else f"{run.parameters:,}"
    yield "precision", run.precision or "not recorded"
    yield "lm_eval", ", ".join(sorted({task.harness for task in tasks}))
    dates = sorted({datetime.fromtimestamp(task.date, UTC).date().isoformat() for task in tasks})
    yield "evaluated", dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"


def column_name(row: Row) -> str:
    """A column, marked where the card's number is likely a copy."""
    return f"{row.column.name}{' †' if row.copied else ''}"


def made(row: Row, run: Run) -> str:
    """How the number of a column was made, and what is to know of the column; empty where there is none."""
    if row.task is None:
        return ""
    return "; ".join(filter(None, (conditions(row.task, row.column.metric or "", run), row.column.note)))


def average_name(rows: Sequence[Row], average: Average | None = None) -> str:
    """What an average of a language's columns is of; by default, of all."""
    if average is None or average.whole:
        return f"{AVERAGE} of all {len(rows)} columns, as in the card"
    return f"{AVERAGE} of what can be compared, {len(average.names)} of {len(rows)} columns"


def summary(comparison: Comparison) -> str:
    """What came of it, in a sentence or two."""
    rows = [row for language in LANGUAGES for row in comparison.rows[language]]
    measured = [row for row in rows if row.task is not None]
    if not measured:
        return f"None of the card's {len(rows)} columns was measured."
    if comparison.against is None:
        return f"{len(measured)} of the card's {len(rows)} columns were measured."
    judged = Counter(row.judged.verdict for row in measured if row.judged.verdict in VERDICTS)
    if not judged:
        return (
            f"{len(measured)} of the card's {len(rows)} columns were measured, and none of them can be compared with "
            f"the published score of {comparison.against.name}."
        )
    words = {
        SAME: f"{judged[SAME]} cannot be told apart from the published score",
        HIGHER: f"{judged[HIGHER]} higher",
        LOWER: f"{judged[LOWER]} lower",
    }
    return (
        f"{len(measured)} of the card's {len(rows)} columns were measured, and {sum(judged.values())} can be compared "
        f"with {comparison.against.name}: {', '.join(words[said] for said in VERDICTS if judged[said])}."
    )


def marks(rows: Sequence[Row]) -> list[str]:
    """What a dagger in a table means."""
    copied = sorted({row.copied for row in rows if row.copied})
    return [
        f"† The card has the same numbers in neighbouring columns of {name}, a model of another size; one row is "
        "likely a copy."
        for name in copied
    ]
