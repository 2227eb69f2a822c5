"""Open-domain question answering: short answers, scored by exact match and F1."""

from __future__ import annotations

from ralm.errors import DataError
from ralm.evaluation.metrics import exact_match, f1
from ralm.tasks.base import Question


class QuestionAnswering:
    """The task `qa`."""

    metrics = ("exact_match", "f1")

    def check(self, question: Question) -> None:
        """Raise `DataError` if the question has no answers."""
        if not question.answers:
            raise DataError(f"question {question.question_id!r}: expected at least one answer, found none")

    def query(self, question: Question) -> str:
        """The question as given."""
        return question.question

    def targets(self, question: Question) -> tuple[str, ...]:
        """The row's own target where it has one, else all its answers."""
        return (question.target,) if question.target is not None else question.answers

    def score(self, question: Question, prediction: str) -> dict[str, float]:
        """`exact_match` and `f1`, best over the answers."""
        return {"exact_match": exact_match(prediction, question.answers), "f1": f1(prediction, question.answers)}
