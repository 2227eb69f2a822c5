"""What do smaller vectors cost? Flat against product quantisation at three code sizes, with the 64-shot reader."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import numpy as np
import psutil

from benchmarks.few_shot import reader
from benchmarks.few_shot.workspace import Workspace
from components.index.config import IndexConfig
from ralm.artifacts.manifest import open_artifact
from ralm.index.search import open_index

KINDS: dict[str, IndexConfig] = {
    "flat": IndexConfig(),
    **{f"PQ, {size} bytes": IndexConfig(kind="pq", code_size=size, rerank=0) for size in (96, 48, 24)},
}
COLUMNS = ("exact_match", "f1", "recall@1", "recall@5", "recall@20", "bytes_per_vector", "resident_mib")


def compare(space: Workspace, *, model: str, split: str) -> dict[str, list[dict[str, Any]]]:
    """Answers, recall and size with each kind of index."""
    config = dataclasses.replace(reader.EVALUATE, split=split)
    runs = {}
    for name, kind in KINDS.items():
        index = space.index(f"index {name}", model, kind)
        score = space.score(f"compressed {name}", model=model, index=index, config=config)
        recall = space.recall(model=model, index=index, split=split)
        runs[name] = [score | recall | index_size(index)]
    return runs


def index_size(index: str) -> dict[str, float]:
    """Bytes of a vector as it is searched, code book included, and the resident memory of the index, measured apart."""
    command = [sys.executable, "-m", "benchmarks.few_shot.compression", index]
    measured = subprocess.run(command, capture_output=True, text=True, check=True)
    details = open_artifact(index, "index").manifest.details
    return {"bytes_per_vector": details["bytes_per_vector"], **json.loads(measured.stdout)}


def measure_memory(index: str) -> float:
    """Resident memory in MiB of an open, searched index: of its second copy, since the first brings libraries in."""
    made_by = open_artifact(index, "index").manifest.details["passage_encoder"]
    process = psutil.Process()
    copies, resident = [], []
    for _ in range(2):
        copies.append(open_index(index, passage_encoder=made_by))
        copies[-1].search(np.ones((1, copies[-1].dimension), np.float32), 20)
        resident.append(process.memory_info().rss)
    return (resident[1] - resident[0]) / 2**20


if __name__ == "__main__":
    print(json.dumps({"resident_mib": measure_memory(sys.argv[1])}))
