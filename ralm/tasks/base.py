"""Questions, and what a task is: it turns a question row into what is asked and a prediction into scores.

`Task` is the task `base` and the parent of all others. A new task is a module beside this one and an entry in
`catalog.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from ralm.artifacts.files import Location
from ralm.artifacts.manifest import Artifact, open_artifact
from ralm.artifacts.tables import iterate_rows
from ralm.errors import DataError
from ralm.evaluation.metrics import METRICS
from ralm.tasks.config import TaskConfig

MAX_COPIES: Final = 5040
"""How often one row may be asked in one pass: every order of seven options."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilePassage:
    """A passage that comes with its question."""

    passage_id: int
    title: str
    section: str
    text: str


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
    source_id: str | None = None
    """Source or id of the passages that must not be retrieved: the text itself, for tasks that ask for it."""
    positive_titles: tuple[str, ...] = ()
    passages: tuple[FilePassage, ...] = ()
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tools:
    """What a task may use beside the row."""

    settings: TaskConfig = TaskConfig()
    tokenizer: Any = None
    """The reader's (a fast tokenizer of transformers)."""
    max_input_tokens: int = 256
    """Longest input of the reader, in its tokens."""
    question_format: str = "{question}"
    """The reader's, for limits that count what is around the question."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked for a row."""

    query: str
    """What the retriever and the reader get, before their own formats."""
    targets: tuple[str, ...]
    """Texts that are right for the reader to learn, before its own format; evaluation takes the loss of the first."""
    answers: tuple[str, ...]
    """What a prediction is compared with; empty where the row has no answer."""
    options: tuple[str, ...] = ()
    """Texts whose logits are compared."""
    order: tuple[int, ...] = ()
    """`order[i]`: number in the row of the option that is shown in place i."""


class Text(Protocol):
    """A possible answer."""

    @property
    def text(self) -> str:
        """Without special tokens."""


class Read(Protocol):
    """What the reader makes of one `Asked`."""

    @property
    def candidates(self) -> Sequence[Text]:
        """Generated answers, the best first."""

    @property
    def option_logits(self) -> Sequence[float] | None:
        """One for each option."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of one question."""

    metrics: Mapping[str, float | None]
    """A value in [0, 1] for each of the task's metrics; None where the row has no answer."""
    choice_probabilities: tuple[float, ...] | None = None
    """Of the options, in the order of the row."""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else is worth keeping with the prediction."""


class Task:
    """The task `base`: query and target as given, right or wrong by raw equality.

    Instances hold no state. A subclass overrides what differs.
    """

    metrics: tuple[str, ...] = ("accuracy",)
    """Names of the scores of one prediction, the main one first; each is in [0, 1], and the metric is its mean."""

    is_plain: bool = True
    """True: query and target are used as they are, without the model's question and target formats."""

    needs_answers: bool = True
    """False: rows without an answer may be asked; they have no score."""

    def query(self, question: Question) -> str:
        """The text that is asked."""
        return question.question

    def answers(self, question: Question) -> tuple[str, ...]:
        """The texts that a prediction is compared with: the row's answers, else its target."""
        return question.answers or ((question.target,) if question.target is not None else ())

    def targets(self, question: Question) -> tuple[str, ...]:
        """The texts that may be learnt: the row's own target where it has one, else all its answers."""
        return (question.target,) if question.target is not None else self.answers(question)

    def sought(self, question: Question) -> tuple[str, ...]:
        """Texts of which a good passage holds one, for recall; empty where there is no such text."""
        return ()

    def check(self, question: Question, *, is_learnt: bool = False) -> None:
        """Raise `DataError` if the row lacks what this task scores, or learns where `is_learnt`."""
        if self.needs_answers and not self.answers(question):
            raise DataError(f"question {question.question_id!r}: expected at least one answer, found none")
        if is_learnt and not any(target.strip() for target in self.targets(question)):
            raise DataError(f"question {question.question_id!r}: expected an answer to learn, found only empty ones")

    def reason_to_skip(self, question: Question, settings: TaskConfig) -> str | None:
        """Why the row is left out, as a word for the counts; None for a row that is used."""
        return None

    def num_copies(self, question: Question, tools: Tools) -> int:
        """In how many ways a row can be asked; each is asked once in a pass."""
        return 1

    def group(self, question: Question) -> str | None:
        """Name of the group of rows for which metrics are reported apart; None where there is no such group."""
        return None

    def ask(self, question: Question, copy: int, tools: Tools, generator: np.random.Generator) -> Asked:
        """What is asked for a row.

        Args:
            question: the row.
            copy: 0 up to `num_copies` - 1; copy 0 is the row as given.
            tools: settings and the reader's tokenizer.
            generator: the only source of chance.
        """
        targets = tuple(target for target in self.targets(question) if target.strip())
        return Asked(query=self.query(question), targets=targets, answers=self.answers(question))

    def score(self, question: Question, asked: Sequence[Asked], reads: Sequence[Read]) -> Scored:
        """Scores of a row from what the reader made of its copies; those of the first copy by default."""
        answers = asked[0].answers
        if not answers:
            return Scored(metrics=dict.fromkeys(self.metrics))
        prediction = reads[0].candidates[0].text
        return Scored(metrics={name: METRICS[name](prediction, answers) for name in self.metrics})


def open_questions(location: Location, split: str, max_questions: int | None = None) -> tuple[Artifact, list[Question]]:
    """Open a questions artifact and read one split, in file order.

    Args:
        location: a `questions` artifact.
        split: train, dev, test or another name of a table in it.
        max_questions: read only the first ones, and no more of the file than these need; None for all.

    Raises:
        ArtifactError: no finished questions artifact.
        DataError: the split is missing or empty.
    """
    artifact = open_artifact(location, "questions")
    if not artifact.has(f"{split}.parquet"):
        there = sorted(place.rpartition("/")[2].removesuffix(".parquet") for place, _ in artifact.tables())
        raise DataError(f"{location}: no split {split!r}; there are: {', '.join(there) or 'none'}")
    columns = [field.name for field in dataclasses.fields(Question)]
    place = artifact.file(f"{split}.parquet")
    num_rows = next(rows for name, rows in artifact.tables() if name == place)
    tables = iterate_rows([(place, num_rows)], "questions/1", stop=max_questions, columns=columns)
    questions = [question_of(row) for table in tables for row in table.to_pylist()]
    if not questions:
        raise DataError(f"{location}: split {split!r} holds no questions")
    return artifact, questions


def question_of(row: Mapping[str, Any]) -> Question:
    """A row of a `questions/1` table as tasks see it."""
    lists = {name: tuple(row[name]) for name in ("answers", "options", "positive_titles")}
    passages = tuple(FilePassage(**passage) for passage in row["passages"])
    plain = {field.name: row[field.name] for field in dataclasses.fields(Question)}
    return Question(**{**plain, **lists, "passages": passages, "metadata": json.loads(row["metadata"])})
