"""Charts as SVG text: lines and grouped bars with clean axes. Colours come from the page's style sheet by class name.

A drawing is 560 x 300 units and scales with its container. Only texts made by this project reach the drawing; they are
escaped all the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 68, 18, 16, 48


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve."""

    label: str
    style: str
    """Class names in the style sheet."""
    x: Sequence[float]
    y: Sequence[float]
    has_dots: bool = True


@dataclasses.dataclass(frozen=True)
class Axis:
    """Range and ticks of one direction."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    """(value, label), ascending."""
    label: str
    is_logarithmic: bool = False

    def place(self, value: float, start: float, end: float) -> float:
        """Where a value lies between two coordinates."""
        low, high, value = (math.log(v) if self.is_logarithmic else v for v in (self.low, self.high, value))
        return start + (end - start) * (value - low) / ((high - low) or 1.0)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values (1, 2 or 5 times a power of ten apart) that cover low..high.

    Example:
        >>> nice_ticks(0, 0.93)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * count >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def value_axis(values: Sequence[float], label: str) -> Axis:
    """A vertical axis with round ticks that covers the values and zero."""
    ticks = nice_ticks(min(0.0, *values), max(values))
    return Axis(ticks[0], ticks[-1], [(tick, f"{tick:g}") for tick in ticks], label)


def percent_axis(label: str, high: float = 1.0) -> Axis:
    """A vertical axis from 0 % to at least `high` (a fraction)."""
    ticks = nice_ticks(0.0, max(high, 0.05))
    return Axis(0.0, ticks[-1], [(tick, f"{100 * tick:g} %") for tick in ticks], label)


def line_chart(lines: Sequence[Line], x_axis: Axis, y_axis: Axis, description: str) -> str:
    """Curves over a common horizontal axis.

    Args:
        lines: drawn in this order, the last one on top.
        x_axis: horizontal.
        y_axis: vertical.
        description: what a reader of the chart should see, for those who cannot.
    """
    parts = [*_grid(y_axis), *_x_ticks(x_axis)]
    for line in lines:
        points = [(_x(x_axis, x), _y(y_axis, y)) for x, y in zip(line.x, line.y, strict=True)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(f'<path class="line {line.style}" d="{path}"><title>{escape(line.label)}</title></path>')
        if line.has_dots:
            for (x, y), tick, value in zip(points, line.x, line.y, strict=True):
                tip = f"{line.label}, {tick:g}: {100 * value:.1f} %"
                dot = f'<circle class="dot {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">'
                parts.append(f"{dot}<title>{escape(tip)}</title></circle>")
    return _drawing(parts, description)


def bar_chart(
    groups: Sequence[str], bars: Sequence[tuple[str, str, Sequence[float]]], y_axis: Axis, description: str
) -> str:
    """Bars side by side in groups, each with its value in per cent above it.

    Args:
        groups: names below the groups.
        bars: (label, class names, one fraction per group).
        y_axis: vertical.
        description: see `line_chart`.
    """
    parts = _grid(y_axis)
    slot = (WIDTH - LEFT - RIGHT) / len(groups)
    width = min(64.0, 0.72 * slot / len(bars))
    for group, name in enumerate(groups):
        middle = LEFT + slot * (group + 0.5)
        parts.append(_text("tick", middle, HEIGHT - BOTTOM + 20, name))
        for number, (label, style, values) in enumerate(bars):
            x, y = middle + width * (number - len(bars) / 2), _y(y_axis, values[group])
            tip = escape(f"{label}, {name}: {100 * values[group]:.1f} %")
            parts.append(
                f'<rect class="bar {style}" x="{x + 2:.1f}" y="{y:.1f}" width="{width - 4:.1f}" rx="2" '
                f'height="{max(HEIGHT - BOTTOM - y, 0.5):.1f}"><title>{tip}</title></rect>'
                f"{_text('value', x + width / 2, y - 6, f'{100 * values[group]:.1f}')}"
            )
    return _drawing(parts, description)


def _x(axis: Axis, value: float) -> float:
    return axis.place(value, LEFT, WIDTH - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return axis.place(value, HEIGHT - BOTTOM, TOP)


def _grid(axis: Axis) -> list[str]:
    parts = []
    for value, label in axis.ticks:
        y = _y(axis, value)
        style = "axis" if value == axis.low else "grid"
        parts.append(f'<path class="{style}" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text("tick", LEFT - 8, y + 4, label, anchor="end"))
    return parts


def _x_ticks(axis: Axis) -> list[str]:
    base = HEIGHT - BOTTOM
    parts = []
    for value, label in axis.ticks:
        x = _x(axis, value)
        parts.append(f'<path class="axis" d="M{x:.1f} {base}v5"/>')
        parts.append(_text("tick", x, base + 20, label))
    return [*parts, _text("label", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, axis.label)]


def _text(style: str, x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _drawing(parts: Sequence[str], description: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">'
        f"{''.join(parts)}</svg>"
    )
