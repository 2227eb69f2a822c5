"""Write the text of a section, given the titles of its page and its own."""

from __future__ import annotations

from ralm.errors import DataError
from ralm.tasks.base import Question
from ralm.tasks.config import TaskConfig
from ralm.tasks.text import TextTask


class SectionWriting(TextTask):
    """The task `section`: the question is the text; `title` and `section` stand in the metadata."""

    def query(self, question: Question) -> str:
        """Both titles."""
        return f"{question.metadata['title']}, {question.metadata['section']}"

    def answers(self, question: Question) -> tuple[str, ...]:
        """The text."""
        return (question.question,)

    def targets(self, question: Question) -> tuple[str, ...]:
        """The text."""
        return (question.question,)

    def check(self, question: Question, *, is_learnt: bool = False) -> None:
        """Raise `DataError` if the page's title is missing."""
        if not question.metadata.get("title"):
            raise DataError(f"question {question.question_id!r}: metadata: expected a title, found none")

    def reason_to_skip(self, question: Question, settings: TaskConfig) -> str | None:
        """Also texts that are not in a section."""
        return super().reason_to_skip(question, settings) or (
            None if question.metadata.get("section") else "without_section"
        )
