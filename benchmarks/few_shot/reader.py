"""Does the reader learn from 64 questions? Zero-shot against 64-shot against closed book trained alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.few_shot.workspace import Workspace
from components.evaluate.config import EvaluateConfig
from components.train.config import TrainConfig

SHOTS = 64
NUM_PASSAGES = 2
TRAIN = TrainConfig(
    mode="reader_only",
    max_questions=SHOTS,
    num_steps=40,
    batch_size=4,
    micro_batch_size=2,
    num_passages=NUM_PASSAGES,
    learning_rate=5e-4,
    warmup_steps=2,
    dropout=0.1,
)
EVALUATE = EvaluateConfig(num_passages=NUM_PASSAGES, recall_at=(1,))
COLUMNS = ("exact_match", "f1", "recall@1", "recall@5", "recall@20", "s_per_step")


def compare(space: Workspace, *, seeds: Sequence[int], split: str) -> dict[str, list[dict[str, Any]]]:
    """Metrics by system, one entry for each seed."""
    model = space.model("model")
    index = space.index("index", model)
    recall = space.recall(model=model, index=index, split=split)
    with_passages = dataclasses.replace(EVALUATE, split=split)
    closed = dataclasses.replace(with_passages, closed_book=True)
    runs: dict[str, list[dict[str, Any]]] = {
        "zero-shot, closed book": [space.score("zero-closed", model=model, index=index, config=closed)],
        "zero-shot": [space.score("zero", model=model, index=index, config=with_passages) | recall],
        "64-shot, closed book": [],
        "64-shot": [],
    }
    for seed in seeds:
        config = dataclasses.replace(TRAIN, seed=seed)
        trained, times = space.train(f"reader-{seed}", model=model, index=index, config=config)
        score = space.score(f"reader-{seed}", model=trained, index=index, config=with_passages)
        runs["64-shot"].append(score | recall | times)
        name, config = f"closed-{seed}", dataclasses.replace(config, closed_book=True)
        trained, times = space.train(name, model=model, index=index, config=config)
        score = space.score(name, model=trained, index=index, config=closed)
        runs["64-shot, closed book"].append(score | times)
    return runs
