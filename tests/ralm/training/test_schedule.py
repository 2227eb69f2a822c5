"""Learning rates and data order are pure functions with the promised shape."""

from __future__ import annotations

import itertools

import pytest

from ralm.training.examples import batch_rows
from ralm.training.schedule import learning_rate_factor


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 7, 50])
def test_factor_stays_in_range_rises_then_falls(schedule: str, warmup_steps: int) -> None:
    factors = [
        learning_rate_factor(step, schedule=schedule, warmup_steps=warmup_steps, total_steps=50, floor_ratio=0.2)
        for step in range(80)
    ]
    rise, fall = factors[: warmup_steps + 1], factors[warmup_steps:]
    assert all(first < second for first, second in itertools.pairwise(rise))
    assert all(first >= second for first, second in itertools.pairwise(fall))
    assert factors[warmup_steps] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(1.0 if schedule == "constant" else 0.2)


@pytest.mark.parametrize(("num_rows", "batch_size"), [(10, 4), (3, 7), (64, 4), (1, 1), (5, 5)])
def test_every_epoch_covers_every_row_once(num_rows: int, batch_size: int) -> None:
    steps = range(6 * num_rows)
    stream = [row for step in steps for row in batch_rows(step, num_rows=num_rows, batch_size=batch_size, seed=3)]
    assert len(stream) == batch_size * len(steps)
    for start in range(0, len(stream) - num_rows + 1, num_rows):
        assert sorted(stream[start : start + num_rows]) == list(range(num_rows))


def test_order_depends_on_the_seed_and_changes_from_epoch_to_epoch() -> None:
    orders = [batch_rows(0, num_rows=20, batch_size=40, seed=seed) for seed in range(3)]
    assert orders[0] == batch_rows(0, num_rows=20, batch_size=40, seed=0)
    assert orders[0] != orders[1] != orders[2]
    assert orders[0][:20] != orders[0][20:]
