from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from ralm import tracking
from ralm.artifacts.manifest import Manifest
from ralm.artifacts.store import Contents, produce
from ralm.errors import ConfigError


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch, ralm_home: Path) -> Path:
    monkeypatch.setenv("RALM_TRACKING", "on")
    return ralm_home / "mlflow.db"


def rows(database: Path, sql: str) -> list[tuple]:
    with sqlite3.connect(database) as connection:
        return connection.execute(sql).fetchall()


def make(output: Path) -> Manifest:
    def build(folder: Path) -> Contents:
        (folder / "metrics.json").write_text('{"recall@10": 0.5}')
        return Contents(counts={"things": 3})

    inputs = {"passages": "ab" * 32}
    return produce(str(output), kind="toy", stage="toy", stage_version=1, inputs=inputs, config={"a": 1}, build=build)


def test_children_resume_parents_and_record(tracked: Path, tmp_path: Path) -> None:
    parent = tracking.start_parent_run("toy", kfp_run_id="k1", params={"recipe": "toy"})
    assert tracking.start_parent_run("toy", kfp_run_id="k1", params={}) == parent
    with tracking.stage_run("make", parent_run_id=parent) as run:
        tracking.log_metrics({"loss": 2.0, "broken": float("nan")}, step=3)
        run.record(make(tmp_path / "out"), {"passages": "somewhere", "shard": 1})
    with pytest.raises(KeyboardInterrupt), tracking.stage_run("stopped", parent_run_id=parent):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="x"), tracking.stage_run("broken", parent_run_id=parent):
        raise ValueError("x")
    tracking.finish_parent_run(tag=tracking.KFP_RUN_TAG, value="k1", status="FAILED")
    states = dict(rows(tracked, "select name, status from runs"))
    assert states == {"toy": "FAILED", "make": "FINISHED", "stopped": "KILLED", "broken": "FAILED"}
    metrics = {key: (value, step) for key, value, step in rows(tracked, "select key, value, step from metrics")}
    assert metrics["loss"] == (2.0, 3)
    assert metrics["recall_at_10"] == (0.5, 0)
    assert metrics["counts.things"] == (3.0, 0)
    assert "broken" not in metrics
    assert ("config.a", "1") in rows(tracked, "select key, value from params")
    assert rows(tracked, "select name, digest from datasets") == [("passages", ("ab" * 32)[:36])]


def test_a_run_of_a_backend_is_resumed(tracked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = tracking.start_parent_run("backend", kfp_run_id="k2", params={})
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert tracking.start_parent_run("other", kfp_run_id="k3", params={}) == ""
    with tracking.stage_run("embed") as run:
        assert run.run_id == run_id
    assert rows(tracked, "select count(*) from runs") == [(1,)]


def test_a_server_that_is_away_costs_no_artifact(
    tracked: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracking.stage_run("make") as run:
        run.record(make(tmp_path / "out"), {})
    assert (tmp_path / "out" / "manifest.json").exists()
    assert "tracking: " in caplog.text


def test_off_means_off(ralm_home: Path) -> None:
    with tracking.stage_run("make") as run:
        tracking.log_metrics({"loss": 1.0})
        assert run.run_id == ""
    assert not (ralm_home / "mlflow.db").exists()
    assert not tracking.has_registry()


def test_unknown_switch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RALM_TRACKING", "maybe")
    with pytest.raises(ConfigError, match="expected on or off, found 'maybe'"):
        tracking.is_enabled()


def _start(number: int) -> str:
    return tracking.start_parent_run(f"run {number}", kfp_run_id=str(number), params={})


def test_processes_that_start_together_make_one_database(tracked: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        ids = pool.map(_start, range(2))
    assert len({*ids, ""}) == 3
    assert rows(tracked, "select count(*) from experiments where name = 'ralm'") == [(1,)]
