"""Every task by the name that question rows carry."""

from __future__ import annotations

from typing import Final

from ralm.errors import DataError
from ralm.tasks.base import Task
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
