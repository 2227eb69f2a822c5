"""What happens between updates: questions are asked with the passages of training, and nothing is done in vain."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ralm.training.evaluation
import ralm.training.refresh
from components.train.config import TrainConfig
from components.train.stage import train
from ralm.training.learner import Learner
from tests.conftest import toy_questions

CONFIG = TrainConfig(
    mode="joint",
    num_steps=4,
    num_passages=3,
    num_reranked=30,
    retriever_learning_rate=0.05,
    warmup_steps=0,
    evaluate_every_steps=4,
    precision="fp32",
)


@pytest.fixture
def inputs(toy_passages: str, toy_index: str, tiny_model: str, toy_questions_artifact: str) -> dict[str, str]:
    return {"passages": toy_passages, "index": toy_index, "model": tiny_model, "questions": toy_questions_artifact}


def test_evaluation_on_the_way_reranks_as_training_does(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its passages are the best by the encoder of now, not by the index of before."""
    seen: list[tuple[list[int], list[int], list[int]]] = []
    original = ralm.training.evaluation._source

    def watch(learner: Learner, searcher: Any, *rest: Any) -> Any:
        source, refresher = original(learner, searcher, *rest), searcher.retriever
        ids_N = refresher.index.passage_ids
        vector_ND = learner.embed_passages(refresher.passages.get(ids_N))
        for row in toy_questions("dev"):
            question_BD = source.encode([str(row["question"])])
            (passages,) = source.searcher.find(question_BD, 3, [None]).passages
            best_K = np.argsort(-(question_BD @ vector_ND.T)[0], kind="stable")[:3]
            before_K = refresher.index.search(question_BD, 3)[1][0]
            seen.append(([item.passage_id for item in passages], ids_N[best_K].tolist(), ids_N[before_K].tolist()))
        return source

    monkeypatch.setattr(ralm.training.evaluation, "_source", watch)
    train(**inputs, trained=str(tmp_path / "trained"), config=CONFIG)
    assert len(seen) == 6
    assert all(found == best for found, best, _ in seen)
    assert any(found != before for found, _, before in seen), "the encoder has moved away from the index"


def test_an_index_is_not_renewed_while_its_encoder_stands_still(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed: list[int] = []
    original = ralm.training.refresh.IndexRefresher.refresh

    def watch(self: Any, step: int, **rest: Any) -> bool:
        renewed.append(step)
        return original(self, step, **rest)

    monkeypatch.setattr(ralm.training.refresh.IndexRefresher, "refresh", watch)
    config = dataclasses.replace(
        CONFIG, num_steps=6, num_reranked=0, evaluate_every_steps=0, refresh_schedule="1", freeze_retriever_steps=3
    )
    train(**inputs, trained=str(tmp_path / "trained"), config=config)
    assert renewed == [4, 5]
