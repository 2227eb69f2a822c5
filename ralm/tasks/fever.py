"""Fact checking: is a claim true, false, or can it not be said."""

from __future__ import annotations

from typing import Final

from ralm.errors import DataError
from ralm.tasks.base import Question, Task

LABEL_WORDS: Final = {"SUPPORTS": "true", "REFUTES": "false", "NOT ENOUGH INFO": "maybe"}
"""FEVER's labels and what the reader writes for them."""


class FactChecking(Task):
    """The task `fever`: the question is the claim, the label one of `LABEL_WORDS`; rows without one have no score."""

    metrics = ("accuracy",)
    is_plain = False
    needs_answers = False

    def answers(self, question: Question) -> tuple[str, ...]:
        """The label's word."""
        return () if question.label is None else (LABEL_WORDS[question.label],)

    def targets(self, question: Question) -> tuple[str, ...]:
        """The label's word."""
        return self.answers(question)

    def check(self, question: Question, *, is_learnt: bool = False) -> None:
        """Raise `DataError` for an unknown label, or none to learn."""
        if question.label is not None and question.label not in LABEL_WORDS:
            wanted = ", ".join(LABEL_WORDS)
            raise DataError(
                f"question {question.question_id!r}: label: expected one of {wanted}, found {question.label!r}"
            )
        super().check(question, is_learnt=is_learnt)
