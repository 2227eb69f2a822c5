from __future__ import annotations

import math

import numpy as np

from ralm.evaluation.metrics import mean_scores, paired_difference


def test_mean_scores_keeps_only_the_named_ones() -> None:
    assert mean_scores([{"a": 1.0, "b": 3.0}, {"a": 0.0, "b": 3.0}], ["a"]) == {"a": 0.5}


def test_interval_agrees_with_the_normal_approximation() -> None:
    generator = np.random.default_rng(1)
    before, after = generator.random(400), generator.random(400) + 0.1
    found = paired_difference(before.tolist(), after.tolist(), resamples=4000, seed=0)
    gain = after - before
    half = 1.96 * gain.std() / math.sqrt(len(gain))
    assert math.isclose(found.value, gain.mean())
    assert abs(found.low - (gain.mean() - half)) < 0.005
    assert abs(found.high - (gain.mean() + half)) < 0.005
    assert found.low > 0


def test_pairing_removes_what_questions_share() -> None:
    before = [0.0, 1.0] * 50
    after = [0.1, 1.1] * 50
    found = paired_difference(before, after, resamples=200, seed=0)
    assert found.high - found.low < 1e-9


def test_seed_decides_the_draws() -> None:
    before, after = [0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]
    assert paired_difference(before, after, resamples=300, seed=3) == paired_difference(
        before, after, resamples=300, seed=3
    )
