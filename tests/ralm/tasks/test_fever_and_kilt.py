from __future__ import annotations

import numpy as np
import pytest

from ralm.errors import DataError
from ralm.tasks.base import Asked, Question, Tools
from ralm.tasks.catalog import TASKS, usable_questions
from ralm.tasks.config import TaskConfig
from tests.ralm.tasks.conftest import said


def row(task: str, **fields: object) -> Question:
    return Question(**{"question_id": "q1", "task": task, "question": "Emma is a film.", **fields})


def ask(question: Question) -> Asked:
    return TASKS[question.task].ask(question, 0, Tools(), np.random.default_rng(0))


@pytest.mark.parametrize(("label", "word"), [("SUPPORTS", "true"), ("REFUTES", "false"), ("NOT ENOUGH INFO", "maybe")])
def test_labels_become_words(label: str, word: str) -> None:
    """For kilt defect 27: the words were never applied there."""
    for question in (row("fever", label=label), row("kilt", answers=(label,))):
        assert ask(question).targets == ask(question).answers == (word,)
        assert TASKS[question.task].sought(question) == (), "no passage holds the word"


def test_fever_compares_letter_by_letter() -> None:
    question = row("fever", label="SUPPORTS")
    scores = [TASKS["fever"].score(question, [ask(question)], [said(text)]).metrics for text in ("true", "True")]
    assert scores == [{"accuracy": 1.0}, {"accuracy": 0.0}]


@pytest.mark.parametrize("task", ["fever", "kilt"])
def test_rows_without_an_answer_are_asked_but_not_scored(task: str) -> None:
    """Defect 27: KILT's test lines, which have no output, crashed."""
    question = row(task)
    used, _ = usable_questions([question], TaskConfig())
    assert ask(used[0]).answers == ()
    assert set(TASKS[task].score(question, [ask(question)], [said("true")]).metrics.values()) == {None}
    with pytest.raises(DataError, match="'q1': expected an answer to learn"):
        usable_questions([question], TaskConfig(), is_learnt=True)


def test_an_unknown_label() -> None:
    with pytest.raises(DataError, match="'q1': label: expected one of SUPPORTS, .*, found 'YES'"):
        usable_questions([row("fever", label="YES")], TaskConfig())


def test_kilt_scores_three_ways_over_all_answers() -> None:
    question = row("kilt", answers=("Jane Austen", "Austen"))
    scores = TASKS["kilt"].score(question, [ask(question)], [said("austen")]).metrics
    assert scores == {"accuracy": 0.0, "exact_match": 1.0, "f1": 1.0}
    assert TASKS["kilt"].sought(question) == question.answers
