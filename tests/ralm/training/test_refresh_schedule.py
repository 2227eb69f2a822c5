"""The refresh grammar: half-open ranges, the rule for update 0, and refusal of what makes no sense (defect 20)."""

from __future__ import annotations

import re

import pytest

from ralm.errors import ConfigError
from ralm.training.config import TrainingConfig
from ralm.training.refresh_schedule import parse_refresh_schedule, refresh_is_due


def due(text: str, stop: int) -> list[int]:
    ranges = parse_refresh_schedule(text)
    return [step for step in range(stop) if refresh_is_due(ranges, step)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-1", []),
        ("3", [3, 6, 9]),
        ("1", list(range(1, 12))),
        ("100", []),
        ("0-6:2,6-12:5", [2, 4, 6, 11]),
        ("2-5:2", [2, 4]),
        ("6-12:5,0-6:2", [2, 4, 6, 11]),
        ("0-2:5,8-10:1", [8, 9]),
    ],
)
def test_due_updates(text: str, expected: list[int]) -> None:
    assert due(text, 12) == expected


def test_published_schedule_of_full_training() -> None:
    assert due("0-1000:500,1000-10000:2000", 10001) == [500, 1000, 3000, 5000, 7000, 9000]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "rate of at least 1 update, found 0"),
        ("0-10:0", "rate of at least 1 update, found 0"),
        ("5-5:1", "range 5-5 is empty"),
        ("9-5:1", "range 9-5 is empty"),
        ("0-10:2,9-20:3", "ranges overlap at update 9"),
        ("0-10:2, 10-20:3", "expected -1, a number"),
        ("", "expected -1, a number"),
        ("-2", "expected -1, a number"),
        ("1e3", "expected -1, a number"),
        ("0-10", "expected -1, a number"),
        ("0-10:2,", "expected -1, a number"),
        ("\u0663", "expected -1, a number"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    """Defect 20: Atlas divides by zero at `0` and leaves ranges unchecked."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        TrainingConfig(mode="joint", refresh_schedule=text)


@pytest.mark.parametrize(
    "settings",
    [
        {"refresh_schedule": "5"},
        {"mode": "reader_only", "refresh_schedule": "5"},
        {"num_reranked": 50},
        {"mode": "joint", "num_retrieved": 20, "num_reranked": 10},
        {"mode": "reader_only", "freeze_reader": True},
        {"file_passages": True},
        {"mode": "reader_only", "file_passages": True, "closed_book": True},
        {"temperature_gold": 0.0},
        {"overretrieve_ratio": 0},
        {"freeze_retriever_steps": -1},
        {"num_passages": 1, "objective": "loop"},
    ],
)
def test_contradictions_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=list(settings)[-1] if "file_passages" not in settings else "file_passages"):
        TrainingConfig(**settings)  # type: ignore[arg-type]


def test_gold_temperature_follows_the_objective() -> None:
    """Defect 11: with Atlas' default of 0.01 its EMDR2 loss explodes."""
    assert TrainingConfig().gold_temperature == 0.01
    assert TrainingConfig(objective="emdr2").gold_temperature == 1.0
    assert TrainingConfig(objective="emdr2", temperature_gold=0.5).gold_temperature == 0.5
