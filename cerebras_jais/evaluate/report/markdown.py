"""The report as Markdown, padded so that a terminal shows its tables as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cerebras_jais.evaluate.report.card import AVERAGE, LANGUAGES, SOURCE
from cerebras_jais.evaluate.report.compare import Average, Comparison, Judged, Row
from cerebras_jais.evaluate.report.wording import (
    AVERAGES,
    RULE,
    average_name,
    column_name,
    conditions,
    difference,
    made,
    marks,
    other_score,
    score,
    settings,
    summary,
)


def markdown(comparisons: Sequence[Comparison]) -> str:
    """The report of one or several models, each beside the same published one."""
    against = comparisons[0].against
    lines = [f"# {title(comparisons)}", ""]
    for comparison in comparisons:
        lines += _run(comparison)
    if against is not None and any(row.task for c in comparisons for rows in c.rows.values() for row in rows):
        lines += ["## How it is judged", "", f"Published scores: {SOURCE}.", "", RULE, "", AVERAGES, ""]
    return "\n".join(lines)


def title(comparisons: Sequence[Comparison]) -> str:
    """`A and B against jais-family-13b`."""
    names = " and ".join(comparison.run.name for comparison in comparisons)
    against = comparisons[0].against
    return _plain(names if against is None else f"{names} against {against.name}")


def _run(comparison: Comparison) -> Iterator[str]:
    run, against = comparison.run, comparison.against
    yield f"## {_plain(run.name)}"
    yield ""
    yield _plain(summary(comparison))
    yield ""
    yield _plain("; ".join(f"{name}: {value}" for name, value in settings(run)) + ".")
    yield ""
    for note in run.notes:
        yield from (f"Note: {_plain(note)}.", "")
    for language, name in LANGUAGES.items():
        rows = comparison.rows[language]
        if not any(row.task for row in rows):
            continue
        heads = ["column", "ours, %"]
        if against is not None:
            heads += ["published", "difference", "verdict"]
        heads += ["class", "how ours was made"]
        cells = [_row(row, comparison) for row in rows]
        average = comparison.averages[language]
        cells += [[*line, "", ""] for line in _averages(average, comparison, language)]
        yield from (f"### {name}", "", *_table([heads, *cells]), "")
        for mark in marks(rows):
            yield from (mark, "")
    if comparison.others:
        made = [
            [f"{other.task.name}, {other.metric}", other_score(other), conditions(other.task, other.metric, run)]
            for other in comparison.others
        ]
        yield from ("### Not in the card", "", *_table([["task", "ours", "how ours was made"], *made]), "")


def _row(row: Row, comparison: Comparison) -> list[str]:
    cells = [column_name(row), *_judged(row.judged, comparison)]
    return [*cells, row.column.kind, made(row, comparison.run)]


def _judged(judged: Judged, comparison: Comparison) -> list[str]:
    ours = score(judged.ours, judged.error)
    if comparison.against is None:
        return [ours]
    return [ours, score(judged.published), difference(judged.difference), judged.verdict]


def _averages(average: Average | None, comparison: Comparison, language: str) -> Iterator[list[str]]:
    """The average over what can be compared, and the card's own where that is another."""
    against, rows = comparison.against, comparison.rows[language]
    if average is not None:
        yield [average_name(rows, average), *_judged(average.judged, comparison)]
    if against is not None and (average is None or not average.whole):
        published = Judged(None, None, against.scores[language][AVERAGE], None, "")
        yield [average_name(rows), *_judged(published, comparison)]


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    safe = [[_plain(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in safe) for column in range(len(safe[0]))]
    for number, row in enumerate(safe):
        yield f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        if number == 0:
            yield f"| {' | '.join('-' * width for width in widths)} |"


def _plain(text: str) -> str:
    """A text that Markdown and a terminal show as it is."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return "".join(f"\\{letter}" if letter in "\\`*[]<>|" else letter for letter in shown)
