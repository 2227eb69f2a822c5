"""Evaluations of the same questions side by side: checks, merged metrics, one row per question."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from ralm.artifacts.files import Location, read_json
from ralm.artifacts.manifest import Artifact, open_artifact
from ralm.artifacts.schemas import SCHEMA_KEY
from ralm.artifacts.tables import read_table
from ralm.errors import ArtifactError
from ralm.evaluation.metrics import paired_difference
from ralm.tasks.catalog import task_named

METRIC_WORDS: Final = {
    "accuracy": "Accuracy",
    "choice_accuracy": "Accuracy by logits",
    "debiased_accuracy": "Debiased accuracy",
    "exact_match": "Exact match",
    "f1": "F1",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
}
"""What people call the metrics of the tasks."""


def per_question_schema(metrics: Sequence[str]) -> pa.Schema:
    """`per_question/1`: what the runs made of each question, with the columns of the task's metrics.

    `answer_rank` is that of the first retrieved passage with an answer.
    """
    texts = pa.list_(pa.field("element", pa.string(), nullable=False))
    columns = [("prediction", pa.string()), *((name, pa.float64()) for name in (*metrics, "answer_rank"))]
    fields = [
        pa.field(f"{name}_{run}", kind, nullable=run == "closed_book" or name != "prediction")
        for run in ("before", "after", "closed_book")
        for name, kind in columns
        if (run, name) != ("closed_book", "answer_rank")
    ]
    return pa.schema(
        [
            pa.field("question_id", pa.string(), nullable=False),
            pa.field("question", pa.string(), nullable=False),
            pa.field("answers", texts, nullable=False),
            *fields,
        ],
        metadata={SCHEMA_KEY: b"per_question/1"},
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An opened predictions artifact."""

    location: Location
    artifact: Artifact
    metrics: Mapping[str, float]
    rows: Sequence[Mapping[str, Any]]

    @property
    def details(self) -> Mapping[str, Any]:
        """Facts that the evaluate stage left in the manifest."""
        return self.artifact.manifest.details

    @property
    def num_read(self) -> int:
        """Passages the reader got for one question."""
        return int(self.details["num_passages"])

    @property
    def compared(self) -> tuple[str, ...]:
        """The task's metrics, the first says what is right; their differences get an interval."""
        return tuple(name for name in task_named(self.details["task"]).metrics if name in self.metrics)


def open_evaluation(location: Location) -> Evaluation:
    """Read a predictions artifact whole.

    Raises:
        ArtifactError: it is missing, unfinished, or its answers have no scores.
    """
    artifact = open_artifact(location, "predictions")
    rows = read_table(artifact.file(f"{artifact.manifest.details['split']}.parquet"), "predictions/1").to_pylist()
    metrics = read_json(artifact.file("metrics.json"))
    evaluation = Evaluation(location, artifact, metrics, [{**row, **json.loads(row["metadata"])} for row in rows])
    if not evaluation.compared:
        wanted = ", ".join(task_named(evaluation.details["task"]).metrics)
        raise ArtifactError(f"{location}: metrics.json: expected {wanted}, found {', '.join(sorted(metrics))}")
    return evaluation


def check_comparable(first: Evaluation, second: Evaluation) -> None:
    """Raise `ArtifactError` unless both evaluations asked the same questions in the same order."""
    ours, theirs = ([(row["question_id"], row["question"]) for row in run.rows] for run in (first, second))
    if ours != theirs:
        detail = f"{len(ours)} and {len(theirs)} questions"
        if len(ours) == len(theirs):
            row = next(row for row, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
            detail = f"row {row} is question {ours[row][0]!r} and {theirs[row][0]!r}"
        raise ArtifactError(f"{first.location} and {second.location}: expected the same questions, found {detail}")


def check_passages(evaluation: Evaluation, passages: Location, fingerprint: str) -> None:
    """Raise `ArtifactError` if an evaluation retrieved from other passages than these."""
    used = evaluation.artifact.manifest.inputs.get("passages", fingerprint)
    if used != fingerprint:
        raise ArtifactError(f"{evaluation.location}: answered from passages {used}, but {passages} is {fingerprint}")


def merge_metrics(
    before: Evaluation, after: Evaluation, closed_book: Evaluation | None, *, resamples: int, seed: int
) -> dict[str, Any]:
    """The metrics after training, with those of the other runs and the differences below them.

    Returns:
        The metrics of `after` by name (fractions in [0, 1], `num_questions` a count), `before` and, where there is
        one, `closed_book` with theirs, and `difference` / `difference_closed_book`: for each compared metric the mean
        gain of `after` over that run (-1 to 1) with its 95 % interval from a paired bootstrap.
    """
    merged: dict[str, Any] = {**after.metrics, "before": dict(before.metrics)}
    merged["difference"] = _differences(before, after, resamples, seed)
    if closed_book is not None:
        merged["closed_book"] = dict(closed_book.metrics)
        merged["difference_closed_book"] = _differences(closed_book, after, resamples, seed)
    return merged


def _differences(before: Evaluation, after: Evaluation, resamples: int, seed: int) -> dict[str, Any]:
    """Over the questions that have a score."""
    differences = {}
    for name in after.compared:
        pairs = [(row[name], other[name]) for row, other in zip(before.rows, after.rows, strict=True)]
        scored = [pair for pair in pairs if None not in pair]
        columns = [first for first, _ in scored], [second for _, second in scored]
        differences[name] = dataclasses.asdict(paired_difference(*columns, resamples=resamples, seed=seed))
    return differences


def per_question(before: Evaluation, after: Evaluation, closed_book: Evaluation | None) -> list[dict[str, Any]]:
    """Rows of the `per_question/1` table, in the order of the questions."""
    columns = ("prediction", *after.compared, "answer_rank")
    rows = []
    for number, row in enumerate(after.rows):
        merged = {name: row[name] for name in ("question_id", "question", "answers")}
        for label, run in (("before", before), ("after", after), ("closed_book", closed_book)):
            found = run.rows[number] if run else {}
            merged |= {f"{name}_{label}": found.get(name) for name in columns}
        del merged["answer_rank_closed_book"]
        rows.append(merged)
    return rows
