"""Training examples and their order: which questions make up an update is a function of the seed and its number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ralm.errors import DataError
from ralm.tasks.base import Question
from ralm.tasks.catalog import task_of
from ralm.training.config import TargetChoice


@dataclass(frozen=True)
class Example:
    """One question as its task puts it, and the texts that are right for the reader to learn."""

    question: str
    targets: tuple[str, ...]


def make_examples(questions: Sequence[Question]) -> list[Example]:
    """Examples of question rows, in their order.

    Raises:
        DataError: no such task, several tasks, or a row that has nothing to learn.
    """
    task = task_of(questions)
    examples = []
    for question in questions:
        targets = tuple(target for target in task.targets(question) if target.strip())
        if not targets:
            raise DataError(f"question {question.question_id!r}: expected an answer to learn, found only empty ones")
        examples.append(Example(question=task.query(question), targets=targets))
    return examples


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
        permutation = np.random.default_rng([seed, epoch]).permutation(num_rows)
        rows.extend(permutation[offset : offset + batch_size - len(rows)].tolist())
    return rows


def choose_targets(examples: Sequence[Example], *, choice: TargetChoice, seed: int, step: int) -> list[str]:
    """The target of each example in one update."""
    if choice == "first":
        return [example.targets[0] for example in examples]
    generator = np.random.default_rng([seed, step, 1])
    return [example.targets[int(generator.integers(len(example.targets)))] for example in examples]
