"""Multiple choice: the reader names the letter of an option; its preference for places is averaged out.

Shapes: `P` orders of the options, `O` options.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from ralm.errors import DataError
from ralm.tasks.base import Asked, Question, Read, Scored, Task, Tools
from ralm.tasks.config import Permutations
from ralm.tasks.mmlu_subjects import SUBJECT_GROUPS

LETTERS: Final = string.ascii_uppercase


class MultipleChoice(Task):
    """The task `multiple_choice`: 1 to 26 options, the label is the letter of the right one."""

    metrics = ("debiased_accuracy", "accuracy", "choice_accuracy")
    """`debiased_accuracy`: the most probable option over all orders is right. `accuracy`: share of orders in which the
    generated text is the right letter. `choice_accuracy`: the most probable letter in the order of the row is right."""
    is_plain = False
    needs_answers = False

    def answers(self, question: Question) -> tuple[str, ...]:
        """The letter in the order of the row."""
        return question.answers[:1] if question.label is None else (question.label,)

    def targets(self, question: Question) -> tuple[str, ...]:
        """The same letter; a target of the row says nothing."""
        return self.answers(question)

    def sought(self, question: Question) -> tuple[str, ...]:
        """The text of the right option."""
        return tuple(question.options[LETTERS.index(letter)] for letter in self.answers(question))

    def check(self, question: Question, *, is_learnt: bool = False) -> None:
        """Raise `DataError` unless there are 1 to 26 options and the label is the letter of one."""
        count = len(question.options)
        if not 1 <= count <= len(LETTERS):
            raise DataError(f"question {question.question_id!r}: options: expected 1 to 26, found {count}")
        for letter in self.answers(question):
            if letter not in tuple(LETTERS[:count]):
                raise DataError(
                    f"question {question.question_id!r}: label: expected A to {LETTERS[count - 1]}, found {letter!r}"
                )
        super().check(question, is_learnt=is_learnt)

    def num_copies(self, question: Question, tools: Tools) -> int:
        """The number of orders of the options."""
        return num_orders(len(question.options), tools.settings.permutations)

    def ask(self, question: Question, copy: int, tools: Tools, generator: np.random.Generator) -> Asked:
        """The question with its options in one of their orders."""
        order = order_of(copy, len(question.options), tools.settings.permutations)
        shown = " ".join(f"({letter}) {question.options[i]}" for letter, i in zip(LETTERS, order, strict=False))
        letters = tuple(LETTERS[order.index(LETTERS.index(letter))] for letter in self.answers(question))
        return Asked(
            query=fit_question(question.question, f" options: {shown}", tools),
            targets=letters,
            answers=letters,
            options=tuple(LETTERS[: len(order)]),
            order=order,
        )

    def score(self, question: Question, asked: Sequence[Asked], reads: Sequence[Read]) -> Scored:
        """See `metrics`; the probabilities are those over all orders, by the options' order in the row."""
        logit_PO = np.array([read.option_logits for read in reads], dtype=np.float64)
        probability_O = debiased_probabilities(logit_PO, np.array([item.order for item in asked]))
        texts = [read.candidates[0].text for read in reads]
        values: dict[str, float | None] = dict.fromkeys(self.metrics)
        if asked[0].answers:
            right = LETTERS.index(asked[0].answers[0])
            values = {
                "debiased_accuracy": float(probability_O.argmax() == right),
                "accuracy": float(np.mean([text in item.answers for text, item in zip(texts, asked, strict=True)])),
                "choice_accuracy": float(logit_PO[0].argmax() == right),
            }
        return Scored(
            metrics=values,
            choice_probabilities=tuple(probability_O.tolist()),
            metadata={
                "choice": LETTERS[int(probability_O.argmax())],
                "permutations": [
                    {"order": list(item.order), "generation": text, "choice_logits": logit_O.tolist()}
                    for item, text, logit_O in zip(asked, texts, logit_PO, strict=True)
                ],
            },
        )

    def group(self, question: Question) -> str | None:
        """The group of an MMLU subject that the metadata names."""
        return SUBJECT_GROUPS.get(str(question.metadata.get("subject", "")))


def num_orders(count: int, permutations: Permutations) -> int:
    """How many orders of `count` options there are: 1, `count` rotations, or `count` factorial."""
    return {"single": 1, "cyclic": count, "all": math.factorial(count)}[permutations]


def order_of(number: int, count: int, permutations: Permutations) -> tuple[int, ...]:
    """One order of options, computed without listing the others; number 0 is the order as given.

    Example:
        >>> [order_of(number, 3, "cyclic") for number in range(3)]
        [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
        >>> order_of(5, 3, "all"), order_of(math.factorial(26) - 1, 26, "all")[:3]
        ((2, 1, 0), (25, 24, 23))
    """
    if permutations != "all":
        return tuple((place + number) % count for place in range(count))
    rest, order = list(range(count)), []
    for left in range(count - 1, -1, -1):
        place, number = divmod(number, math.factorial(left))
        order.append(rest.pop(place))
    return tuple(order)


def debiased_probabilities(logit_PO: np.ndarray, order_PO: np.ndarray) -> np.ndarray:
    """Probability of each option, averaged over the orders in which they were shown.

    Source: Atlas (arXiv 2208.03299), section 4.1, "De-biased inference"; by number of the option, so that options with
    equal texts stay apart.

    Args:
        logit_PO: logit of the letter in each place.
        order_PO: number of the option in each place.

    Example:
        >>> logits, orders = np.log([[0.8, 0.2], [0.6, 0.4]]), np.array([[0, 1], [1, 0]])
        >>> debiased_probabilities(logits, orders).round(2)
        array([0.6, 0.4])
    """
    weight_PO = np.exp(logit_PO - logit_PO.max(axis=1, keepdims=True))
    probability_PO = weight_PO / weight_PO.sum(axis=1, keepdims=True)
    return np.take_along_axis(probability_PO, np.argsort(order_PO, axis=1), axis=1).mean(axis=0)


def fit_question(question: str, options: str, tools: Tools) -> str:
    """Question and options, the question cut at its start until all fits into `max_query_tokens` reader tokens.

    The reader's own format around it counts. Options are never cut, even where they are too long alone.
    """
    while question:
        text = question + options
        if tools.tokenizer is None:
            return text
        excess = _count(tools.tokenizer, tools.question_format.format(question=text)) - tools.settings.max_query_tokens
        if excess <= 0:
            return text
        offsets = _offsets(tools.tokenizer, question)
        start = max(offsets[excess][0], 1) if excess < len(offsets) else len(question)
        question = question[start:].lstrip()
    return options.lstrip()


def _count(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _offsets(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    found = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    return list(found["offset_mapping"])
