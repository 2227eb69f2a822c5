from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ralm.errors import DataError
from ralm.tasks.base import Asked, Question, Read, Tools
from ralm.tasks.catalog import task_named, usable_questions
from ralm.tasks.config import TaskConfig

QUESTION = Question(question_id="q1", task="qa", question="who?", answers=("Ann", "Ann Lee"))


def ask(question: Question) -> Asked:
    return task_named("qa").ask(question, 0, Tools(), np.random.default_rng(0))


def said(text: str) -> Read:
    return SimpleNamespace(candidates=[SimpleNamespace(text=text)], option_logits=None)


def test_targets_are_the_rows_own_or_all_answers() -> None:
    assert ask(QUESTION) == Asked(query="who?", targets=("Ann", "Ann Lee"), answers=("Ann", "Ann Lee"))
    own = Question(question_id="q2", task="qa", question="who?", answers=("Ann",), target="Lee")
    assert ask(own).targets == ("Lee",)


def test_scores_carry_every_metric() -> None:
    task = task_named("qa")
    assert task.score(QUESTION, [ask(QUESTION)], [said("the ann")]).metrics == {"exact_match": 1.0, "f1": 1.0}
    assert set(task.score(QUESTION, [ask(QUESTION)], [said("")]).metrics) == set(task.metrics)


def test_a_row_with_only_a_target_is_scored_against_it() -> None:
    """Defect 13, second half: such rows were compared with a text that held a sentinel."""
    row = Question(question_id="q1", task="qa", question="who?", target="Ann")
    assert task_named("qa").score(row, [ask(row)], [said("Ann")]).metrics == {"exact_match": 1.0, "f1": 1.0}


def test_bad_rows_and_names() -> None:
    with pytest.raises(DataError, match="'q3'.*at least one answer"):
        task_named("qa").check(Question(question_id="q3", task="qa", question="who?"))
    with pytest.raises(DataError, match=r"expected one of .*qa.*, found 'quiz'"):
        task_named("quiz")


def test_one_task_in_a_split() -> None:
    other = Question(question_id="q2", task="base", question="who?", target="Ann")
    with pytest.raises(DataError, match="expected one task in a split, found base, qa"):
        usable_questions([QUESTION, other], TaskConfig())
