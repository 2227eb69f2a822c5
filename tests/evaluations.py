"""Evaluations of any outcome, and the artifacts of pairs: what a gate and a registry work on, without models."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ralm.artifacts.files import write_json
from ralm.artifacts.manifest import Artifact, Manifest, open_artifact
from ralm.artifacts.schemas import predictions_schema
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import write_table
from ralm.evaluation.compare import Evaluation
from ralm.evaluation.retrieval import retrieval_metrics

COLUMNS = ["exact_match", "f1", "answer_rank", "title_rank"]
ASKING = {"split": "test", "num_passages": 2, "precision": "fp32", "batch_size": 8, "recall_at": [1, 5]}


def rows_of(scores: Sequence[float | None], ranks: Sequence[int | None] | None = None) -> list[dict[str, Any]]:
    """Rows of a predictions table; score and rank are those of each question."""
    about = {"question": "", "task": "qa", "positive_titles": ["Otter"], "options": [], "label": None}
    return [
        {
            "question_id": f"q{number}",
            "prediction": "amber",
            "answers": ["amber"],
            "passage_ids": [1],
            "scores": [0.5],
            "candidates": [{"text": "amber", "log_probability": -0.5}],
            "choice_probabilities": None,
            "metadata": json.dumps({**about, "question": f"what is the colour of {number}"}),
            "exact_match": score,
            "f1": score,
            "answer_rank": ranks[number] if ranks else 1,
            "title_rank": 1,
        }
        for number, score in enumerate(scores)
    ]


def metrics_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the evaluate stage would say of these rows."""
    scores = [row["exact_match"] for row in rows if row["exact_match"] is not None]
    mean = float(np.mean(scores)) if scores else 0.0
    ranks = ([row[name] for row in rows] for name in ("answer_rank", "title_rank"))
    return {"exact_match": mean, "f1": mean, **retrieval_metrics(*ranks, [1, 5]), "num_questions": len(rows)}


def evaluation(rows: Sequence[Mapping[str, Any]], *, task: str = "qa", **config: Any) -> Evaluation:
    """An opened evaluation that is nowhere on disk."""
    manifest = Manifest(
        kind="predictions",
        version=1,
        files=(),
        inputs={"questions": "9" * 64},
        config={**ASKING, **config},
        stage="evaluate",
        stage_version=3,
        seed=0,
        counts={},
        details={"task": task, "split": "test"},
        fingerprint="f" * 64,
    )
    full = [{**row, **json.loads(row["metadata"])} for row in rows]
    place = f"mem:{sorted(config.items())}"
    return Evaluation(place, Artifact(place, manifest, "/nowhere"), metrics_of(rows), full)


def write_evaluation(
    folder: Path,
    scores: Sequence[float | None],
    *,
    inputs: Mapping[str, str] | None = None,
    timings: Mapping[str, float] | None = None,
    **config: Any,
) -> str:
    """A predictions artifact of the pair whose fingerprints are `inputs`."""
    rows = rows_of(scores)

    def build(work: Path) -> Contents:
        write_json(work / "metrics.json", metrics_of(rows))
        num_rows = write_table(work / "test.parquet", rows, predictions_schema(COLUMNS))
        details = {"task": "qa", "split": "test", "num_passages": 2}
        return Contents(rows={"test.parquet": num_rows}, details=details, timings=timings or {})

    given = {"questions": "9" * 64, **(inputs or {})}
    settings = {**ASKING, **config}
    _write(folder, "predictions", build, inputs={**given, "of": folder.name}, config=settings)
    return str(folder)


def write_part(
    folder: Path, kind: str, *, text: str = "", counts: Mapping[str, int] | None = None, **details: Any
) -> str:
    """An artifact of any kind that holds one small file."""

    def build(work: Path) -> Contents:
        (work / "content.txt").write_text(text or folder.name, encoding="utf-8")
        return Contents(counts=counts or {}, details=details)

    _write(folder, kind, build, inputs={"of": folder.name}, config={})
    return str(folder)


def write_changes(folder: Path, counts: Mapping[str, Any]) -> str:
    """A report of what changed between two corpora."""

    def build(work: Path) -> Contents:
        write_json(work / "changes.json", counts)
        return Contents()

    _write(folder, "changes", build, inputs={"of": folder.name}, config={})
    return str(folder)


def _write(folder: Path, kind: str, build: Any, *, inputs: Mapping[str, str], config: Mapping[str, Any]) -> None:
    produce(str(folder), kind=kind, stage="evaluate", stage_version=3, inputs=inputs, config=config, build=build)


class Pairs:
    """Pairs that share a model; each has passages and an index of its own, and any evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = write_part(folder / "model", "model", fingerprints={"passage_encoder": "e" * 64})

    def parts(self, name: str) -> dict[str, str]:
        """Places of model, index and passages."""
        passages = write_part(self.folder / f"passages-{name}", "passages", wiki="toywiki", date=f"2026010{len(name)}")
        index = write_part(
            self.folder / f"index-{name}",
            "index",
            counts={"passages": 30},
            bytes_per_vector=64,
            passage_encoder="e" * 64,
            passages=open_artifact(passages, "passages").fingerprint,
        )
        return {"model": self.model, "index": index, "passages": passages}

    def predictions(self, name: str, scores: Sequence[float | None], **config: Any) -> str:
        """An evaluation of the pair of this name."""
        inputs = {kind: open_artifact(place, kind).fingerprint for kind, place in self.parts(name).items()}
        return write_evaluation(self.folder / f"predictions-{name}", scores, inputs=inputs, **config)


@functools.cache
def _migrated_database() -> Path:
    """An empty MLflow database; making one takes some ten seconds."""
    from ralm import tracking

    home = Path(tempfile.mkdtemp(prefix="mlflow-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RALM_HOME", str(home))
        patch.setenv("RALM_TRACKING", "on")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
        tracking.connect()
    return home / "mlflow.db"


def open_registry(home: Path, patch: pytest.MonkeyPatch) -> Path:
    """Turn tracking on for a test, with an empty database of its own in its RALM_HOME."""
    shutil.copyfile(_migrated_database(), home / "mlflow.db")
    patch.setenv("RALM_TRACKING", "on")
    return home / "mlflow.db"
