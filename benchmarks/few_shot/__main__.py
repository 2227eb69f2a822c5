"""Few-shot experiments on real questions: `python -m benchmarks.few_shot EXPERIMENT --data DIR --work DIR`.

`--data` holds the two public files that `data.py` names. Everything is made with the stages of the pipeline and kept in
`--work` and the store, so that a second call repeats nothing. Each experiment prints a Markdown table.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from benchmarks.few_shot import compression, freshness, reader, retriever, signals
from benchmarks.few_shot.tables import markdown
from benchmarks.few_shot.workspace import Workspace, open_workspace
from ralm.log import set_up_logging

WHOLE_CORPUS = 10_000


def run_reader(data: Path, work: Path, seeds: list[int], split: str) -> str:
    space = open_workspace(data, work, max_passages=WHOLE_CORPUS)
    return markdown(reader.compare(space, seeds=seeds, split=split), reader.COLUMNS)


def run_retriever(data: Path, work: Path, seeds: list[int], split: str) -> str:
    space, model, index = _weak_retriever(data, work)
    runs = retriever.compare(
        space, model=model, index=index, objectives=list(retriever.OBJECTIVES), seeds=seeds, split=split
    )
    return markdown(runs, retriever.COLUMNS, first="objective")


def run_signals(data: Path, work: Path, seeds: list[int], split: str) -> str:
    space, model, index = _weak_retriever(data, work)
    return markdown(signals.compare(space, model=model, index=index), signals.COLUMNS, first="objective")


def run_freshness(data: Path, work: Path, seeds: list[int], split: str) -> str:
    space, model, index = _weak_retriever(data, work)
    runs = freshness.compare(space, model=model, index=index, seeds=seeds, split=split)
    return markdown(runs, freshness.COLUMNS, first="mode")


def run_compression(data: Path, work: Path, seeds: list[int], split: str) -> str:
    space = open_workspace(data, work, max_passages=WHOLE_CORPUS)
    model, index = space.model("model"), space.index("index", space.place("model"))
    config = dataclasses.replace(reader.TRAIN, seed=seeds[0])
    trained, _ = space.train(f"reader-{seeds[0]}", model=model, index=index, config=config)
    return markdown(compression.compare(space, model=trained, split=split), compression.COLUMNS, first="index")


def _weak_retriever(data: Path, work: Path) -> tuple[Workspace, str, str]:
    whole = open_workspace(data, work, max_passages=WHOLE_CORPUS)
    space = open_workspace(data, work, max_passages=retriever.CORPUS)
    return space, *retriever.start_model(space, whole)


EXPERIMENTS = {
    "reader": run_reader,
    "retriever": run_retriever,
    "signals": run_signals,
    "freshness": run_freshness,
    "compression": run_compression,
}


def main() -> None:
    """Run one experiment and print its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_shot", description=__doc__)
    parser.add_argument("experiment", choices=sorted(EXPERIMENTS))
    parser.add_argument("--data", type=Path, required=True, help="folder with the two public files")
    parser.add_argument("--work", type=Path, required=True, help="folder for models, indices and predictions")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=["dev", "test"], default="test", help="questions that are scored")
    given = parser.parse_args()
    set_up_logging()
    print(EXPERIMENTS[given.experiment](given.data, given.work, given.seeds, given.split), flush=True)


if __name__ == "__main__":
    main()
