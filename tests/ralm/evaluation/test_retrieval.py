from __future__ import annotations

import dataclasses

import pytest

from ralm.evaluation.retrieval import answer_rank, mean_reciprocal_rank, recall_at, retrieval_metrics, title_rank


@dataclasses.dataclass(frozen=True)
class Text:
    title: str
    text: str


PASSAGES = [Text("Music", "museum of arts"), Text("Achilles", "a novel by Madeline Miller"), Text("Achilles", "heel")]


def test_ranks() -> None:
    assert answer_rank(PASSAGES, ["Miller"]) == 2
    assert answer_rank(PASSAGES, ["us"]) is None
    assert answer_rank(PASSAGES, ["music"]) == 1, "the title counts too"
    assert answer_rank(PASSAGES, ["Achilles a"]) is None, "but an answer does not run from the title into the text"
    assert title_rank(PASSAGES, ["achilles"]) == 2
    assert title_rank(PASSAGES, ["Achil"]) is None


def test_recall_and_reciprocal_rank() -> None:
    ranks = [1, 6, None, 2]
    assert [recall_at(ranks, k) for k in (1, 2, 5, 6)] == [0.25, 0.5, 0.5, 0.75]
    assert mean_reciprocal_rank(ranks) == pytest.approx((1 + 1 / 6 + 1 / 2) / 4)


def test_metrics_by_title_need_titles() -> None:
    with_titles = retrieval_metrics([1, None], [3], [1, 5])
    assert with_titles == {
        "recall_at_1": 0.5,
        "recall_at_5": 0.5,
        "mrr": 0.5,
        "recall_title_at_1": 0.0,
        "recall_title_at_5": 1.0,
    }
    assert "recall_title_at_1" not in retrieval_metrics([1], [], [1])
