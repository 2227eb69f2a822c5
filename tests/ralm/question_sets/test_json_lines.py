from __future__ import annotations

import json
from pathlib import Path

import pytest

from ralm.artifacts.tables import read_table
from ralm.errors import ConfigError, DataError
from ralm.question_sets.json_lines import find_question_files, read_question, write_questions


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_atlas_row() -> None:
    row = {
        "question": "who?",
        "answers": ["A", "B"],
        "target": "A",
        "id": 5,
        "positive_titles": ["T"],
        "positive_ids": ["12"],
        "passages": [{"title": "T", "text": "x", "id": "3"}],
        "metadata": {"k": 1},
        "extra": True,
    }
    question = read_question(row, "f line 1")
    assert question["question_id"] == "5"
    assert question["target"] == "A"
    assert question["positive_ids"] == [12]
    assert json.loads(question["metadata"]) == {"k": 1, "extra": True}
    assert question["passages"][0]["title"] == "T"
    assert question["passages"][0]["passage_id"] > 0


def test_answer_or_target_is_enough_and_ids_are_made() -> None:
    assert read_question({"question": "q", "answer": ["x"]}, "f")["answers"] == ["x"]
    assert read_question({"question": "q", "answer": "x"}, "f")["answers"] == ["x"]
    question = read_question({"question": "q", "target": "t"}, "f")
    assert question["answers"] == ["t"]
    assert len(question["question_id"]) == 16


def test_quickstart_questions_are_read(tmp_path: Path) -> None:
    source = Path(__file__).parents[3] / "examples" / "quickstart" / "questions"
    rows, counts = write_questions(tmp_path, find_question_files(str(source), "auto"))
    assert rows == {"train.parquet": 64, "dev.parquet": 64, "test.parquet": 100}
    assert counts["questions"] == 228
    table = read_table(str(tmp_path / "test.parquet"), "questions/1")
    assert all(titles for titles in table.column("positive_titles").to_pylist())
    assert len(set(table.column("question_id").to_pylist())) == 100


def test_split_of_a_single_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "NQ-open.dev.jsonl", {"question": "q", "answer": ["x"]})
    assert find_question_files(str(path), "auto") == {"dev": path}
    assert find_question_files(str(path), "test") == {"test": path}
    other = write_rows(tmp_path / "mine.jsonl", {"question": "q", "answer": ["x"]})
    assert list(find_question_files(str(other), "auto")) == ["test"]
    with pytest.raises(ConfigError, match="split: .* is a folder"):
        find_question_files(str(tmp_path), "dev")


def test_folder_without_questions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected train.jsonl, dev.jsonl or test.jsonl"):
        find_question_files(str(tmp_path), "auto")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answers": ["x"]}, "line 1: missing field 'question'"),
        ({"question": "q"}, "line 1: missing field 'answers'"),
        ({"question": "q", "answers": [1]}, "line 1: field 'answers': expected a list of text, found int in it"),
        ({"question": "q", "answers": {"a": 1}}, "line 1: field 'answers': expected a list, found dict"),
        ({"question": "q", "answers": ["x"], "positive_ids": ["y"]}, "line 1: field 'positive_ids'"),
        ({"question": "q", "answers": ["x"], "passages": ["y"]}, "line 1: field 'passages': expected objects"),
        ({"question": "q", "answers": ["x"], "passages": [{"title": "y"}]}, "line 1: missing field 'text'"),
        ({"question": "q", "answers": ["x"], "metadata": 3}, "line 1: field 'metadata': expected an object"),
    ],
)
def test_bad_rows_name_file_line_and_field(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = write_rows(tmp_path / "test.jsonl", row)
    with pytest.raises(DataError, match=f"test.jsonl {message}"):
        write_questions(tmp_path / "out", {"test": path})


def test_repeated_ids_and_empty_files(tmp_path: Path) -> None:
    row = {"question": "q", "answers": ["x"], "id": "1"}
    path = write_rows(tmp_path / "test.jsonl", row, row)
    with pytest.raises(DataError, match="test.jsonl line 2: question_id '1' is that of line 1"):
        write_questions(tmp_path / "out", {"test": path})
    with pytest.raises(DataError, match="no questions"):
        write_questions(tmp_path / "out", {"test": write_rows(tmp_path / "empty.jsonl")})


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"id": 7, "claim": "c", "label": "SUPPORTS"},
            {"task": "fever", "question": "c", "label": "SUPPORTS", "question_id": "7"},
        ),
        ({"id": 7, "claim": "c"}, {"task": "fever", "label": None, "answers": []}),
        (
            {"question": "q", "options": {"B": "two", "A": "one"}, "answer": "B"},
            {"task": "multiple_choice", "options": ["one", "two"], "label": "B", "answers": ["B"]},
        ),
        (
            {"id": "1", "input": "q", "output": [{"answer": "a"}, {"provenance": []}]},
            {"task": "kilt", "question": "q", "answers": ["a"]},
        ),
        ({"id": "1", "input": "q"}, {"task": "kilt", "answers": []}),
        (
            {"id": "1", "text": "t", "title": "T", "section": "S", "task": "section"},
            {"task": "section", "question": "t", "source_id": "1"},
        ),
    ],
)
def test_rows_of_the_other_tasks_of_atlas(row: dict[str, object], expected: dict[str, object]) -> None:
    found = read_question(row, "f line 1")
    assert {name: found[name] for name in expected} == expected


def test_title_and_section_of_a_text_are_kept() -> None:
    row = {"text": "t", "title": "T", "section": "S", "task": "mlm"}
    assert json.loads(read_question(row, "f line 1")["metadata"]) == {"section": "S", "title": "T"}


def test_an_answer_that_is_no_option() -> None:
    with pytest.raises(DataError, match="f line 1: field 'answer': expected one of A, B, found 'C'"):
        read_question({"question": "q", "options": {"A": "one", "B": "two"}, "answer": "C"}, "f line 1")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "q", "answers": ["a"], "task": "quiz"}], r"train.jsonl line 1: task: expected one of .*'quiz'"),
        (
            [{"question": "q", "answers": ["a"]}, {"claim": "c", "label": "SUPPORTS"}],
            r"line 2: expected task 'qa' as in the lines before, found 'fever'",
        ),
        ([{"claim": "c", "label": "TRUE"}], r"line 1: .*SUPPORTS.*'TRUE'"),
        (
            [{"question": "q", "options": [str(n) for n in range(27)], "label": "A", "task": "multiple_choice"}],
            r"line 1: .*26",
        ),
    ],
)
def test_rows_that_no_task_takes_are_named_by_their_line(
    tmp_path: Path, rows: list[dict[str, object]], message: str
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=message):
        write_questions(tmp_path, {"train": path})
