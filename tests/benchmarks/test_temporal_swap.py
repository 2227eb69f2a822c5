"""The checks of the questions whose answer changed, and the score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.temporal_swap import QUESTIONS, YEARS, accuracy, find_problems, passages_by_title
from components.download.stage import download

PATTERNS = ("*2006*700*", "*2016*")
ROW = {
    "question": "How many people live in Rill?",
    "titles": ["Rill"],
    "answers_2006": ["100"],
    "answers_2016": ["250", "about 250"],
    "evidence_2006": "Rill has 100 people.",
    "evidence_2016": "About 250 people live there.",
}
TEXTS = {"2006": {"Rill": ["A village. Rill has 100 people."]}, "2016": {"Rill": ["About 250 people live there."]}}


def test_a_good_question_has_no_problem() -> None:
    assert find_problems([ROW], TEXTS) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"evidence_2006": "Rill has 101 people."}, "2006: evidence not found"),
        ({"answers_2006": ["99"]}, "2006: no answer in the evidence"),
        ({"answers_2016": ["250", "100"]}, "2006: the other year's answer in it"),
        ({"titles": ["Brook"]}, "2016: evidence not found"),
    ],
)
def test_problems_are_found(change: dict[str, object], problem: str) -> None:
    found = find_problems([{**ROW, **change}], TEXTS)
    assert any(line.endswith(problem) for line in found), found


def test_accuracy_counts_equal_and_held_answers() -> None:
    rows = [ROW, ROW, ROW]
    predictions = ["250", "some 250 people", "100"]
    assert accuracy(predictions, rows, "2016") == (1 / 3, 2 / 3)
    assert accuracy(predictions, rows, "2006") == (1 / 3, 1 / 3)


def test_the_file_has_40_different_questions() -> None:
    rows = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    assert len({row["question"] for row in rows}) == len(rows) == 40
    for row in rows:
        assert not set(row["answers_2006"]) & set(row["answers_2016"]), row["question"]


@pytest.mark.slow
def test_every_answer_is_in_its_own_dump(shared_data: Path, tmp_path: Path) -> None:
    dumps = {year: next((shared_data / "wiki").glob(pattern)) for year, pattern in zip(YEARS, PATTERNS, strict=True)}
    texts = {}
    for year, dump in dumps.items():
        download(source=str(dump), passages=str(tmp_path / year))
        texts[year] = passages_by_title(str(tmp_path / year))
    rows = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    assert find_problems(rows, texts) == []
