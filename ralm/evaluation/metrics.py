"""Scores of one prediction, means over questions, and the interval of a difference between two evaluations."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from ralm.evaluation.normalise import normalise_answer
from ralm.evaluation.rouge import rouge_1, rouge_2, rouge_l

RESAMPLES_AT_ONCE = 256


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction equals any answer after SQuAD normalisation, else 0.0.

    Source: SQuAD v1.1 evaluation script (Rajpurkar et al. 2016).

    Example:
        >>> exact_match("The Beatles.", ["Beatles", "Fab Four"])
        1.0
    """
    found = normalise_answer(prediction)
    return float(any(found == normalise_answer(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of token precision and recall (as multisets), best over the answers, in [0, 1].

    Source: SQuAD v1.1 evaluation script; 0.0 when no token is shared, also for two empty texts.

    Example:
        >>> round(f1("Abraham Lincoln", ["Lincoln"]), 3)
        0.667
    """
    predicted = normalise_answer(prediction).split()
    return max((_f1(predicted, normalise_answer(answer).split()) for answer in answers), default=0.0)


def _f1(predicted: list[str], expected: list[str]) -> float:
    num_shared = sum((Counter(predicted) & Counter(expected)).values())
    if num_shared == 0:
        return 0.0
    precision, recall = num_shared / len(predicted), num_shared / len(expected)
    return 2 * precision * recall / (precision + recall)


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction is one of the answers, letter by letter, else 0.0.

    Example:
        >>> accuracy("true", ["true"]), accuracy("True", ["true"])
        (1.0, 0.0)
    """
    return float(prediction in answers)


METRICS: Final[dict[str, Callable[[str, Sequence[str]], float]]] = {
    "accuracy": accuracy,
    "exact_match": exact_match,
    "f1": f1,
    "rouge_1": rouge_1,
    "rouge_2": rouge_2,
    "rouge_l": rouge_l,
}
"""Scores of a prediction against the answers that are right, by name; each is in [0, 1]."""


def mean_scores(scores: Sequence[Mapping[str, float | None]], names: Sequence[str]) -> dict[str, float]:
    """Mean of each named score over the questions that have it; a score that no question has is left out.

    Example:
        >>> mean_scores([{"f1": 1.0}, {"f1": 0.5}, {"f1": None}], ["f1"])
        {'f1': 0.75}
    """
    found = {name: [value for score in scores if (value := score[name]) is not None] for name in names}
    return {name: float(np.mean(values, dtype=np.float64)) for name, values in found.items() if values}


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean difference between two evaluations of the same questions, with its confidence interval."""

    value: float
    """Mean of after minus before."""
    low: float
    high: float
    confidence: float
    """Share of resamples inside low..high."""
    resamples: int


def paired_difference(
    before: Sequence[float], after: Sequence[float], *, resamples: int, seed: int, confidence: float = 0.95
) -> Difference:
    """Mean of `after - before` with a paired percentile bootstrap interval over questions.

    Source: Efron and Tibshirani 1993, chapter 13; paired by question as in Berg-Kirkpatrick et al. 2012.

    Args:
        before: one score per question.
        after: scores of the same questions in the same order.
        resamples: how many samples of questions, drawn with replacement.
        seed: of the draws; equal seeds give equal intervals.
        confidence: share of resampled means inside the interval.

    Example:
        >>> paired_difference([0, 0], [1, 1], resamples=100, seed=0)
        Difference(value=1.0, low=1.0, high=1.0, confidence=0.95, resamples=100)
    """
    gain_N = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        count = min(RESAMPLES_AT_ONCE, resamples - start)
        means.append(gain_N[generator.integers(0, len(gain_N), size=(count, len(gain_N)))].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(float(gain_N.mean()), float(low), float(high), confidence, resamples)
