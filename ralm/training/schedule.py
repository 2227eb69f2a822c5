"""Learning rate over the updates, as a part of the highest one. Pure functions of the update's number."""

from __future__ import annotations

import math
from collections.abc import Callable

from ralm.training.config import Schedule


def learning_rate_factor(
    step: int, *, schedule: Schedule, warmup_steps: int, total_steps: int, floor_ratio: float
) -> float:
    """Factor on the highest learning rate for one update.

    Args:
        step: number of the update, 0 for the first.
        schedule: `linear`: rises from the floor to 1 in the warm-up, then falls in a straight line to the floor at
            `total_steps`. `cosine`: rises from 0 to 1, then falls along a quarter of a cosine to the floor. `constant`:
            rises from 0 to 1 and stays.
        warmup_steps: updates of the warm-up.
        total_steps: updates in all.
        floor_ratio: where the fall ends.

    Source: the schedules of the published Atlas implementation, with the floor also beyond the end.

    Example:
        >>> setting = {"warmup_steps": 2, "total_steps": 6, "floor_ratio": 0.1}
        >>> [round(learning_rate_factor(step, schedule="linear", **setting), 3) for step in range(7)]
        [0.1, 0.55, 1.0, 0.775, 0.55, 0.325, 0.1]
        >>> [round(learning_rate_factor(step, schedule="cosine", **setting), 3) for step in range(7)]
        [0.0, 0.5, 1.0, 0.931, 0.736, 0.444, 0.1]
        >>> [learning_rate_factor(step, schedule="constant", **setting) for step in range(4)]
        [0.0, 0.5, 1.0, 1.0]
    """
    start = floor_ratio if schedule == "linear" else 0.0
    if step < warmup_steps:
        return start + (1 - start) * step / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return FALLS[schedule](done, floor_ratio)


def _fall_linear(done: float, floor_ratio: float) -> float:
    return 1 - (1 - floor_ratio) * done


def _fall_cosine(done: float, floor_ratio: float) -> float:
    return floor_ratio + (1 - floor_ratio) * math.cos(math.pi / 2 * done)


def _stay(done: float, floor_ratio: float) -> float:
    return 1.0


FALLS: dict[Schedule, Callable[[float, float], float]] = {
    "linear": _fall_linear,
    "cosine": _fall_cosine,
    "constant": _stay,
}
