"""Scores against parameters as SVG: the published models, and ours among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 400, 310
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 22, 44
_LETTER, _LINE = 7.0, 14  # width of a letter of a label, on average, and its height
_FARTHER = 40.0  # square units of marks that a label may hide rather than stand at the next place
_Box = tuple[float, float, float, float]  # left, top, right, bottom
_Scale = Callable[[float], float]
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


@dataclass(frozen=True)
class Point:
    """A model in a plot.

    Attributes:
        parameters: None where they are not known; then the score is a line across.
        score: in percent; `error` is half of its 95% interval, 0 for a published score.
        kind: the class of its mark: family, family-chat, adapted, adapted-chat or ours. The names of ours are shown,
            the others where the pointer rests.
        ring: whether a ring is drawn around the mark.
    """

    name: str
    parameters: int | None
    score: float
    kind: str
    error: float = 0.0
    ring: bool = False


def scatter(points: Sequence[Point], title: str) -> str:
    """An SVG element, whose colours are those of the page's style sheet (classes of `Point.kind`)."""
    known = [point.parameters for point in points if point.parameters]
    x_low, x_high = math.log10(min(known) / 1.5), math.log10(max(known) * 1.5)
    low, high = (edge(point.score + sign * point.error for point in points) for edge, sign in ((min, -1), (max, 1)))
    step = next((step for step in _STEPS if (high - low) / step <= 6), _STEPS[-1])
    y_low, y_high = step * math.floor(low / step - 0.5), step * math.ceil(high / step + 0.5)

    def x(parameters: float) -> float:
        return _LEFT + (math.log10(parameters) - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y(score: float) -> float:
        return _HEIGHT - _BOTTOM - (score - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">']
    for number in range(round((y_high - y_low) / step) + 1):
        value = y_low + number * step
        parts.append(_line("grid", _LEFT, y(value), _WIDTH - _RIGHT, y(value)))
        parts.append(_text("tick", _LEFT - 6, y(value) + 4, f"{value:g}", "end"))
    for value in _ticks(x_low, x_high):
        parts.append(_line("grid", x(value), _HEIGHT - _BOTTOM, x(value), _HEIGHT - _BOTTOM + 5))
        parts.append(_text("tick", x(value), _HEIGHT - _BOTTOM + 18, _size(value), "middle"))
    parts.append(_text("axis", (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, "parameters", "middle"))
    parts.append(_text("axis", 4, 13, "score, %", "start"))
    for kind in dict.fromkeys(point.kind for point in points if point.kind != "ours"):
        path = sorted((point.parameters, point.score) for point in points if point.kind == kind and point.parameters)
        parts.append(f'<polyline class="{kind}" points="{" ".join(f"{x(p):.1f},{y(s):.1f}" for p, s in path)}"/>')
    ordered = sorted(points, key=lambda point: point.kind == "ours")  # ours on top
    marks = [_Mark(point, x, y) for point in ordered]
    parts += [mark.drawn() for mark in marks]
    labels: list[_Box] = []
    for mark in (mark for mark in marks if mark.point.kind == "ours"):
        middle, base, box = mark.label([mark.box() for mark in marks], labels)
        labels.append(box)
        parts.append(_text("label", middle, base, mark.shown, "middle"))
    return "".join([*parts, "</svg>"])


class _Mark:
    """A point at its place in the plot."""

    def __init__(self, point: Point, x: _Scale, y: _Scale) -> None:
        self.point = point
        self.across = (_LEFT + _WIDTH - _RIGHT) / 2 if point.parameters is None else x(point.parameters)
        self.at, self.top, self.bottom = y(point.score), y(point.score + point.error), y(point.score - point.error)
        self.shown = point.name if len(point.name) <= 24 else f"{point.name[:23]}…"

    def drawn(self) -> str:
        """The mark with its error as a bar, and its name for the pointer."""
        point, across, at = self.point, self.across, self.at
        described = f"{point.name}: {point.score:.1f}" + (f" ± {point.error:.1f}" if point.error else "")
        parts = [f'<g class="{point.kind}"><title>{escape(described)}</title>']
        if point.parameters is None:
            parts.append(_line("across", _LEFT, at, _WIDTH - _RIGHT, at))
        if point.error:
            parts.append(_line("error", across, self.top, across, self.bottom))
        if point.kind == "ours":
            parts.append(f'<path d="M{across:.1f} {at - 6:.1f}l6 6l-6 6l-6-6z"/>')
        elif point.kind.startswith("adapted"):
            parts.append(f'<rect x="{across - 3.5:.1f}" y="{at - 3.5:.1f}" width="7" height="7"/>')
        else:
            parts.append(f'<circle cx="{across:.1f}" cy="{at:.1f}" r="4"/>')
        if point.ring:
            parts.append(f'<circle class="ring" cx="{across:.1f}" cy="{at:.1f}" r="8.5"/>')
        return "".join([*parts, "</g>"])

    def box(self) -> _Box:
        return self.across - 6, min(self.top, self.at - 6), self.across + 6, max(self.bottom, self.at + 6)

    def label(self, marks: Sequence[_Box], labels: Sequence[_Box]) -> tuple[float, float, _Box]:
        """Where the label hides no other label if it can be, and little of marks: its middle, base line and box."""
        left, top, right, bottom = self.box()
        half = len(self.shown) * _LETTER / 2
        places = [  # the nearest first
            (self.across, base)
            for step in (0, 1, 2, 3)
            for base in (top - 5 - step * _LINE, bottom + _LINE + step * _LINE)
        ]
        places[2:2] = [(right + 4 + half, self.at + 4), (left - 4 - half, self.at + 4)]
        found = []
        for across, base in places:
            middle = min(max(across, _LEFT + half), _WIDTH - half)
            box = (middle - half, base - _LINE + 3, middle + half, base + 3)
            if box[1] >= _TOP - _LINE and box[3] <= _HEIGHT - _BOTTOM:
                found.append((middle, base, box))
        if not found:
            return self.across, top - 5, self.box()
        hidden = [
            sum(_overlap(box, mark) for mark in marks) + 100 * sum(_overlap(box, label) for label in labels)
            for _, _, box in found
        ]
        return min(zip(hidden, range(len(found)), found, strict=True), key=lambda it: it[0] + _FARTHER * it[1])[2]


def _overlap(one: _Box, other: _Box) -> float:
    """The area that two boxes share."""
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers of parameters between two powers of ten: 1, 2 and 5 of each, or whole powers of a long range."""
    steps = (1, 2, 5) if high - low < 3 else (1,)
    values = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    return [value for value in values if low <= math.log10(value) <= high]


def _size(value: float) -> str:
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
