"""What does it cost to keep the index fresh while the retriever learns, and what is it good for?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.few_shot import retriever
from benchmarks.few_shot.workspace import Workspace
from components.train.config import TrainConfig

RERANKED = 32
REFRESH_EVERY = 10
TRAIN = dataclasses.replace(retriever.TRAIN, num_steps=30)
MODES: dict[str, TrainConfig] = {
    "query side": dataclasses.replace(TRAIN, mode="query_side"),
    "stale index": TRAIN,
    f"best of {RERANKED} reranked": dataclasses.replace(TRAIN, num_reranked=RERANKED),
    f"new index every {REFRESH_EVERY} updates": dataclasses.replace(TRAIN, refresh_schedule=str(REFRESH_EVERY)),
}
COLUMNS = ("recall@1", "recall@5", "recall@20", "s_per_step")


def compare(
    space: Workspace, *, model: str, index: str, seeds: Sequence[int], split: str
) -> dict[str, list[dict[str, Any]]]:
    """Recall after equally many updates in each mode, and seconds an update."""
    return {
        name: [
            retriever.learn(space, f"{name}-{config.seed}", model=model, index=index, split=split, config=config)
            for config in (dataclasses.replace(mode, seed=seed) for seed in seeds)
        ]
        for name, mode in MODES.items()
    }
