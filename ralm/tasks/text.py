"""What the tasks on bare texts (mlm, lm, section) share: the row's `question` is a text of the corpus."""

from __future__ import annotations

from ralm.tasks.base import Question, Task
from ralm.tasks.config import TaskConfig


class TextTask(Task):
    """A task that makes question and target out of a text. Its `source_id` keeps the text itself from being found."""

    metrics = ("f1", "accuracy", "rouge_1", "rouge_2", "rouge_l")
    fewest_words: int = 1
    """Texts with fewer words cannot be used."""

    def check(self, question: Question, *, is_learnt: bool = False) -> None:
        """Every text that is not skipped will do."""

    def reason_to_skip(self, question: Question, settings: TaskConfig) -> str | None:
        """Empty texts, and those with fewer than `min_words` words or too few to make a question of."""
        num_words = len(question.question.split())
        if num_words == 0:
            return "empty_text"
        return "short_text" if num_words < max(settings.min_words, self.fewest_words) else None
