"""Plots of the suite, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, LINE, LEFT = 640, 18, 300


def goals_plot(lines: Sequence[dict[str, Any]]) -> str:
    """How far each goal is reached: a bar to the line is the goal, met or not.

    Args:
        lines: as `benchmarks.suite.check_goals` gives them.
    """
    drawn = [line for line in lines if line["value"] is not None]
    height = LINE * (len(drawn) + 2)
    goal_x = LEFT + (WIDTH - LEFT) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="11">',
        f'<line x1="{goal_x}" y1="4" x2="{goal_x}" y2="{height - LINE}" stroke="#888" stroke-dasharray="3 3"/>',
        f'<text x="{goal_x}" y="{height - 4}" text-anchor="middle">goal</text>',
    ]
    for number, line in enumerate(drawn):
        y = LINE * number + 4
        width = min(2.0, _reached(line)) * (goal_x - LEFT)
        colour = "#2a7" if line["state"] == "met" else "#c63"
        text = line["text"] if len(line["text"]) <= 44 else line["text"][:43] + "…"
        parts += [
            f'<text x="4" y="{y + 11}">{escape(line["row"])} {escape(text)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{LINE - 5}" fill="{colour}"/>',
            f'<text x="{LEFT + width + 4:.1f}" y="{y + 11}">{line["value"]:.3g}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _reached(line: dict[str, Any]) -> float:
    """The value over the bound; of a limit the bound over the value; 1 is the goal."""
    is_limit, bound = line["goal"].startswith("≤"), float(line["goal"].split()[1])
    value = float(line["value"])
    if is_limit:
        return 2.0 if value <= 0 else bound / value
    return value / bound if bound else 0.0
