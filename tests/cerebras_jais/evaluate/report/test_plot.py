"""Plots.

Contract: an SVG that is well formed whatever the names are, with a mark for each model at its place, the labels within
the plot and, where there is room, not on one another.
"""

import math
import xml.etree.ElementTree as ET

import pytest

from cerebras_jais.evaluate.report.plot import Point, scatter

PUBLISHED = [
    Point("small", 590_000_000, 30.0, "family"),
    Point("large", 30_000_000_000, 45.0, "family", ring=True),
    Point("adapted", 7_000_000_000, 40.0, "adapted-chat"),
]


def drawn(points, title="A title"):
    return ET.fromstring(scatter(points, title))


def marks(svg):
    """Name and place of each model's mark."""
    found = {}
    for group in svg.iter("g"):
        name = group.findtext("title")
        for mark in group:
            if mark.tag == "circle" and mark.get("class") != "ring":
                found[name] = (float(mark.get("cx")), float(mark.get("cy")))
            elif mark.tag == "rect":
                found[name] = (float(mark.get("x")) + 3.5, float(mark.get("y")) + 3.5)
            elif mark.tag == "path":
                x, y = mark.get("d").partition("l")[0][1:].split()
                found[name] = (float(x), float(y) + 6)
    return found


def test_places_are_by_the_logarithm_of_the_size_and_by_the_score():
    ours = Point("ours", 4_204_000_000, 37.5, "ours", 2.0)
    found = marks(drawn([*PUBLISHED, ours]))
    assert set(found) == {"small: 30.0", "large: 45.0", "adapted: 40.0", "ours: 37.5 ± 2.0"}
    (x1, y1), (x2, y2) = found["small: 30.0"], found["large: 45.0"]
    x, y = found["ours: 37.5 ± 2.0"]
    assert (x - x1) / (x2 - x1) == pytest.approx(math.log(4.204 / 0.59) / math.log(30 / 0.59), abs=0.002)
    assert (y - y1) / (y2 - y1) == pytest.approx(0.5, abs=0.002)


def test_a_model_of_unknown_size_is_a_line_across():
    svg = drawn([*PUBLISHED, Point("ours", None, 38.0, "ours", 1.0)])
    (line,) = [line for line in svg.iter("line") if line.get("class") == "across"]
    assert line.get("y1") == line.get("y2")


def test_a_name_is_text_whatever_is_in_it():
    name = '<script>"&نموذج'
    svg = drawn([*PUBLISHED, Point(name, 10**9, 38.0, "ours", 1.0)], '"a" <b>')
    assert name in [text.text for text in svg.iter("text")]
    assert svg.get("aria-label") == '"a" <b>'


def test_labels_stand_within_the_plot_and_not_on_one_another():
    ours = [Point(f"ours-number-{n}", 590_000_000 + n, 30.0 + n, "ours", 1.0) for n in range(3)]
    svg = drawn([*PUBLISHED, *ours, Point("t", 10**6, 29.0, "ours", 1.0)])
    labels = [text for text in svg.iter("text") if text.get("class") == "label"]
    assert len(labels) == 4
    width = float(svg.get("viewBox").split()[2])
    boxes = []
    for label in labels:
        middle, half = float(label.get("x")), len(label.text) * 7 / 2
        assert middle - half >= 0 and middle + half <= width + 0.1
        boxes.append((middle - half, float(label.get("y")), middle + half))
    for number, one in enumerate(boxes):
        for other in boxes[:number]:
            assert abs(one[1] - other[1]) >= 13.9 or one[2] <= other[0] + 0.1 or other[2] <= one[0] + 0.1


def test_the_model_that_is_compared_with_has_a_ring():
    rings = [group.findtext("title") for group in drawn(PUBLISHED).iter("g") for mark in group if mark.get("class")]
    assert rings == ["large: 45.0"]


def test_one_score_alone_has_a_scale():
    assert marks(drawn([Point("one", 10**9, 50.0, "ours")]))
