"""Atlas' results file (spec 1.7), from a predictions artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ralm.artifacts.schemas import predictions_schema
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import write_table
from ralm.atlas.predictions import export_predictions
from ralm.errors import ArtifactError
from tests.conftest import toy_rows


def make_predictions(folder: Path, rows: list[dict[str, Any]]) -> str:
    def build(work: Path) -> Contents:
        return Contents(rows={"test.parquet": write_table(work / "test.parquet", rows, predictions_schema([]))})

    output = str(folder / "predictions")
    produce(output, kind="predictions", stage="toy", stage_version=1, inputs={}, config={}, build=build)
    return output


def row(number: int, **changes: Any) -> dict[str, Any]:
    about = {"question": f"q{number}", "query": f"asked {number}", "task": "qa", "question_metadata": {"page": 3}}
    return {
        "question_id": f"id-{number}",
        "prediction": "amber",
        "answers": ["amber", "yellow"],
        "passage_ids": [toy_rows()[number]["passage_id"], toy_rows()[7]["passage_id"]],
        "scores": [2.5, 1.25],
        "candidates": [{"text": "amber", "log_probability": -0.5}],
        "choice_probabilities": None,
        "metadata": json.dumps(about),
        **changes,
    }


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_fields_in_input_order(toy_passages: str, tmp_path: Path) -> None:
    predictions = make_predictions(tmp_path, [row(number) for number in (5, 2, 9)])
    path = export_predictions(
        predictions=predictions, passages=toy_passages, output=str(tmp_path / "new" / "results.jsonl")
    )
    results = read(path)
    assert [result["id"] for result in results] == ["id-5", "id-2", "id-9"]
    first, source = results[0], toy_rows()[5]
    assert {name: first[name] for name in ("query", "answers", "generation", "metadata")} == {
        "query": "asked 5",
        "answers": ["amber", "yellow"],
        "generation": "amber",
        "metadata": {"question": "q5", "task": "qa", "question_metadata": {"page": 3}},
    }
    assert first["passages"][0] == {
        "id": source["source_id"],
        "title": f"{source['title']}: {source['section']}",
        "section": source["section"],
        "text": source["text"],
        "score": 2.5,
    }
    assert len(first["passages"]) == 2


def test_without_passages_and_without_a_reader(tmp_path: Path) -> None:
    predictions = make_predictions(tmp_path, [row(1, candidates=[], prediction="")])
    result = read(export_predictions(predictions=predictions, output=str(tmp_path / "results.jsonl")))[0]
    assert result.keys() == {"id", "query", "answers", "metadata"}


def test_multiple_choice(tmp_path: Path) -> None:
    orders = [
        {"order": [0, 1], "generation": "A", "choice_logits": [2.0, 1.0]},
        {"order": [1, 0], "generation": "B", "choice_logits": [0.5, 3.0]},
    ]
    about = {"question": "q", "query": "q options: (A) x (B) y", "choice": "A", "permutations": orders}
    predictions = make_predictions(tmp_path, [row(1, metadata=json.dumps(about), choice_probabilities=[0.75, 0.25])])
    result = read(export_predictions(predictions=predictions, output=str(tmp_path / "results.jsonl")))[0]
    assert result["choice_logits"] == {"A": 2.0, "B": 1.0}
    assert result["choice_probs"] == {"A": 0.75, "B": 0.25}
    assert result["permutations"][1] == {"order": [1, 0], "generation": "B", "choice_logits": {"A": 0.5, "B": 3.0}}
    assert result["metadata"] == {"question": "q", "choice": "A"}


def test_passages_of_another_corpus(toy_passages: str, tmp_path: Path) -> None:
    predictions = make_predictions(tmp_path, [row(1), row(2, passage_ids=[1, 2])])
    with pytest.raises(ArtifactError, match="no passage with id 1"):
        export_predictions(predictions=predictions, passages=toy_passages, output=str(tmp_path / "results.jsonl"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions"]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="expected a file such as results.jsonl, found a folder"):
        export_predictions(predictions=make_predictions(tmp_path, [row(1)]), output=str(tmp_path))
