"""A whole toy run of the compiled graph, made once for all tests that look at it."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "train": {"num_steps": 2, "batch_size": 2, "num_passages": 2, "mode": "joint"},
    "evaluate": {"num_passages": 2, "recall_at": [1, 5]},
    "report": {"resamples": 100},
}


@dataclass(frozen=True)
class ToyRun:
    """The inputs of the toy run and what came out."""

    home: Path
    arguments: list[str]
    result: dict[str, Any]
    log: str

    def again(self, *more: str) -> subprocess.CompletedProcess[str]:
        """Run the command once more on the same store."""
        return call_ralm(["pipeline", "run", *self.arguments, *more], self.home)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the MLflow database."""
        with sqlite3.connect(self.home / "mlflow.db") as connection:
            return connection.execute(sql).fetchall()


def call_ralm(arguments: list[str], home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The `ralm` command in a process of its own."""
    # MLflow leaves the address of the last store it was told of in the environment.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    settings = {"RALM_HOME": str(home), "RALM_TRACKING": "on", "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        env={**inherited, **settings, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.fixture(scope="session")
def run_ralm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`call_ralm` for tests."""
    return call_ralm


@pytest.fixture(scope="session")
def toy_arguments(toy_corpus: Path, toy_question_files: Path, tiny_model_files: Path) -> list[str]:
    """Arguments of `ralm pipeline run` for the toy corpus and the tiny model."""
    sources = {"passages": toy_corpus, "questions": toy_question_files, "model": tiny_model_files}
    flags = [word for name, place in sources.items() for word in (f"--{name}", str(place))]
    return [*flags, "--num-shards", "2", "--settings", json.dumps(SETTINGS)]


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten short articles as CSV."""
    path = tmp_path_factory.mktemp("corpus") / "toy.csv"
    words = ("amber", "silver", "crimson", "iron", "wooden")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "text"])
        for page, subject in enumerate(("Granite", "Willow", "Otter", "Copper", "Falcon", "Harbour", "Violin")):
            writer.writerow([subject, f"The colour of {subject} is mostly {words[page % 5]} in the northern valleys."])
    return path


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory, toy_arguments: list[str]) -> ToyRun:
    """The compiled graph, run from the corpus to the registry with MLflow on."""
    home = tmp_path_factory.mktemp("toy-run-home")
    done = call_ralm(["pipeline", "run", *toy_arguments, "--json"], home)
    assert done.returncode == 0, done.stderr[-4000:]
    return ToyRun(home, toy_arguments, json.loads(done.stdout), done.stderr)
