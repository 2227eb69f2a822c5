"""The model's formats as a task uses them."""

from __future__ import annotations

import dataclasses

from ralm.reader.config import ReaderConfig
from ralm.retriever.config import RetrieverConfig
from ralm.tasks.base import Task


def task_formats(task: Task, reader: ReaderConfig, retriever: RetrieverConfig) -> tuple[ReaderConfig, RetrieverConfig]:
    """Settings of reader and retriever to compute a task with.

    A plain task (base, mlm, lm, section) asks a text as it is: without question and target formats, and as long as a
    passage. The model keeps its own settings; these are only used while it computes.

    Example:
        >>> from ralm.tasks.catalog import TASKS
        >>> reader, retriever = task_formats(TASKS["base"], ReaderConfig(), RetrieverConfig())
        >>> reader.question_format, retriever.max_question_tokens
        ('{question}', 256)
    """
    if not task.is_plain:
        return reader, retriever
    longest = max(retriever.max_question_tokens, retriever.max_passage_tokens)
    return (
        dataclasses.replace(reader, question_format="{question}", target_format="{target}"),
        dataclasses.replace(retriever, question_format="{question}", max_question_tokens=longest),
    )
