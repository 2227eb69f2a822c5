"""The quickstart's claims with several seeds: exact match before and after training, against closed-book training.

Usage: python benchmarks/quickstart_quality.py [SEED ...]        (default: 0 1 2)
Needs what `ralm quickstart` fetches; everything is kept in $RALM_HOME and reused. Prints a Markdown table of the test
questions. Closed book: the same reader, questions, updates and learning rate, without passages in training and test.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from components.download.stage import download
from components.embed.stage import embed
from components.evaluate.config import EvaluateConfig
from components.evaluate.stage import evaluate
from components.index.stage import index
from components.train.stage import train
from pipelines.recipes import quickstart
from ralm.artifacts.files import read_json
from ralm.log import set_up_logging

QUESTIONS = str(Path(__file__).resolve().parents[1] / "examples" / "quickstart" / "questions")
METRICS = ("exact_match", "f1", "recall_title_at_10", "recall_at_10")


def measure(folder: Path, seeds: list[int]) -> dict[str, list[dict[str, Any]]]:
    """Metrics of the test questions by system, one entry for each seed."""
    recipe = quickstart()
    places = {name: str(folder / name) for name in ("passages", "questions", "model", "embeddings", "index")}
    download(source=recipe.sources.passages, passages=places["passages"], config=recipe.download)
    download(source=QUESTIONS, questions=places["questions"], config=recipe.download)
    download(source=recipe.sources.model, model=places["model"], config=recipe.download)
    embed(passages=places["passages"], model=places["model"], embeddings=places["embeddings"], config=recipe.embed)
    index(embeddings=places["embeddings"], index=places["index"], config=recipe.index)
    corpus: dict[str, Any] = {name: places[name] for name in ("passages", "index", "questions")}
    closed_test = dataclasses.replace(recipe.evaluate, closed_book=True)
    closed_train = dataclasses.replace(recipe.train, mode="reader_only", closed_book=True)

    def score(name: str, model: str, config: EvaluateConfig) -> dict[str, Any]:
        place = str(folder / f"predictions-{name}")
        evaluate(**corpus, model=model, predictions=place, config=config)
        return dict(read_json(f"{place}/metrics.json"))

    found: dict[str, list[dict[str, Any]]] = {"before training": [], "after training": [], "closed book, trained": []}
    found["before training"].append(score("before", places["model"], recipe.evaluate))
    for seed in seeds:
        for name, config, test in (
            ("after training", recipe.train, recipe.evaluate),
            ("closed book, trained", closed_train, closed_test),
        ):
            model = str(folder / f"{name.replace(' ', '-')}-{seed}")
            train(**corpus, model=places["model"], trained=model, config=dataclasses.replace(config, seed=seed))
            found[name].append(score(f"{name.replace(' ', '-')}-{seed}", model, test))
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Mean and the single values, as Markdown."""
    lines = [f"| system | {' | '.join(METRICS)} |", f"|---|{'---|' * len(METRICS)}"]
    for name, runs in found.items():
        cells = []
        for metric in METRICS:
            values = [run[metric] for run in runs if metric in run]
            single = ", ".join(f"{value:.2f}" for value in values)
            cells.append(f"{statistics.mean(values):.3f} ({single})" if values else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measure and print."""
    set_up_logging()
    with TemporaryDirectory() as folder:
        print(table(measure(Path(folder), [int(word) for word in argv] or [0, 1, 2])))


if __name__ == "__main__":
    main(sys.argv[1:])
