"""The report as Markdown, padded so that a terminal shows its tables as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cerebras_jais.evaluate.report.card import AVERAGE, LANGUAGES, SOURCE
from cerebras_jais.evaluate.report.compare import Average, Comparison, Row
from cerebras_jais.evaluate.report.wording import (
    AVERAGES,
    NOTHING,
    RULE,
    average_name,
    column_name,
    conditions,
    difference,
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
    if against is not None:
        lines += [f"Published scores: {SOURCE}.", "", RULE, "", AVERAGES, ""]
    for comparison in comparisons:
        lines += _run(comparison)
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
        heads = ["column", "class", "ours, %"]
        if against is not None:
            heads += ["published", "difference", "verdict"]
        cells = [[*_row(row, against is not None), _made(row, comparison)] for row in rows]
        average = comparison.averages[language]
        cells += [[*line, ""] for line in _averages(average, comparison, language)]
        yield from (f"### {name}", "", *_table([[*heads, "how ours was made"], *cells]), "")
        for mark in marks(rows):
            yield from (mark, "")
    if comparison.others:
        made = [
            [_plain(other.task.name), other_score(other), conditions(other.task, other.metric, run)]
            for other in comparison.others
        ]
        yield from ("### Not in the card", "", *_table([["task", "ours", "how ours was made"], *made]), "")


def _row(row: Row, compared: bool) -> list[str]:
    judged = row.judged
    cells = [column_name(row), row.column.kind, score(judged.ours, judged.error)]
    if compared:
        cells += [score(judged.published), difference(judged.difference), judged.verdict]
    return cells


def _averages(average: Average | None, comparison: Comparison, language: str) -> Iterator[list[str]]:
    """The average over what can be compared, and the card's own where that is another."""
    against = comparison.against
    if average is not None:
        judged = average.judged
        cells = [average_name(average), "", score(judged.ours, judged.error)]
        if against is not None:
            cells += [score(judged.published), difference(judged.difference), judged.verdict]
        yield cells
    if against is not None and (average is None or not average.whole):
        count = len(comparison.rows[language])
        published = score(against.scores[language][AVERAGE])
        yield [f"{AVERAGE} of all {count} columns, as in the card", "", NOTHING, published, NOTHING, ""]


def _made(row: Row, comparison: Comparison) -> str:
    return "" if row.task is None else conditions(row.task, row.column.metric or "", comparison.run)


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
