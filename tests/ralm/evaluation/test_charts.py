from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from ralm.evaluation.charts import Axis, Line, bar_chart, line_chart, nice_ticks, percent_axis, value_axis

SPACE = "{http://www.w3.org/2000/svg}"


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 0.05, [0, 0.01, 0.02, 0.03, 0.04, 0.05]),
        (1, 60, [0, 20, 40, 60]),
        (0, 0, [0]),
        (-0.3, 0.3, [-0.4, -0.2, 0, 0.2, 0.4]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_lines_run_from_edge_to_edge() -> None:
    axis = Axis(1, 50, [(1, "1"), (50, "50")], "k", is_logarithmic=True)
    drawing = parse(line_chart([Line("a", "after", [1, 50], [0.0, 1.0])], axis, percent_axis("recall"), "words"))
    path = next(item for item in drawing.iter(f"{SPACE}path") if "line" in item.attrib["class"])
    assert re.fullmatch(r"M68\.0 252\.0L542\.0 16\.0", path.attrib["d"])
    assert len(list(drawing.iter(f"{SPACE}circle"))) == 2
    assert drawing.attrib["aria-label"] == "words"


def test_bars_carry_their_values() -> None:
    bars = [("before", "before", [0.1, 0.2]), ("after", "after", [0.5, 0.0])]
    drawing = parse(bar_chart(["Exact match", "F1"], bars, percent_axis("", 0.5), "words"))
    values = [item.text for item in drawing.iter(f"{SPACE}text") if item.attrib["class"] == "value"]
    assert values == ["10.0", "50.0", "20.0", "0.0"]
    heights = [float(item.attrib["height"]) for item in drawing.iter(f"{SPACE}rect")]
    assert heights == pytest.approx([47.2, 236, 94.4, 0.5], abs=0.1)


def test_flat_and_single_values_can_be_drawn() -> None:
    axis = Axis(1, 1, [(1, "1")], "step")
    line = Line("a", "raw", [1], [0.0], has_dots=True)
    drawing = parse(line_chart([line], axis, value_axis([0.0], "loss"), "words"))
    places = [float(dot.attrib[name]) for dot in drawing.iter(f"{SPACE}circle") for name in ("cx", "cy")]
    assert len(places) == 2
    assert all(math.isfinite(place) for place in places)


def test_words_are_escaped() -> None:
    axis = Axis(0, 1, [(0, "<0>")], "a & b")
    assert "<0>" not in line_chart([], axis, axis, '"quoted" <words>')
