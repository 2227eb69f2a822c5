"""Questions asked on the way are checked before the training starts."""

from __future__ import annotations

from typing import Any

import pytest

from ralm.errors import RalmError
from ralm.tasks.base import Question
from ralm.tasks.config import TaskConfig
from ralm.training.config import TrainingConfig
from ralm.training.evaluation import make_evaluation

CHOICES = {"task": "multiple_choice", "options": tuple("abcdefgh"), "label": "A"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"task": "qa", "answers": ("b",)}, "question 'q1': passages: file_passages expects some"),
        (CHOICES, "task.permutations: all asks question 'q1' 40320 times"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused_at_once(row: dict[str, Any], message: str) -> None:
    config = TrainingConfig(mode="reader_only", file_passages=True)
    question = Question(question_id="q1", question="?", **row)
    with pytest.raises(RalmError, match=message):
        make_evaluation([question], settings=TaskConfig(permutations="all"), config=config)
