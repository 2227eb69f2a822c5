"""The corpus and the questions of the few-shot experiments, from files in the layout of the public sources."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.few_shot.data import find_source, read_other_passages, read_qed, split_questions, write_data
from components.download.config import DownloadConfig
from components.download.stage import download
from ralm.errors import DataError


def qed_row(number: int, paragraph: str) -> dict[str, object]:
    return {
        "example_id": -number - 1,
        "title_text": f"Page of {paragraph}",
        "question_text": f"question {number}",
        "paragraph_text": f"{paragraph} holds a number .",
        "original_nq_answers": [[{"string": "the number"}], [{"string": "number"}, {"string": "number"}]],
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """340 questions on 170 paragraphs, and two lines of other passages, one of them twice."""
    (tmp_path / "qed").mkdir()
    rows = [qed_row(number, f"Paragraph {number // 2}") for number in range(340)]
    write_qed(tmp_path / "qed" / "qed-dev.jsonl", rows)
    lines = [
        "Oak // Oak is a tree . [sep] Elm // Elm is // one too .",
        "Oak // Oak is a tree . [sep] Ash // Ash burns .",
    ]
    (tmp_path / "retrieved_psgs").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_splits_share_no_paragraph_and_have_their_sizes(data: Path) -> None:
    questions = read_qed(find_source(data, "qed-dev*"))
    splits = split_questions(questions, {"test": 20, "dev": 10})
    assert {name: len(rows) for name, rows in splits.items()} == {"test": 20, "dev": 10, "train": 310}
    owners: dict[str, str] = {}
    for name, rows in splits.items():
        assert all(owners.setdefault(row.gold.source_id, name) == name for row in rows)
    assert splits == split_questions(questions, {"test": 20, "dev": 10})
    assert splits != split_questions(questions, {"test": 20, "dev": 10}, seed=1)


def write_qed(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_groups_questions_stay_together(tmp_path: Path) -> None:
    questions = read_qed(write_qed(tmp_path / "qed-dev.jsonl", [qed_row(0, "A"), qed_row(3, "A"), qed_row(6, "B")]))
    for seed in range(10):
        splits = split_questions(questions, {"test": 1}, seed=seed)
        assert [row.gold.title for row in splits["test"]] == ["Page of B"]  # two of A do not fit


def test_answers_are_distinct_and_the_shortest_is_learnt(tmp_path: Path) -> None:
    (question,) = read_qed(write_qed(tmp_path / "qed-dev.jsonl", [qed_row(0, "A")]))
    assert question.answers == ("number", "the number")


def test_both_layouts_of_the_other_passages_read_alike(data: Path, tmp_path: Path) -> None:
    plain = read_other_passages(data / "retrieved_psgs")
    assert [(item.title, item.text) for item in plain] == [
        ("Oak", "Oak is a tree ."),
        ("Elm", "Elm is // one too ."),
        ("Ash", "Ash burns ."),
    ]
    again = tmp_path / "again.jsonl"
    pairs = [[("Oak", "Oak is a tree ."), ("Elm", "Elm is // one too .")], [("Ash", "Ash burns .")]]
    again.write_text("".join(json.dumps({"ctxs": [{"title": a, "text": b} for a, b in line]}) + "\n" for line in pairs))
    assert read_other_passages(again) == plain


def test_downloaded_passages_have_the_ids_of_the_gold_paragraphs(data: Path, tmp_path: Path) -> None:
    write_data(data, tmp_path / "made", max_passages=1000)
    download(
        source=str(tmp_path / "made" / "corpus.jsonl"),
        passages=str(tmp_path / "passages"),
        config=DownloadConfig(format="atlas", workers=1),
    )
    download(source=str(tmp_path / "made" / "questions"), questions=str(tmp_path / "questions"))
    passages = pq.read_table(tmp_path / "passages" / "part-00000.parquet").to_pylist()
    assert len(passages) == 170 + 3
    text_of = {row["passage_id"]: row["text"] for row in passages}
    for split, size in {"test": 200, "dev": 100}.items():
        rows = pq.read_table(tmp_path / "questions" / f"{split}.parquet").to_pylist()
        assert len(rows) == size
        for row in rows:
            number = int(row["question"].split()[1])
            assert [text_of[gold].startswith(f"Paragraph {number // 2} ") for gold in row["positive_ids"]] == [True]


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"question_text": "q"}\n', "line 1: expected a record of QED"), ("[1]\n", "expected a JSON object")],
)
def test_a_broken_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "qed-dev.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_qed(tmp_path / "qed-dev.jsonl")


def test_missing_and_double_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found none"):
        find_source(tmp_path, "qed-dev*")
    for name in ("qed-dev.jsonl", "qed-dev.jsonl.gz"):
        (tmp_path / name).write_text("")
    with pytest.raises(DataError, match="qed-dev.jsonl.gz"):
        find_source(tmp_path, "qed-dev*")
