"""Every task by the name that question rows carry, and the rows of a split that a task uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from ralm.errors import DataError
from ralm.tasks.base import Question, Task
from ralm.tasks.config import TaskConfig
from ralm.tasks.fever import FactChecking
from ralm.tasks.kilt import Kilt
from ralm.tasks.lm import LanguageModelling
from ralm.tasks.mlm import MaskedLanguageModelling
from ralm.tasks.multiple_choice import MultipleChoice
from ralm.tasks.qa import QuestionAnswering
from ralm.tasks.section import SectionWriting

TASKS: Final[dict[str, Task]] = {
    "base": Task(),
    "fever": FactChecking(),
    "kilt": Kilt(),
    "lm": LanguageModelling(),
    "mlm": MaskedLanguageModelling(),
    "multiple_choice": MultipleChoice(),
    "qa": QuestionAnswering(),
    "section": SectionWriting(),
}


def task_named(name: str) -> Task:
    """The task of this name.

    Raises:
        DataError: there is none.
    """
    if name not in TASKS:
        raise DataError(f"task: expected one of {', '.join(sorted(TASKS))}, found {name!r}")
    return TASKS[name]


def task_of(questions: Sequence[Question]) -> Task:
    """The task that all questions share.

    Raises:
        DataError: no such task, or several tasks in one split.
    """
    names = sorted({question.task for question in questions})
    if len(names) != 1:
        raise DataError(f"questions: expected one task in a split, found {', '.join(names)}")
    return task_named(names[0])


def usable_questions(
    questions: Sequence[Question], settings: TaskConfig, *, is_learnt: bool = False
) -> tuple[list[Question], dict[str, int]]:
    """The rows that their task uses, each of them checked.

    Args:
        questions: rows of one task.
        settings: decide what is skipped.
        is_learnt: True where the rows are to be learnt and so must have a target.

    Returns:
        The rows, in order, and how many were left out by reason (`skipped_REASON`).

    Raises:
        DataError: no such task, several tasks, a row that its task cannot use, or none left.
    """
    task = task_of(questions)
    used, skipped = [], Counter[str]()
    for question in questions:
        if reason := task.reason_to_skip(question, settings):
            skipped[f"skipped_{reason}"] += 1
            continue
        task.check(question, is_learnt=is_learnt)
        used.append(question)
    if not used:
        raise DataError(f"questions: all {len(questions)} rows were skipped: {dict(skipped)}")
    return used, dict(sorted(skipped.items()))
