"""The card's two figures of judgements: win rates and ratings, one panel for each language."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.judge.judgements import Judgement
from cerebras_jais.evaluate.judge.report import Comparison, Ratings, compare, rate
from cerebras_jais.evaluate.judge.statistics import LEVEL
from cerebras_jais.evaluate.judge.verdicts import RATINGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg")
_LANGUAGES = {"ar": "Arabic", "en": "English"}
_COLOURS = ("#2a6f97", "#c9ccd1", "#c8553d")  # won, neither, lost


def plot(folders: Sequence[Sequence[Judgement]], output: Path) -> bytes:
    """A chart of the judgements of each folder, all comparisons or all ratings; its format is by the output's ending.

    Raises UserError for another ending, and for comparisons and ratings in one chart.
    """
    ending = output.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise UserError(f"{output}: must end in .png or .svg")
    if len({judgements[0].kind for judgements in folders}) > 1:
        raise UserError("comparisons and ratings do not share a chart; give folders of one kind")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pairwise = folders[0][0].kind == "pairwise"
    reports: list[Any] = [compare(judgements) if pairwise else rate(judgements) for judgements in folders]
    panels = sorted({(report.language, report.questions) for report in reports})
    rows = {panel: [r for r in reports if (r.language, r.questions) == panel] for panel in panels}
    most = max(map(len, rows.values()))
    height = 1.6 + 0.5 * most
    with matplotlib.rc_context({"svg.hashsalt": "cerebras_jais", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7 * len(panels), height), layout="constrained")
        FigureCanvasAgg(figure)
        for number, panel in enumerate(panels, 1):
            axes = figure.add_subplot(1, len(panels), number)
            (_draw_rates if pairwise else _draw_ratings)(axes, rows[panel])
            judges = ", ".join(dict.fromkeys(report.judge for report in rows[panel]))
            axes.set_title(f"{_LANGUAGES.get(panel[0], panel[0])} ({panel[1]}), judged by {judges}")
            axes.set_ylim(most - 0.5, -0.5)
        content = io.BytesIO()
        figure.savefig(
            content, format=ending, dpi=130, metadata={"Software": None} if ending == "png" else {"Date": None}
        )
    return content.getvalue()


def _draw_rates(axes: Axes, reports: Sequence[Comparison]) -> None:
    """Won, neither and lost as one bar for each pair, with the adjusted win rate and its interval."""
    places = range(len(reports))
    shares = [(100 * r.win_rate, 100 * (1 - r.win_rate - r.loss_rate), 100 * r.loss_rate) for r in reports]
    left = [0.0] * len(reports)
    for part, (label, colour) in enumerate(zip(("won", "neither", "lost"), _COLOURS, strict=True)):
        width = [share[part] for share in shares]
        axes.barh(places, width, left=left, color=colour, label=label)
        left = [before + more for before, more in zip(left, width, strict=True)]
    _mark(axes, [(100 * r.adjusted, 100 * r.interval[0], 100 * r.interval[1]) for r in reports])
    axes.axvline(50, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(places, [f"{r.sides[0].model} against {r.sides[1].model}" for r in reports])
    axes.set(xlim=(0, 100), xlabel=f"questions, %; point: wins, the undecided halved, with {LEVEL:.0%} interval")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.08), ncols=3, frameon=False)


def _draw_ratings(axes: Axes, reports: Sequence[Ratings]) -> None:
    """The mean rating of each model with its interval."""
    places = range(len(reports))
    low = RATINGS.low  # where no rating is readable
    axes.barh(places, [(r.mean or low) - low for r in reports], left=low, color=_COLOURS[0], alpha=0.6)
    _mark(axes, [(r.mean or low, *(r.interval or (low, low))) for r in reports])
    axes.set_yticks(places, [r.side.model for r in reports])
    axes.set(
        xlim=(low, RATINGS.high), xlabel=f"mean rating, {RATINGS.low:g} to {RATINGS.high:g}, with {LEVEL:.0%} interval"
    )


def _mark(axes: Axes, points: Sequence[tuple[float, float, float]]) -> None:
    values = [value for value, _, _ in points]
    errors = [
        [max(0.0, value - low) for value, low, _ in points],
        [max(0.0, high - value) for value, _, high in points],
    ]
    axes.errorbar(values, range(len(points)), xerr=errors, fmt="o", color="black", markersize=4, capsize=3)
