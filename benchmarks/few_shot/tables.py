"""Markdown tables of repeated runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

Runs = Mapping[str, Sequence[Mapping[str, float]]]


def markdown(runs: Runs, columns: Sequence[str], *, first: str = "system", digits: int = 3) -> str:
    """A row for each system: the mean over its runs, with the single values where there are several.

    Example:
        >>> print(markdown({"a": [{"x": 0.25}, {"x": 0.75}], "b": [{}]}, ["x"]))
        | system | x |
        |---|---|
        | a | 0.500 (0.250, 0.750) |
        | b | - |
    """
    lines = [f"| {first} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, found in runs.items():
        cells = [_cell([run[column] for run in found if column in run], digits) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({', '.join(f'{value:.{digits}f}' for value in values)})"
