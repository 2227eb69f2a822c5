"""What pipeline tasks write for the user interface: numbers, Markdown and HTML."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.compare.component import compare_op
from components.evaluate.component import evaluate_op
from components.gate.component import gate_op
from ralm.artifacts.manifest import open_artifact
from tests.evaluations import write_evaluation


@pytest.fixture(autouse=True)
def _logging_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task sets logging up for its process; here that is the one of all tests."""
    monkeypatch.setattr("ralm.cli.set_up_logging", lambda: None)


def artifact(place: object) -> Any:
    """What KFP gives a task for an artifact."""
    return SimpleNamespace(path=str(place), metadata={})


def outputs(folder: Path, *names: str) -> dict[str, Any]:
    return {name: artifact(folder / "outputs" / name) for name in names}


def text_of(output: Any) -> str:
    return Path(output.path).read_text(encoding="utf-8")


def test_a_gate_shows_its_decision(tmp_path: Path) -> None:
    champion, challenger = (
        artifact(write_evaluation(tmp_path / name, scores))
        for name, scores in (("champion", [1.0, 1.0, 0.0, 1.0]), ("challenger", [0.0, 0.0, 0.0, 1.0]))
    )
    made = outputs(tmp_path, "decision", "metrics", "summary", "page")
    gate_op.python_func(challenger=challenger, champion=champion, champion_version="7", **made)
    assert open_artifact(made["decision"].path, "decision").manifest.details["promote"] is False
    assert made["metrics"].metadata["promote"] == 0.0
    assert made["metrics"].metadata["challenger.exact_match"] == 0.25
    assert made["metrics"].metadata["champion.exact_match"] == 0.75
    for name in ("summary", "page"):
        assert "refused" in text_of(made[name])
    assert text_of(made["page"]).lstrip().startswith("<!")
    assert "<html" not in text_of(made["summary"])


def test_a_comparison_shows_what_changed(tmp_path: Path, toy_passages: str) -> None:
    made = outputs(tmp_path, "changes", "metrics", "summary")
    compare_op.python_func(previous=artifact(toy_passages), passages=artifact(toy_passages), **made)
    numbers = made["metrics"].metadata
    assert (numbers["passages_before"], numbers["passages_taken_over"], numbers["pages_changed"]) == (30, 30, 0)
    assert text_of(made["summary"]).startswith("# Changes from ")


def test_an_evaluation_shows_its_figures(
    tmp_path: Path, toy_passages: str, toy_index: str, tiny_model: str, toy_questions_artifact: str
) -> None:
    inputs = {"passages": toy_passages, "index": toy_index, "model": tiny_model, "questions": toy_questions_artifact}
    made = outputs(tmp_path, "predictions", "metrics")
    given = {name: artifact(place) for name, place in inputs.items()}
    evaluate_op.python_func(**given, **made, config='{"num_passages": 2, "recall_at": [1, 5]}')
    numbers = made["metrics"].metadata
    assert numbers["num_questions"] == 6
    assert {"exact_match", "f1", "recall_at_5", "recall_title_at_1"} <= set(numbers)
    assert all(isinstance(number, float) for number in numbers.values())
