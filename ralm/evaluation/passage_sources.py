"""Where the passages of a question come from: an index, the question's own row, or nowhere.

Shapes: `N` questions, `B` questions in a batch, `K` passages of a question, `D` embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ralm.errors import DataError
from ralm.evaluation.stopwatch import Stopwatch
from ralm.reader.prompts import PassageText
from ralm.tasks.base import Question


class NumberedPassage(PassageText, Protocol):
    """A passage with its id."""

    @property
    def passage_id(self) -> int:
        """Id in its corpus or file."""


@dataclass(frozen=True)
class Found:
    """The passages of one question, the best first."""

    passages: Sequence[NumberedPassage] = ()
    scores: Sequence[float] = ()
    """One for each passage; none where nothing was searched."""


class PassageSource(Protocol):
    """Gives passages for questions."""

    @property
    def num_read(self) -> int:
        """How many of them, from the best on, the reader gets."""

    def encode(self, queries: Sequence[str]) -> np.ndarray:
        """What `find` needs of each query, [N, D]; D may be 0."""

    def find(self, question_BD: np.ndarray, questions: Sequence[Question]) -> list[Found]:
        """The passages of each question."""


class SearchResult(Protocol):
    """What a search gives for B questions."""

    @property
    def scores(self) -> np.ndarray:
        """`[B, K]`, the best first."""

    @property
    def passages(self) -> Sequence[Sequence[NumberedPassage]]:
        """K for each question."""


class Searcher(Protocol):
    """What is needed of `ralm.retrieval.PassageRetriever`."""

    def find(self, question_BD: np.ndarray, k: int, exclude: Sequence[str | None]) -> SearchResult:
        """The k best passages of each question."""


@dataclass(frozen=True)
class SearchedPassages:
    """Passages found in an index, without those of the question's own source."""

    embed: Callable[[Sequence[str]], np.ndarray]
    """Queries to vectors [N, D]."""
    searcher: Searcher
    num_retrieved: int
    """Passages retrieved for a question (K)."""
    num_read: int
    watch: Stopwatch
    """Is told the time spent on `encode` and `search`."""

    def encode(self, queries: Sequence[str]) -> np.ndarray:
        """Vectors of the queries."""
        with self.watch.measure("encode"):
            return self.embed(queries)

    def find(self, question_BD: np.ndarray, questions: Sequence[Question]) -> list[Found]:
        """The best passages, none of the question's own source."""
        exclude = [question.source_id for question in questions]
        with self.watch.measure("search"):
            result = self.searcher.find(question_BD, self.num_retrieved, exclude)
        return [Found(*pair) for pair in zip(result.passages, result.scores.tolist(), strict=True)]


@dataclass(frozen=True)
class FilePassages:
    """Passages that come with the questions."""

    num_read: int

    def encode(self, queries: Sequence[str]) -> np.ndarray:
        """Nothing is needed."""
        return np.empty((len(queries), 0), np.float32)

    def find(self, question_BD: np.ndarray, questions: Sequence[Question]) -> list[Found]:
        """The passages of each row, in its order."""
        return [Found(question.passages) for question in questions]


class NoPassages(FilePassages):
    """Closed book: the reader gets the bare question."""

    def __init__(self) -> None:
        super().__init__(num_read=0)

    def find(self, question_BD: np.ndarray, questions: Sequence[Question]) -> list[Found]:
        """Nothing."""
        return [Found() for _ in questions]


def check_file_passages(questions: Sequence[Question]) -> None:
    """Raise `DataError` if a question comes without passages."""
    for question in questions:
        if not question.passages:
            raise DataError(f"question {question.question_id!r}: passages: file_passages expects some, found none")
