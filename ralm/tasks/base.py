"""What a task is: it turns a question row into what the reader sees and a prediction into scores.

A new task (fact checking, multiple choice, ...) is a module beside this one and an entry in `catalog.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Protocol

from ralm.artifacts.files import Location
from ralm.artifacts.manifest import Artifact, open_artifact
from ralm.artifacts.tables import read_table
from ralm.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One row of a `questions/1` table, as far as tasks read it."""

    question_id: str
    task: str
    question: str
    answers: tuple[str, ...] = ()
    target: str | None = None
    options: tuple[str, ...] = ()
    label: str | None = None
    positive_titles: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Task(Protocol):
    """One kind of question. Instances hold no state."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores of one prediction; each is in [0, 1] and its mean over questions is the metric."""

    def check(self, question: Question) -> None:
        """Raise `DataError` if the row lacks what this task scores."""

    def query(self, question: Question) -> str:
        """The text that the retriever and the reader get, before their own formats."""

    def targets(self, question: Question) -> tuple[str, ...]:
        """The texts that are right for the reader to learn, before its own format."""

    def score(self, question: Question, prediction: str) -> dict[str, float]:
        """Scores of a prediction, one for each of `metrics`."""


def open_questions(location: Location, split: str, max_questions: int | None = None) -> tuple[Artifact, list[Question]]:
    """Open a questions artifact and read one split, in file order.

    Args:
        location: a `questions` artifact.
        split: train, dev, test or another name of a table in it.
        max_questions: read only the first ones, None for all.

    Raises:
        ArtifactError: no finished questions artifact.
        DataError: the split is missing or empty.
    """
    artifact = open_artifact(location, "questions")
    if not artifact.has(f"{split}.parquet"):
        there = sorted(place.rpartition("/")[2].removesuffix(".parquet") for place, _ in artifact.tables())
        raise DataError(f"{location}: no split {split!r}; there are: {', '.join(there) or 'none'}")
    columns = [field.name for field in dataclasses.fields(Question)]
    table = read_table(artifact.file(f"{split}.parquet"), "questions/1", columns)
    rows = table.slice(0, max_questions).to_pylist()
    if not rows:
        raise DataError(f"{location}: split {split!r} holds no questions")
    return artifact, [_question(row) for row in rows]


def _question(row: dict[str, Any]) -> Question:
    lists = {name: tuple(row[name]) for name in ("answers", "options", "positive_titles")}
    return Question(**{**row, **lists, "metadata": json.loads(row["metadata"])})
