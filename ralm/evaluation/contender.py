"""One side of a decision: an evaluation with its index, and the score that each question gives to each figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

from ralm.artifacts.files import Location, exists, join, read_json
from ralm.artifacts.manifest import Artifact, open_artifact
from ralm.artifacts.store import stored_location
from ralm.errors import ArtifactError
from ralm.evaluation.compare import Evaluation, check_comparable, open_evaluation
from ralm.tasks.base import Question
from ralm.tasks.catalog import task_named

NOT_ASKING: Final = {"batch_size", "max_batch_tokens", "recall_at"}
"""Settings of the evaluate stage that do not change what a question is scored."""
LATENCIES: Final = ("encode_ms", "search_ms", "read_ms")
Score = Callable[[Mapping[str, Any]], float | None]


@dataclasses.dataclass(frozen=True)
class Contender:
    """What is known of one side."""

    evaluation: Evaluation
    index: Artifact | None = None
    fresh: Evaluation | None = None
    """Evaluation of the questions about changed pages."""

    @property
    def latency_ms(self) -> dict[str, float]:
        """Milliseconds per question by kind of work, and all together as `total_ms`; empty where not measured."""
        place = join(self.evaluation.artifact.base, "timings.json")
        timings = read_json(place) if exists(place) else {}
        found = {name: float(timings[name]) for name in LATENCIES if name in timings}
        return {**found, "total_ms": round(sum(found.values()), 3)} if found else {}

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Resident bytes of the index, and those of all its files; empty where the index is not given."""
        if self.index is None:
            return {}
        manifest = self.index.manifest
        resident = manifest.details["bytes_per_vector"] * manifest.counts["passages"]
        return {"index_bytes": round(resident), "file_bytes": sum(entry.bytes for entry in manifest.files)}

    @property
    def places(self) -> dict[str, Location]:
        """Where the store keeps what this was opened from."""
        fresh = self.fresh.artifact if self.fresh else None
        parts = {"predictions": self.evaluation.artifact, "index": self.index, "fresh": fresh}
        return {name: stored_location(part.manifest) for name, part in parts.items() if part is not None}


def open_contender(predictions: Location, *, index: Location = "", fresh: Location = "") -> Contender:
    """Open what is known of one side; index and fresh evaluation may be empty.

    Raises:
        ArtifactError: one is missing or damaged, or the evaluation was not of this index.
    """
    evaluation = open_evaluation(predictions)
    opened = open_artifact(index, "index") if index else None
    if (
        opened is not None
        and evaluation.artifact.manifest.inputs.get("index", opened.fingerprint) != opened.fingerprint
    ):
        asked = evaluation.artifact.manifest.inputs["index"]
        raise ArtifactError(f"{predictions}: evaluates index {asked}, but {index} is {opened.fingerprint}")
    return Contender(evaluation, opened, open_evaluation(fresh) if fresh else None)


def check_same_asking(first: Evaluation, second: Evaluation) -> None:
    """Raise `ArtifactError` unless both answered the same questions, with the same settings of the evaluate stage."""
    check_comparable(first, second)
    for row, other in zip(first.rows, second.rows, strict=True):
        if row["answers"] != other["answers"]:
            raise ArtifactError(
                f"{first.location} and {second.location}: expected the same answers to question "
                f"{row['question_id']!r}, found {row['answers']} and {other['answers']}"
            )
    ours, theirs = (_asking(run) for run in (first, second))
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            raise ArtifactError(
                f"{first.location} and {second.location}: expected questions asked in the same way, found {name} "
                f"{ours.get(name)} and {theirs.get(name)}"
            )


def _asking(evaluation: Evaluation) -> dict[str, Any]:
    manifest = evaluation.artifact.manifest
    settings = {name: value for name, value in manifest.config.items() if name not in NOT_ASKING}
    return {**settings, "stage_version": manifest.stage_version, "task": manifest.details["task"]}


def question_scores(evaluation: Evaluation) -> dict[str, list[float | None]]:
    """The figures that every question has a part in, question by question; the task's own come first.

    Returns:
        By the name of the figure in metrics.json, which is the mean: one value in [0, 1] for each question, None where
        the question does not count for it.
    """
    return {name: [score(row) for row in evaluation.rows] for name, score in _scores(evaluation).items()}


def _scores(evaluation: Evaluation) -> dict[str, Score]:
    found: dict[str, Score] = {name: _column(name) for name in evaluation.compared}
    for name in evaluation.metrics:
        words, _, cutoff = name.rpartition("_at_")
        if words in ("recall", "recall_title") and cutoff.isdigit():
            found[name] = _recall(words, int(cutoff))
        elif name == "mrr":
            found[name] = _reciprocal_rank
    return found


def _column(name: str) -> Score:
    return lambda row: row[name]


def _recall(words: str, k: int) -> Score:
    is_sought, column = (_names_page, "title_rank") if words == "recall_title" else (_seeks_answer, "answer_rank")

    def score(row: Mapping[str, Any]) -> float | None:
        rank = row[column]
        return float(rank is not None and rank <= k) if is_sought(row) else None

    return score


def _reciprocal_rank(row: Mapping[str, Any]) -> float | None:
    rank = row["answer_rank"]
    return (1 / rank if rank else 0.0) if _seeks_answer(row) else None


def _names_page(row: Mapping[str, Any]) -> bool:
    return bool(row["positive_titles"])


def _seeks_answer(row: Mapping[str, Any]) -> bool:
    """True if retrieval is measured for this question, as `Task.sought` says."""
    question = Question(
        question_id=row["question_id"],
        task=row["task"],
        question=row["question"],
        answers=tuple(row["answers"]),
        options=tuple(row.get("options", ())),
        label=row.get("label"),
    )
    return bool(task_named(question.task).sought(question))
