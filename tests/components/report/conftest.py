"""Invented evaluations with everything a report shows: gains, losses, misses, text that looks like markup."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ralm.artifacts.files import write_json
from ralm.artifacts.schemas import PASSAGES, TRAINING_LOG, predictions_schema
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import write_table
from ralm.evaluation.metrics import exact_match, f1
from ralm.evaluation.retrieval import retrieval_metrics

NASTY = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
CUTOFFS = (1, 5, 10, 20, 50)
NUM_READ = 10


def write_passages(folder: Path, texts: Sequence[tuple[str, str, str]]) -> str:
    """A passages artifact of (title, section, text)."""

    def build(work: Path) -> Contents:
        rows = [
            {
                "passage_id": 1000 + number,
                "source_id": str(number),
                "page_id": number,
                "revision_id": None,
                "title": title,
                "section": section,
                "text": text,
                "kind": "text",
                "position": 0,
                "content_hash": str(number),
            }
            for number, (title, section, text) in enumerate(texts)
        ]
        return Contents(rows={"part-00000.parquet": write_table(work / "part-00000.parquet", rows, PASSAGES)})

    config = {"texts": [list(text) for text in texts]}
    produce(str(folder), kind="passages", stage="download", stage_version=1, inputs={}, config=config, build=build)
    return str(folder)


def write_predictions(folder: Path, rows: Sequence[dict[str, Any]], passages: str, *, closed_book: bool = False) -> str:
    """A predictions artifact; each row holds question, answers, titles, prediction, ids and ranks."""

    def build(work: Path) -> Contents:
        full = [_prediction(number, row, closed_book=closed_book) for number, row in enumerate(rows)]
        schema = predictions_schema(["exact_match", "f1", "answer_rank", "title_rank"])
        write_table(work / "test.parquet", full, schema)
        metrics = {name: float(np.mean([row[name] for row in full])) for name in ("exact_match", "f1")}
        if not closed_book:
            ranks = ([row[name] for row in full] for name in ("answer_rank", "title_rank"))
            metrics |= retrieval_metrics(*ranks, CUTOFFS)
        write_json(work / "metrics.json", {**metrics, "num_questions": len(full)})
        encoders = {name: f"{name}-{folder.name}".ljust(64, "0") for name in ("reader", "question_encoder")}
        return Contents(
            rows={"test.parquet": len(full)},
            details={
                "task": "qa",
                "split": "test",
                "closed_book": closed_book,
                "num_passages": 0 if closed_book else NUM_READ,
                "corpus_passages": 0 if closed_book else 60,
                "fingerprints": {**encoders, "passage_encoder": "e" * 64},
            },
        )

    manifest = json.loads((Path(passages) / "manifest.json").read_text())
    inputs = {"model": folder.name.ljust(64, "1"), "questions": "9" * 64}
    if not closed_book:
        inputs |= {"passages": manifest["fingerprint"], "index": "8" * 64}
    produce(
        str(folder),
        kind="predictions",
        stage="evaluate",
        stage_version=1,
        inputs=inputs,
        config={"precision": "fp32", "name": folder.name, "rows": len(rows), "first": rows[0]["question"]},
        build=build,
    )
    return str(folder)


def _prediction(number: int, row: dict[str, Any], *, closed_book: bool) -> dict[str, Any]:
    ids = [] if closed_book else row["passage_ids"]
    about = {"question": row["question"], "task": "qa", "positive_titles": row["titles"]}
    return {
        "question_id": f"test-{number + 1:03}",
        "prediction": row["prediction"],
        "answers": row["answers"],
        "passage_ids": ids,
        "scores": [0.8 - 0.01 * rank for rank in range(len(ids))],
        "candidates": [{"text": row["prediction"], "log_probability": -0.5}],
        "choice_probabilities": None,
        "metadata": json.dumps(about),
        "exact_match": exact_match(row["prediction"], row["answers"]),
        "f1": f1(row["prediction"], row["answers"]),
        "answer_rank": None if closed_book else row["answer_rank"],
        "title_rank": None if closed_book else row["title_rank"],
    }


def write_trained(folder: Path, steps: int = 40) -> str:
    """A model artifact with a training log."""

    def build(work: Path) -> Contents:
        noise = np.random.default_rng(0).normal(0, 0.2, steps)
        rows = [
            {
                "step": step + 1,
                "reader_loss": float(3 * np.exp(-step / 15) + 0.6 + abs(noise[step])),
                "retriever_loss": float(0.4 * np.exp(-step / 25) + 0.1 * abs(noise[step])),
                "reader_learning_rate": 1e-4,
                "retriever_learning_rate": 1e-5,
                "gradient_norm": 1.0,
            }
            for step in range(steps)
        ]
        return Contents(rows={"training_log.parquet": write_table(work / "training_log.parquet", rows, TRAINING_LOG)})

    settings = {"training": {"steps": steps, "batch_size": 4, "mode": "query_side", "lr_reader": 5e-4, "seed": 0}}
    produce(str(folder), kind="model", stage="train", stage_version=1, inputs={}, config=settings, build=build)
    return str(folder)


def invent_rows(num_questions: int, accuracy: float, seed: int) -> list[dict[str, Any]]:
    """Questions about numbered towns; passage i of the corpus holds the founder of town i."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(num_questions):
        rank = int(generator.geometric(0.08))
        others = [town for town in range(60) if town != number % 60]
        ids = [1000 + int(town) for town in generator.permutation(others)[:50]]
        if rank <= 50:
            ids[rank - 1] = 1000 + number % 60
        rows.append(
            {
                "question": f"who founded town {number}",
                "answers": [f"Founder{number % 60} Smith", f"F. Smith {number % 60}"],
                "titles": [f"Town {number % 60}"],
                "prediction": f"founder{number % 60} smith" if generator.random() < accuracy else "Lisbon",
                "passage_ids": ids,
                "answer_rank": rank if rank <= 50 else None,
                "title_rank": rank if rank <= 50 else None,
            }
        )
    rows[0] |= {"question": f"who founded {NASTY}", "prediction": f"</details>{NASTY}"}
    return rows


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Makes the artifacts that a report is made of: `inputs(num_questions=12)`."""
    monkeypatch.setenv("RALM_HOME", str(tmp_path / "home"))

    def make(num_questions: int = 12) -> dict[str, str]:
        texts = [
            (
                f"Town {town}",
                "History" if town % 2 else "",
                f"Town {town} was founded by Founder{town} Smith in 1{town:03}.",
            )
            for town in range(60)
        ]
        texts[0] = (f"Town 0 {NASTY}", NASTY, f"Founded by Founder0 Smith & sons. {NASTY} </p></li> Founder0 Smith")
        passages = write_passages(tmp_path / "passages", texts)
        runs = {"before": 0.1, "after": 0.6, "closed_book": 0.05}
        made = {
            name: write_predictions(
                tmp_path / name,
                invent_rows(num_questions, accuracy, seed),
                passages,
                closed_book=name == "closed_book",
            )
            for seed, (name, accuracy) in enumerate(runs.items())
        }
        return {**made, "passages": passages, "trained": write_trained(tmp_path / "trained")}

    return make
