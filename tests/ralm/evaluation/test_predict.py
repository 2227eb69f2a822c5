from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from ralm.corpus.lookup import Passage
from ralm.evaluation.predict import Retriever, Stopwatch, predict, summarise
from ralm.tasks.base import Question
from ralm.tasks.catalog import task_of

TEXTS = ("the river Ouse", "the city of York", "a bridge", "York again")


@dataclasses.dataclass(frozen=True)
class Said:
    text: str
    log_probability: float = -1.0


class FixedIndex:
    """Gives question b the passages b, b+1, ... (row 0 is passage 100)."""

    passage_ids = np.arange(100, 104)

    def search(self, question_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        rows = [[(int(question[0]) + rank) % 4 for rank in range(k)] for question in question_BD]
        return np.tile(np.linspace(1, 0.5, k, dtype=np.float32), (len(rows), 1)), np.array(rows)


def fetch(ids: np.ndarray) -> list[Passage]:
    return [Passage(int(i), "s", None, None, f"Title {i}", "", TEXTS[i - 100], "text", 0) for i in ids]


def encode(texts: Sequence[str]) -> np.ndarray:
    return np.array([[float(text[-1])] for text in texts], dtype=np.float32)


QUESTIONS = [
    Question(
        question_id=f"q{n}",
        task="qa",
        question=f"city {n}",
        answers=("York",),
        positive_titles=(f"title 10{n}",)[: 1 - n % 2],
    )
    for n in range(3)
]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_reader_gets_the_best_passages_of_its_question(batch_size: int) -> None:
    seen: list[list[int]] = []

    def read(texts: Sequence[str], passages: Sequence[Sequence[Passage]]) -> list[list[Said]]:
        seen.extend([passage.passage_id for passage in found] for found in passages)
        return [[Said(found[0].text.split()[-1])] for found in passages]

    retriever = Retriever(encode=encode, index=FixedIndex(), fetch=fetch, num_retrieved=4, num_read=2)
    task, watch = task_of(QUESTIONS), Stopwatch()
    batches = predict(QUESTIONS, task=task, retriever=retriever, read=read, batch_size=batch_size, watch=watch)
    rows = [row for batch in batches for row in batch]
    assert seen == [[100, 101], [101, 102], [102, 103]]
    assert [row["passage_ids"] for row in rows] == [[100, 101, 102, 103], [101, 102, 103, 100], [102, 103, 100, 101]]
    assert [row["prediction"] for row in rows] == ["Ouse", "York", "bridge"]
    assert [row["answer_rank"] for row in rows] == [2, 1, 2]
    assert [row["title_rank"] for row in rows] == [1, None, 1]
    assert set(watch.per_question_ms(3)) == {"encode_ms", "search_ms", "fetch_ms", "read_ms"}
    metrics = summarise(rows, QUESTIONS, task=task, cutoffs=[1, 2])
    assert metrics == {
        "exact_match": pytest.approx(1 / 3),
        "f1": pytest.approx(1 / 3),
        "num_questions": 3,
        "recall_at_1": pytest.approx(1 / 3),
        "recall_at_2": 1.0,
        "mrr": pytest.approx(2 / 3),
        "recall_title_at_1": 1.0,  # over the two questions that name a page
        "recall_title_at_2": 1.0,
    }


def test_closed_book_reads_the_bare_question() -> None:
    def read(texts: Sequence[str], passages: Sequence[Sequence[Passage]]) -> list[list[Said]]:
        assert all(not found for found in passages)
        return [[Said("york")] for _ in texts]

    batches = predict(QUESTIONS, task=task_of(QUESTIONS), retriever=None, read=read, batch_size=2, watch=Stopwatch())
    rows = [row for batch in batches for row in batch]
    assert all(row["exact_match"] == 1 and row["passage_ids"] == [] and row["answer_rank"] is None for row in rows)
    assert summarise(rows, QUESTIONS, task=task_of(QUESTIONS), cutoffs=[]) == {
        "exact_match": 1.0,
        "f1": 1.0,
        "num_questions": 3,
    }
