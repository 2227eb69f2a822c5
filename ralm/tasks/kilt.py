"""KILT: eleven sets of questions, claims, dialogues and entities over one Wikipedia, in one format."""

from __future__ import annotations

from ralm.tasks.base import Question, Task
from ralm.tasks.fever import LABEL_WORDS


class Kilt(Task):
    """The task `kilt`: rows without an answer (KILT's test files) may be asked; they have no score.

    A row is of KILT's FEVER if all its answers are FEVER labels: they are then written as true, false or maybe.
    """

    metrics = ("exact_match", "accuracy", "f1")
    is_plain = False
    needs_answers = False

    def answers(self, question: Question) -> tuple[str, ...]:
        """The answers; FEVER's labels as words."""
        if self._is_claim(question):
            return tuple(LABEL_WORDS[answer] for answer in question.answers)
        return super().answers(question)

    def sought(self, question: Question) -> tuple[str, ...]:
        """The answers, but not a claim's label."""
        return () if self._is_claim(question) else self.answers(question)

    def _is_claim(self, question: Question) -> bool:
        return bool(question.answers) and all(answer in LABEL_WORDS for answer in question.answers)
