"""Ask questions: find passages, read the best of them, score the answers and the retrieval."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ralm.errors import ConfigError
from ralm.evaluation.metrics import mean_scores
from ralm.evaluation.passage_sources import Found, PassageSource
from ralm.evaluation.retrieval import answer_rank, retrieval_metrics, title_rank
from ralm.evaluation.stopwatch import Stopwatch
from ralm.log import progress
from ralm.reader.prompts import PassageText
from ralm.tasks.base import MAX_COPIES, Asked, Question, Scored, Task, Tools

EVAL_LOSS = "eval_loss"
"""Column behind a task's own metrics: mean loss of the target's tokens in nats, null where there is no target."""
RANKS = ("answer_rank", "title_rank")
"""Last columns: rank of the first passage with an answer and of a gold page, null if none."""
ENCODED_AT_ONCE = 4096


class Candidate(Protocol):
    """A possible answer."""

    @property
    def text(self) -> str:
        """Without special tokens."""

    @property
    def log_probability(self) -> float:
        """Natural logarithm of its probability."""


class Reading(Protocol):
    """What the reader makes of one query and its passages."""

    @property
    def candidates(self) -> Sequence[Candidate]:
        """Answers, the best first."""

    @property
    def option_logits(self) -> Sequence[float] | None:
        """One for each option."""

    @property
    def target_loss(self) -> float | None:
        """Mean loss of the target's tokens, in nats."""


class ReadAnswers(Protocol):
    """A reader: one reading for each query."""

    def __call__(
        self,
        queries: Sequence[str],
        passages: Sequence[Sequence[PassageText]],
        *,
        options: Sequence[Sequence[str]] | None,
        targets: Sequence[str | None] | None,
    ) -> Iterable[Reading]:
        """Candidates, option logits where there are options, and losses where there are targets."""


@dataclass(frozen=True)
class _Copy:
    """A question as it is asked once."""

    question: Question
    asked: Asked
    is_last: bool
    """True for the last copy of its question."""


@dataclass(frozen=True)
class _Read:
    """What came of a copy."""

    copy: _Copy
    found: Found
    reading: Reading | None


def predict(
    questions: Sequence[Question],
    *,
    task: Task,
    tools: Tools,
    seed: int,
    source: PassageSource,
    read: ReadAnswers | None,
    batch_size: int,
    watch: Stopwatch,
) -> Iterator[list[dict[str, Any]]]:
    """Answer questions batch by batch.

    Args:
        questions: of one task.
        task: says what is asked and scores the answers.
        tools: what the task may use.
        seed: of what is left to chance (masked texts); the same for a question whatever stands beside it.
        source: gives passages.
        read: the reader; None only retrieves: predictions are empty and have no score.
        batch_size: readings at a time.
        watch: is told the time spent on `read`.

    Yields:
        Rows of the `predictions/1` table with the task's metrics, `EVAL_LOSS` and `RANKS`, in input order. Passages
        and prediction are those of a question's first copy.

    Raises:
        ConfigError: a question can be asked in more than `MAX_COPIES` ways.
    """
    waiting: list[_Read] = []
    total = count_copies(questions, task, tools)
    with progress(total=total, what="answer" if read else "retrieve", unit="questions") as bar:
        for batch in _read_all(_copies(questions, task, tools, seed), source, read, batch_size, watch):
            rows = []
            for item in batch:
                waiting.append(item)
                if item.copy.is_last:
                    rows.append(_row(task, waiting))
                    waiting = []
            bar.update(len(batch))
            if rows:
                yield rows


def count_copies(questions: Sequence[Question], task: Task, tools: Tools) -> int:
    """How often questions are asked in all.

    Raises:
        ConfigError: a question can be asked in more than `MAX_COPIES` ways.
    """
    total = 0
    for question in questions:
        count = task.num_copies(question, tools)
        if count > MAX_COPIES:
            raise ConfigError(
                f"task.permutations: {tools.settings.permutations} asks question {question.question_id!r} {count} "
                f"times, expected at most {MAX_COPIES}; take cyclic or single"
            )
        total += count
    return total


def _copies(questions: Sequence[Question], task: Task, tools: Tools, seed: int) -> Iterator[_Copy]:
    for question in questions:
        count = task.num_copies(question, tools)
        digest = hashlib.sha256(question.question_id.encode()).digest()
        for copy in range(count):
            generator = np.random.default_rng([seed, int.from_bytes(digest[:8], "big"), copy])
            yield _Copy(question, task.ask(question, copy, tools, generator), copy == count - 1)


def _read_all(
    copies: Iterator[_Copy], source: PassageSource, read: ReadAnswers | None, batch_size: int, watch: Stopwatch
) -> Iterator[list[_Read]]:
    """Queries are encoded many at a time, since texts of equal length go together; the rest is done by batch."""
    while some := list(itertools.islice(copies, ENCODED_AT_ONCE)):
        question_ND = source.encode([copy.asked.query for copy in some])
        for start in range(0, len(some), batch_size):
            part = slice(start, start + batch_size)
            found = source.find(question_ND[part], [copy.question for copy in some[part]])
            readings: Sequence[Reading | None] = [None] * len(found)
            if read is not None:
                with watch.measure("read"):
                    readings = _read_batch(read, some[part], [item.passages[: source.num_read] for item in found])
            yield [_Read(*parts) for parts in zip(some[part], found, readings, strict=True)]


def _read_batch(
    read: ReadAnswers, copies: Sequence[_Copy], passages: Sequence[Sequence[PassageText]]
) -> Sequence[Reading]:
    asked = [copy.asked for copy in copies]
    options = [item.options for item in asked] if any(item.options for item in asked) else None
    targets = [item.targets[0] if item.targets else None for item in asked]
    queries = [item.query for item in asked]
    return list(read(queries, passages, options=options, targets=targets if any(targets) else None))


def _row(task: Task, reads: Sequence[_Read]) -> dict[str, Any]:
    """The row of a question from the readings of its copies."""
    question, asked, found = reads[0].copy.question, [item.copy.asked for item in reads], reads[0].found
    readings = [item.reading for item in reads if item.reading is not None]
    scored = task.score(question, asked, readings) if readings else Scored(metrics=dict.fromkeys(task.metrics))
    candidates = readings[0].candidates if readings else []
    about = {
        "question": question.question,
        "query": asked[0].query,
        "task": question.task,
        "positive_titles": list(question.positive_titles),
        "options": list(question.options),
        "label": question.label,
        "question_metadata": dict(question.metadata),
        **scored.metadata,
    }
    return {
        "question_id": question.question_id,
        "prediction": candidates[0].text if candidates else "",
        "answers": list(asked[0].answers),
        "passage_ids": [passage.passage_id for passage in found.passages],
        "scores": list(found.scores),
        "candidates": [{"text": item.text, "log_probability": item.log_probability} for item in candidates],
        "choice_probabilities": None if scored.choice_probabilities is None else list(scored.choice_probabilities),
        "metadata": json.dumps(about, ensure_ascii=False, sort_keys=True),
        **scored.metrics,
        EVAL_LOSS: _mean_loss(readings),
        "answer_rank": answer_rank(found.passages, task.sought(question)),
        "title_rank": title_rank(found.passages, question.positive_titles),
    }


def _mean_loss(readings: Sequence[Reading]) -> float | None:
    """Mean over the copies of a question."""
    found = [reading.target_loss for reading in readings if reading.target_loss is not None]
    return float(np.mean(found)) if found else None


def summarise(
    rows: Sequence[Mapping[str, Any]], questions: Sequence[Question], *, task: Task, cutoffs: Sequence[int]
) -> dict[str, Any]:
    """The metrics of a whole run.

    Args:
        rows: what `predict` gave.
        questions: the same questions in the same order.
        task: names the scores to average.
        cutoffs: the k of recall at k; empty where nothing was retrieved.

    Returns:
        Fractions in [0, 1] by name, `eval_loss` in nats, `num_questions` a count, and for rows in groups (see
        `Task.group`) the same of each group under `groups`. A metric that no row has is left out.
    """
    metrics: dict[str, Any] = _means(rows, task)
    if cutoffs:
        pairs = list(zip(rows, questions, strict=True))
        answers = [row["answer_rank"] for row, question in pairs if task.sought(question)]
        titles = [row["title_rank"] for row, question in pairs if question.positive_titles]
        metrics |= retrieval_metrics(answers, titles, cutoffs)
    groups = [task.group(question) for question in questions]
    if names := sorted({name for name in groups if name is not None}):
        metrics["groups"] = {
            name: _means([row for row, group in zip(rows, groups, strict=True) if group == name], task)
            for name in names
        }
    return metrics


def _means(rows: Sequence[Mapping[str, Any]], task: Task) -> dict[str, Any]:
    return {**mean_scores(rows, (*task.metrics, EVAL_LOSS)), "num_questions": len(rows)}
