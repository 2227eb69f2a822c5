"""How good retrieved passages are: rank of the first with an answer or of a gold page, recall, reciprocal rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from ralm.evaluation.normalise import AnswerFinder, normalise_title


class TitledText(Protocol):
    """A passage as far as recall is concerned."""

    @property
    def title(self) -> str:
        """Title of its page."""

    @property
    def text(self) -> str:
        """Its own text."""


def holds_answer(passage: TitledText, finder: AnswerFinder) -> bool:
    """True if the title or the text holds an answer as a whole token sequence."""
    return finder.is_in(passage.text) or finder.is_in(passage.title)


def answer_rank(passages: Sequence[TitledText], answers: Sequence[str]) -> int | None:
    """Rank (1 is the best) of the first passage that holds an answer, None if none does."""
    finder = AnswerFinder(answers)
    return _first_true(holds_answer(passage, finder) for passage in passages)


def title_rank(passages: Sequence[TitledText], titles: Sequence[str]) -> int | None:
    """Rank (1 is the best) of the first passage of a gold page, None if none is there."""
    wanted = {normalise_title(title) for title in titles}
    return _first_true(normalise_title(passage.title) in wanted for passage in passages)


def recall_at(ranks: Sequence[int | None], k: int) -> float:
    """Share of questions whose rank is k or better, in [0, 1].

    Example:
        >>> recall_at([1, 7, None, 3], 5)
        0.5
    """
    return sum(rank is not None and rank <= k for rank in ranks) / len(ranks)


def mean_reciprocal_rank(ranks: Sequence[int | None]) -> float:
    """Mean of 1 / rank, 0 where nothing was found, in [0, 1].

    Example:
        >>> mean_reciprocal_rank([1, 2, None, None])
        0.375
    """
    return sum(1 / rank for rank in ranks if rank is not None) / len(ranks)


def retrieval_metrics(
    answer_ranks: Sequence[int | None], title_ranks: Sequence[int | None], cutoffs: Sequence[int]
) -> dict[str, float]:
    """Recall at each cut-off and mean reciprocal rank, all in [0, 1].

    Args:
        answer_ranks: of each question that has answers.
        title_ranks: of each question that names a gold page; the metrics by title are left out when there is none.
        cutoffs: the k of recall at k.
    """
    metrics: dict[str, float] = {}
    if answer_ranks:
        metrics |= {f"recall_at_{k}": recall_at(answer_ranks, k) for k in cutoffs}
        metrics["mrr"] = mean_reciprocal_rank(answer_ranks)
    if title_ranks:
        metrics |= {f"recall_title_at_{k}": recall_at(title_ranks, k) for k in cutoffs}
    return metrics


def _first_true(flags: Iterable[bool]) -> int | None:
    return next((rank for rank, flag in enumerate(flags, start=1) if flag), None)
