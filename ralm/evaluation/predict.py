"""Ask questions: retrieve passages, read the best of them, score the answers and the retrieval.

Shapes: `N` questions, `B` questions in a batch, `K` passages retrieved for a question, `D` embedding size.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from ralm.corpus.lookup import Passage
from ralm.evaluation.metrics import mean_scores
from ralm.evaluation.retrieval import answer_rank, retrieval_metrics, title_rank
from ralm.log import progress
from ralm.tasks.base import Question, Task, Tools

RANKS = ("answer_rank", "title_rank")
"""Columns behind a task's own metrics: rank of the first passage with an answer and of a gold page, null if none."""


class Answer(Protocol):
    """What a reader gives for one question."""

    @property
    def text(self) -> str:
        """The answer."""

    @property
    def log_probability(self) -> float:
        """Natural logarithm of its probability."""


@dataclasses.dataclass(frozen=True)
class _Read:
    candidates: Sequence[Answer]
    option_logits: Sequence[float] | None = None


class SearchableIndex(Protocol):
    """What retrieval needs of an index."""

    @property
    def passage_ids(self) -> np.ndarray:
        """Id of each row."""

    def search(self, question_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(score_BK, row_BK), best first."""


EncodeQuestions = Callable[[Sequence[str]], np.ndarray]
FetchPassages = Callable[[np.ndarray], list[Passage]]
ReadAnswers = Callable[[Sequence[str], Sequence[Sequence[Passage]]], Sequence[Sequence[Answer]]]


class Stopwatch:
    """Wall time by kind of work."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`."""
        started_at = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started_at

    def per_question_ms(self, num_questions: int) -> dict[str, float]:
        """Milliseconds for each question, `NAME_ms`."""
        return {f"{name}_ms": round(1000 * value / num_questions, 3) for name, value in self.seconds.items()}


@dataclasses.dataclass(frozen=True)
class Retriever:
    """Finds the passages of questions."""

    encode: EncodeQuestions
    """Texts to vectors [N, D]."""
    index: SearchableIndex
    fetch: FetchPassages
    """Passage ids to passages."""
    num_retrieved: int
    """Passages retrieved for a question (K)."""
    num_read: int
    """How many of them, from the best on, the reader gets."""


def predict(
    questions: Sequence[Question],
    *,
    task: Task,
    retriever: Retriever | None,
    read: ReadAnswers,
    batch_size: int,
    watch: Stopwatch,
) -> Iterator[list[dict[str, Any]]]:
    """Answer questions batch by batch.

    Args:
        questions: of one task.
        task: gives the text to ask and scores the answers.
        retriever: None asks the bare question (closed book).
        read: questions and the passages of each to candidates, the best first.
        batch_size: questions at a time.
        watch: is told the time spent on `encode`, `search`, `fetch`, `read`.

    Yields:
        Rows of the `predictions/1` table with the columns of the task's metrics and `RANKS`, in input order.
    """
    texts = [task.query(question) for question in questions]
    question_ND = _encode(texts, retriever, watch)
    num_read = retriever.num_read if retriever else 0
    with progress(total=len(questions), what="answer", unit="questions") as bar:
        for start in range(0, len(questions), batch_size):
            part = slice(start, start + batch_size)
            batch = questions[part]
            ids_BK, score_BK, passages = _retrieve(question_ND[part], retriever, watch)
            with watch.measure("read"):
                candidates = list(read(texts[part], [found[:num_read] for found in passages]))
            parts = zip(batch, candidates, passages, ids_BK, score_BK, strict=True)
            yield [_row(task, *part) for part in parts]
            bar.update(len(batch))


def _encode(texts: Sequence[str], retriever: Retriever | None, watch: Stopwatch) -> np.ndarray:
    """Vectors of all questions at once [N, D]; D = 0 in closed book."""
    if retriever is None:
        return np.empty((len(texts), 0), np.float32)
    with watch.measure("encode"):
        return retriever.encode(texts)


def _retrieve(
    question_BD: np.ndarray, retriever: Retriever | None, watch: Stopwatch
) -> tuple[np.ndarray, np.ndarray, list[list[Passage]]]:
    if retriever is None:
        num_questions = len(question_BD)
        nothing = np.empty((num_questions, 0))
        return nothing.astype(np.int64), nothing.astype(np.float32), [[] for _ in range(num_questions)]
    with watch.measure("search"):
        score_BK, row_BK = retriever.index.search(question_BD, retriever.num_retrieved)
    ids_BK = retriever.index.passage_ids[row_BK]
    with watch.measure("fetch"):
        passages = [retriever.fetch(ids_K) for ids_K in ids_BK]
    return ids_BK, score_BK, passages


def _row(
    task: Task,
    question: Question,
    candidates: Sequence[Answer],
    passages: Sequence[Passage],
    ids_K: np.ndarray,
    score_K: np.ndarray,
) -> dict[str, Any]:
    prediction = candidates[0].text
    asked = task.ask(question, 0, Tools(), np.random.default_rng(0))
    scored = task.score(question, [asked], [_Read(candidates)])
    about = {"question": question.question, "task": question.task, "positive_titles": list(question.positive_titles)}
    return {
        "question_id": question.question_id,
        "prediction": prediction,
        "answers": list(question.answers),
        "passage_ids": ids_K.tolist(),
        "scores": score_K.tolist(),
        "candidates": [{"text": item.text, "log_probability": item.log_probability} for item in candidates],
        "choice_probabilities": None,
        "metadata": json.dumps(about, ensure_ascii=False, sort_keys=True),
        **scored.metrics,
        "answer_rank": answer_rank(passages, question.answers),
        "title_rank": title_rank(passages, question.positive_titles),
    }


def summarise(
    rows: Sequence[Mapping[str, Any]], questions: Sequence[Question], *, task: Task, cutoffs: Sequence[int]
) -> dict[str, float]:
    """The metrics of a whole run, each a fraction in [0, 1] except the count `num_questions`.

    Args:
        rows: what `predict` gave.
        questions: the same questions in the same order.
        task: names the scores to average.
        cutoffs: the k of recall at k; empty where nothing was retrieved.
    """
    metrics: dict[str, float] = {**mean_scores(rows, task.metrics), "num_questions": len(rows)}
    if cutoffs:
        pairs = list(zip(rows, questions, strict=True))
        answers = [row["answer_rank"] for row, question in pairs if question.answers]
        titles = [row["title_rank"] for row, question in pairs if question.positive_titles]
        metrics |= retrieval_metrics(answers, titles, cutoffs)
    return metrics
