"""Two pipelines at once, each on a machine of its own, with one store, one tracking server and one registry."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest

from ralm import serving
from ralm.artifacts.files import join, read_file, read_json
from ralm.artifacts.manifest import MANIFEST, open_artifact, read_artifact
from ralm.artifacts.remote import file_sizes
from tests.conftest import SUBJECTS, VALUES
from tests.s3_proxy import BUCKET, client
from tests.services.conftest import Services

pytestmark = [pytest.mark.services, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "train": {"num_steps": 2, "batch_size": 2, "num_passages": 2, "mode": "joint"},
    "evaluate": {"num_passages": 2, "recall_at": [1, 5]},
    "report": {"resamples": 100},
}
STAGE_RUNS = {"download": 3, "embed": 4, "index": 2, "evaluate": 2, "train": 1, "report": 1, "register": 1}
"""Runs of one pipeline by stage: two shards, each embedded before and after the training."""
STORE = f"s3://{BUCKET}/store"


@dataclass(frozen=True)
class Finished:
    """What a pipeline printed, and what its tasks made."""

    home: Path
    result: dict[str, Any]
    events: list[dict[str, Any]]


def run_at_once(arguments: Sequence[Sequence[str]], homes: Sequence[Path], services: Services) -> list[Finished]:
    """Run pipelines beside each other to their end."""
    # MLflow leaves the address of the last store it was told of in the environment.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    settings = {**services.environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = []
    for words, home in zip(arguments, homes, strict=True):
        home.mkdir()
        command = [sys.executable, "-m", "pipelines.cli", "pipeline", "run", *words, "--json"]
        with (home / "out").open("w") as out, (home / "log").open("w") as log:
            environment = {**inherited, **settings, "RALM_HOME": str(home)}
            processes.append(subprocess.Popen(command, env=environment, stdout=out, stderr=log))
    finished = []
    for process, home in zip(processes, homes, strict=True):
        assert process.wait(1000) == 0, (home / "log").read_text()[-4000:]
        (events,) = home.glob("runs/*/events.jsonl")
        lines = events.read_text().splitlines()
        finished.append(Finished(home, json.loads((home / "out").read_text()), [json.loads(line) for line in lines]))
    return finished


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory, toy_question_files: Path, tiny_model_files: Path) -> list[str]:
    """Of `ralm pipeline run`, but for the seed."""
    corpus = tmp_path_factory.mktemp("corpus") / "toy.csv"
    with corpus.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "text"])
        for subject, value in zip(SUBJECTS, VALUES, strict=True):
            text = f"The colour of {subject} is mostly {value} in the northern valleys."
            writer.writerow([subject.title(), text])
    sources = {"passages": corpus, "questions": toy_question_files, "model": tiny_model_files}
    flags = [word for name, place in sources.items() for word in (f"--{name}", str(place))]
    return [*flags, "--num-shards", "2", "--settings", json.dumps(SETTINGS)]


@pytest.fixture(scope="module")
def two_seeds(services: Services, arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[Finished]:
    """Two pipelines that start with the same corpus and end with models of their own."""
    folder = tmp_path_factory.mktemp("machines")
    homes = [folder / "one", folder / "two"]
    return run_at_once([[*arguments, "--seed", str(seed)] for seed in (1, 2)], homes, services)


@pytest.fixture(autouse=True)
def connected(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process reads the same store and registry."""
    for name, value in services.environment.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def check_store(machines: Sequence[Finished]) -> None:
    """Every artifact of every task is there, whole, once, and nothing else."""
    sizes = file_sizes(STORE)
    pointers = {name.removesuffix(f"/{MANIFEST}") for name in sizes if name.count("/") == 2}
    named = {event["uri"].removeprefix(f"{STORE}/").rpartition("/")[0] for made in machines for event in made.events}
    assert named <= pointers
    listed = set()
    for place in pointers:
        artifact = read_artifact(join(STORE, place))
        open_artifact(join(STORE, place), artifact.manifest.kind)
        listed |= {f"{place}/{MANIFEST}"}
        inside = artifact.base.removeprefix(f"{STORE}/")
        listed |= {f"{inside}/{name}" for name in (MANIFEST, "timings.json")}
        for entry in artifact.manifest.files:
            content = read_file(artifact.file(entry.path))
            assert hashlib.sha256(content).hexdigest() == entry.sha256, artifact.file(entry.path)
            listed.add(f"{inside}/{entry.path}")
    assert set(sizes) == listed
    assert "Uploads" not in client(os.environ["AWS_ENDPOINT_URL"]).list_multipart_uploads(Bucket=BUCKET)
    for made in machines:
        work = made.home / "work"  # not there where the other pipeline made everything
        assert not (work.exists() and list(work.iterdir()))


def check_runs(services: Services, num_pipelines: int) -> None:
    """The database has every run of every pipeline, finished, below its parent."""
    parent_of = "(select value from tags t where t.run_uuid = r.run_uuid and t.key = 'mlflow.parentRunId')"
    found = services.query(f"select r.run_uuid, r.name, r.status, {parent_of} from runs r")
    assert {status for _, _, status, _ in found} == {"FINISHED"}
    parents = {run for run, _, _, parent in found if parent is None}
    assert len(parents) == num_pipelines
    for pipeline in parents:
        assert dict(Counter(name for _, name, _, parent in found if parent == pipeline)) == STAGE_RUNS
    assert len(found) == num_pipelines * (1 + sum(STAGE_RUNS.values()))


def test_both_complete_and_nothing_is_lost(services: Services, two_seeds: list[Finished]) -> None:
    check_runs(services, 2)
    check_store(two_seeds)
    prints = [{event["fingerprint"] for event in made.events if event["kind"] == "passages"} for made in two_seeds]
    assert prints[0] == prints[1]
    assert two_seeds[0].result["model"] != two_seeds[1].result["model"]


def test_the_registry_has_both_versions(services: Services, two_seeds: list[Finished]) -> None:
    found = {version.version: version for version in serving.versions("quickstart")}
    registered = {made.result["registration"]["version"]: made.result for made in two_seeds}
    assert sorted(found) == sorted(registered) == ["1", "2"]
    assert [version.alias for version in found.values()].count("champion") == 1
    for number, result in registered.items():
        tags = found[number].tags
        assert tags[serving.INDEX_PLACE_TAG] == result["index"]
        assert open_artifact(result["index"], "index").fingerprint == tags["ralm.index"]
        assert open_artifact(result["model"], "model").fingerprint == tags["ralm.model"]


def test_metrics_and_files_of_the_runs_are_those_of_the_artifacts(
    services: Services, two_seeds: list[Finished]
) -> None:
    from mlflow.tracking import MlflowClient

    tracking = MlflowClient(services.mlflow)
    for made in two_seeds:
        metrics = [
            read_json(join(event["uri"], "metrics.json")) for event in made.events if event["kind"] == "predictions"
        ]
        of_runs = services.query(
            "select m.value from metrics m join runs r on r.run_uuid = m.run_uuid "
            "where r.name = 'evaluate' and m.key = 'exact_match'"
        )
        assert {round(one["exact_match"], 9) for one in metrics} <= {round(value, 9) for (value,) in of_runs}
    reports = services.query("select run_uuid from runs where name = 'report'")
    for (run,) in reports:
        assert "report.html" in {file.path for file in tracking.list_artifacts(run)}
    stored = client(services.s3).list_objects_v2(Bucket=BUCKET, Prefix="mlflow/")["Contents"]
    assert len([entry for entry in stored if entry["Key"].endswith("/report.html")]) == len(reports)


def test_the_same_pipeline_twice_at_once_makes_everything_once(
    services: Services, two_seeds: list[Finished], arguments: list[str], tmp_path: Path
) -> None:
    homes = [tmp_path / "three", tmp_path / "four"]
    same = run_at_once([[*arguments, "--seed", "3"]] * 2, homes, services)
    check_runs(services, 4)
    check_store([*two_seeds, *same])
    assert same[0].result["registration"]["version"] == same[1].result["registration"]["version"] == "3"
    made = [{(event["kind"], event["fingerprint"]) for event in one.events} for one in same]
    assert made[0] == made[1]
