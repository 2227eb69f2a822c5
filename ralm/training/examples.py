"""Training examples and their order: what is learnt in an update is a function of the seed and its number."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ralm.tasks.base import MAX_COPIES, FilePassage, Question, Task, Tools
from ralm.tasks.catalog import task_of, usable_questions
from ralm.tasks.config import TaskConfig
from ralm.training.config import TargetChoice


@dataclass(frozen=True)
class Example:
    """One question as its task puts it."""

    question: str
    """What is asked, before the model's formats."""
    target: str
    """What is learnt, before the reader's format."""
    source_id: str | None = None
    """Source or id of the passages that must not be retrieved."""
    passages: tuple[FilePassage, ...] = ()
    """The passages that come with the question."""


class TrainingSet:
    """Examples of one task, in an order fixed by the seed. Made by `make_training_set`.

    Each pass over the set asks every row once, in each of its ways (see `Task.num_copies`); a row with more than
    `MAX_COPIES` of them is asked so many times, in random ways.

    Attributes:
        task: of all rows.
        skipped: rows that the task left out, by reason.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        *,
        task: Task,
        tools: Tools,
        target_choice: TargetChoice,
        seed: int,
        skipped: Mapping[str, int],
    ) -> None:
        self.task, self.skipped = task, dict(skipped)
        self._questions, self._tools = questions, tools
        self._target_choice, self._seed = target_choice, seed
        self._ends = np.cumsum([min(task.num_copies(question, tools), MAX_COPIES) for question in questions])

    def __len__(self) -> int:
        """Examples in one pass."""
        return int(self._ends[-1])

    def batch(self, step: int, batch_size: int) -> list[Example]:
        """The examples of one update.

        Args:
            step: number of the update, 0 for the first.
            batch_size: examples in it; may exceed the size of the set, which is then passed several times.
        """
        rows = batch_rows(step, num_rows=len(self), batch_size=batch_size, seed=self._seed)
        generator = np.random.default_rng([self._seed, step, 1])
        return [self._example(row, generator) for row in rows]

    def _example(self, row: int, generator: np.random.Generator) -> Example:
        number = int(np.searchsorted(self._ends, row, side="right"))
        question = self._questions[number]
        copy, num_copies = (
            row - (int(self._ends[number - 1]) if number else 0),
            self.task.num_copies(question, self._tools),
        )
        if num_copies > MAX_COPIES:  # too many to ask each: any of them
            copy = int.from_bytes(generator.bytes(16)) % num_copies
        asked = self.task.ask(question, copy, self._tools, generator)
        place = 0 if self._target_choice == "first" else int(generator.integers(len(asked.targets)))
        return Example(asked.query, asked.targets[place], question.source_id, question.passages)


def make_training_set(
    questions: Sequence[Question],
    *,
    settings: TaskConfig,
    tokenizer: Any,
    max_input_tokens: int,
    target_choice: TargetChoice,
    seed: int,
    question_format: str = "{question}",
) -> TrainingSet:
    """The training set of question rows.

    Args:
        questions: rows of one task.
        settings: choices of the tasks.
        tokenizer: the reader's.
        max_input_tokens: longest input of the reader.
        target_choice: which of several right texts is learnt: the first, or a random one each time.
        seed: of the order, the choice of targets and every other chance.
        question_format: the reader's, for limits that count what is around the question.

    Raises:
        DataError: no such task, several tasks, a row that has nothing to learn, or none that is used.
    """
    used, skipped = usable_questions(questions, settings, is_learnt=True)
    tools = Tools(
        settings=settings, tokenizer=tokenizer, max_input_tokens=max_input_tokens, question_format=question_format
    )
    task = task_of(used)
    return TrainingSet(used, task=task, tools=tools, target_choice=target_choice, seed=seed, skipped=skipped)


def batch_rows(step: int, *, num_rows: int, batch_size: int, seed: int) -> list[int]:
    """Rows of one update: a piece of an endless stream of epochs, each a seeded permutation of all rows.

    Batches are always full: the one at the end of an epoch goes on with the start of the next, so each row is used
    exactly once in each epoch whatever the batch size.

    Args:
        step: number of the update, 0 for the first.
        num_rows: number of examples.
        batch_size: examples in an update.
        seed: chooses the permutations.

    Example:
        >>> order = [row for step in range(3) for row in batch_rows(step, num_rows=6, batch_size=4, seed=0)]
        >>> sorted(order[:6]), sorted(order[6:])
        ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    """
    rows: list[int] = []
    position = step * batch_size
    while len(rows) < batch_size:
        epoch, offset = divmod(position + len(rows), num_rows)
        permutation = _permutation(seed, epoch, num_rows)
        rows.extend(permutation[offset : offset + batch_size - len(rows)].tolist())
    return rows


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_rows)
