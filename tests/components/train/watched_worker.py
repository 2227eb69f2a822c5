"""A worker that trains and writes down what it retrieved: `torchrun ... watched_worker.py JSON`. Used by the tests."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from components.train.config import TrainConfig
from components.train.stage import train
from ralm.cli import parse_config
from ralm.training.batches import Batches


def work(job: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """Train as `job` says, and write the ids of all passages by update and question."""
    rank = os.environ.get("RANK", "0")
    take = Batches.take
    seen: list[list[list[int]]] = []

    def watch(self: Batches, step: int) -> Any:
        batch = take(self, step)
        seen.append([[passage.passage_id for passage in of_one] for of_one in batch.passages])
        return batch

    patch.setattr(Batches, "take", watch)
    train(**job["arguments"], config=parse_config(TrainConfig, json.dumps(job["config"])))
    (Path(job["seen"]) / f"rank-{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as own:
        work(json.loads(sys.argv[1]), own)
