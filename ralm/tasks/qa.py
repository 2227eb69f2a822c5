"""Open-domain question answering: short answers, scored by exact match and F1."""

from __future__ import annotations

from ralm.tasks.base import Question, Task


class QuestionAnswering(Task):
    """The task `qa`."""

    metrics = ("exact_match", "f1")
    is_plain = False

    def sought(self, question: Question) -> tuple[str, ...]:
        """The answers."""
        return self.answers(question)
