"""Every task by the name that question rows carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ralm.errors import DataError
from ralm.tasks.base import Question, Task
from ralm.tasks.qa import QuestionAnswering

TASKS: Final[dict[str, Task]] = {"qa": QuestionAnswering()}


def task_named(name: str) -> Task:
    """The task of this name.

    Raises:
        DataError: there is none.
    """
    if name not in TASKS:
        raise DataError(f"task: expected one of {', '.join(sorted(TASKS))}, found {name!r}")
    return TASKS[name]


def task_of(questions: Sequence[Question]) -> Task:
    """The task that all questions share, after each of them was checked.

    Raises:
        DataError: no such task, several tasks in one split, or a row that its task cannot score.
    """
    names = sorted({question.task for question in questions})
    if len(names) != 1:
        raise DataError(f"questions: expected one task in a split, found {', '.join(names)}")
    task = task_named(names[0])
    for question in questions:
        task.check(question)
    return task
