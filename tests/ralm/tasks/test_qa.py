from __future__ import annotations

import pytest

from ralm.errors import DataError
from ralm.tasks.base import Question
from ralm.tasks.catalog import task_named

QUESTION = Question(question_id="q1", task="qa", question="who?", answers=("Ann", "Ann Lee"))


def test_targets_are_the_rows_own_or_all_answers() -> None:
    task = task_named("qa")
    assert task.targets(QUESTION) == ("Ann", "Ann Lee")
    own = Question(question_id="q2", task="qa", question="who?", answers=("Ann",), target="Lee")
    assert task.targets(own) == ("Lee",)


def test_scores_carry_every_metric() -> None:
    task = task_named("qa")
    assert task.query(QUESTION) == "who?"
    assert task.score(QUESTION, "the ann") == {"exact_match": 1.0, "f1": 1.0}
    assert set(task.score(QUESTION, "")) == set(task.metrics)


def test_bad_rows_and_names() -> None:
    with pytest.raises(DataError, match="'q3'.*at least one answer"):
        task_named("qa").check(Question(question_id="q3", task="qa", question="who?"))
    with pytest.raises(DataError, match="expected one of qa, found 'quiz'"):
        task_named("quiz")
