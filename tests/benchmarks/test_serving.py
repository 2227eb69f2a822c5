"""The load test in a small size: the same pair in both servers, equal answers, and the figures are there."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import serving
from tests.conftest import toy_questions

ANSWER = {
    "question": "who?",
    "answer": "Otter",
    "log_probability": -120.0,
    "passages": [{"passage_id": "1", "score": 2.0}, {"passage_id": "2", "score": 1.0}],
}


def test_rounding_is_no_difference() -> None:
    other: dict[str, Any] = copy.deepcopy(ANSWER)
    other["log_probability"] = -120.01
    other["passages"][1]["score"] = 1.0001
    assert serving.differences(other, ANSWER) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"answer": "otter"}, ["answer"]),
        ({"log_probability": -121.0}, ["numbers"]),
        ({"passages": ANSWER["passages"][::-1]}, ["passages"]),
        ({"passages": ANSWER["passages"][:1]}, ["passages"]),
        ({"passages": [{"passage_id": "1", "score": 2.1}, {"passage_id": "2", "score": 1.0}]}, ["numbers"]),
    ],
)
def test_what_differs_is_named(change: dict[str, Any], expected: list[str]) -> None:
    assert serving.differences({**ANSWER, **change}, ANSWER) == expected


def test_the_figures_of_a_load() -> None:
    row = serving.Load([0.1] * 94 + [0.5] * 6, 5.0, 0).row()
    assert (row["requests"], row["requests_per_s"], row["different"]) == (100, 20.0, 0)
    assert (round(row["p50_ms"]), round(row["p95_ms"])) == (100, 500)


@pytest.mark.slow
def test_a_small_run(
    tmp_path: Path,
    tiny_model: str,
    toy_index: str,
    toy_passages: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("RALM_HOME", "RALM_TRACKING", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")  # what the benchmark sets is taken back
    monkeypatch.setenv("RALM_HOME", str(tmp_path / "home"))
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in toy_questions("train")))
    arguments = ["--work", str(tmp_path / "work"), "--model", tiny_model, "--index", toy_index]
    arguments += ["--passages", toy_passages, "--questions", str(questions), "--clients", "1", "4", "--k", "2"]
    arguments += ["--seconds", "2", "--rounds", "1", "--num-questions", "6", "--traces"]
    monkeypatch.setattr(sys, "argv", ["serving", *arguments])
    serving.main()
    rows = json.loads((tmp_path / "work" / "serving.json").read_text())
    names = ["mlflow models serve", "ralm serve", "ralm serve with traces"]
    assert [(row["clients"], row["server"]) for row in rows] == [
        (clients, name) for clients in (1, 4) for name in names
    ]
    assert all(row["requests"] > 0 and row["different"] == 0 and row["p50_ms"] <= row["p95_ms"] for row in rows)
    assert "| 4 | ralm serve |" in capsys.readouterr().out
