"""Plots of the suite, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ralm.evaluation import charts
from ralm.evaluation.charts import Axis, Line, line_chart, nice_ticks

WIDTH, LINE, LEFT = 640, 18, 300
STYLE = (
    "svg{font:11px sans-serif}.line{fill:none;stroke-width:1.5}.grid{stroke:#ddd}.axis{stroke:#888}"
    ".tick,.label{fill:#444}"
)


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


def curves_plot(points: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """Curves, each named at its end.

    Args:
        points: x and y of each curve, x ascending; all begin and end at about the same x.
        x_label: what x is.
        y_label: what y is.
    """
    values = {name: [y for _, y in found] for name, found in points.items()}
    x_ticks = max(([x for x, _ in found] for found in points.values()), key=max)
    ticks = nice_ticks(0.0, max(max(found) for found in values.values()))
    x_axis = Axis(0.0, 1.45 * x_ticks[-1], [(number, f"{number:,}") for number in x_ticks], x_label)
    y_axis = Axis(ticks[0], ticks[-1], [(tick, f"{tick:g}") for tick in ticks], y_label)
    lines = [
        Line(name, f"of-{number}", [x for x, _ in found], [y for _, y in found], has_dots=False)
        for number, (name, found) in enumerate(points.items())
    ]
    drawing = line_chart(lines, x_axis, y_axis, f"{y_label} against {x_label}")
    names, last_y = [], float("inf")
    for number, (name, found) in sorted(enumerate(values.items()), key=lambda item: item[1][1][-1]):
        last_y = min(last_y - 12, y_axis.place(found[-1], charts.HEIGHT - charts.BOTTOM, charts.TOP) + 4)
        x = x_axis.place(x_ticks[-1], charts.LEFT, charts.WIDTH - charts.RIGHT) + 6
        names.append(f'<text class="of-{number}" x="{x:.1f}" y="{last_y:.1f}">{escape(name)}</text>')
    style = STYLE + "".join(
        f"path.of-{number}{{stroke:{colour}}}text.of-{number}{{fill:{colour}}}"
        for number, colour in enumerate(f"hsl({360 * place // len(values)},70%,40%)" for place in range(len(values)))
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{charts.WIDTH}" height="{charts.HEIGHT}" '
    drawing = drawing.replace("<svg ", head, 1).replace(">", f"><style>{style}</style>", 1)
    return drawing.replace("</svg>", f"{''.join(names)}</svg>\n")
