"""What a driver that was killed leaves behind, and who tidies it up."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from pipelines import local
from pipelines.local import DRIVER_LOCK, PipelineError, run_pipeline
from pipelines.tasks import Tasks
from ralm import tracking
from ralm.artifacts.lock import only_one


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch, ralm_home: Path) -> Path:
    monkeypatch.setenv("RALM_TRACKING", "on")
    return ralm_home / "mlflow.db"


def statuses(database: Path) -> dict[str, str]:
    with sqlite3.connect(database) as connection:
        return dict(connection.execute("select name, status from runs"))


def leave(home: Path, run_id: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run whose driver did not come to its end."""
    folder = home / "runs" / run_id
    (folder / "outputs").mkdir(parents=True)
    (folder / "outputs" / "manifest.json").write_text("{}")
    (folder / "events.jsonl").write_text("")
    (folder / DRIVER_LOCK).touch()
    monkeypatch.setenv("RALM_RUN_ID", run_id)
    tracking.start_parent_run(f"run {run_id}", kfp_run_id=f"kfp {run_id}", params={})
    return folder


def run(monkeypatch: pytest.MonkeyPatch, graph: Any) -> None:
    monkeypatch.setattr(local, "_run_with_kfp", graph)
    run_pipeline({}, file=Path(__file__))


def test_the_next_run_tidies_up_behind_a_killed_driver(
    database: Path, ralm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = leave(ralm_home, "dead", monkeypatch)
    alive = leave(ralm_home, "alive", monkeypatch)
    with only_one(alive / DRIVER_LOCK, "testing"):
        run(monkeypatch, lambda *_: None)
    assert sorted(path.name for path in dead.iterdir()) == ["events.jsonl"]
    assert (alive / "outputs" / "manifest.json").exists()
    assert statuses(database) == {"run dead": "KILLED", "run alive": "RUNNING"}


def test_a_driver_is_alive_as_long_as_it_works(ralm_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(path: Path, arguments: dict[str, Any], folder: Path, tasks: Tasks) -> None:
        (folder / "outputs").mkdir()
        with local._known_as_alive(ralm_home / "runs" / "other"):
            assert (folder / "outputs").exists()
            assert (folder / DRIVER_LOCK).exists()

    run(monkeypatch, work)
    assert [path.parent.name for path in ralm_home.glob(f"runs/*/{DRIVER_LOCK}")] == ["other"]
    assert list(ralm_home.glob("runs/*/outputs")) == []


def fail(path: Path, arguments: dict[str, Any], folder: Path, tasks: Tasks) -> None:
    """A run whose parent run in MLflow was not closed by its last task."""
    (folder / "outputs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RALM_RUN_ID", folder.name)
        tracking.start_parent_run("broken", kfp_run_id="kfp", params={})
    raise PipelineError("task finish failed: killed by SIGKILL")


def test_a_run_is_closed_where_its_last_task_could_not(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PipelineError, match="task finish failed"):
        run(monkeypatch, fail)
    assert statuses(database) == {"broken": "FAILED"}


def test_what_could_not_be_closed_is_closed_by_the_next_run(
    database: Path, ralm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect() -> None:
        assert list(ralm_home.glob("runs/*/outputs")) == []  # it makes room on a full disk
        raise OSError("database or disk is full")

    def fail_on_a_full_disk(*arguments: Any) -> None:
        try:
            fail(*arguments)
        finally:
            monkeypatch.setattr(tracking, "connect", connect)

    works = tracking.connect
    with pytest.raises(PipelineError, match="task finish failed"):
        run(monkeypatch, fail_on_a_full_disk)
    assert statuses(database) == {"broken": "RUNNING"}
    monkeypatch.setattr(tracking, "connect", works)
    run(monkeypatch, lambda *_: None)
    assert statuses(database) == {"broken": "KILLED"}
    assert list(ralm_home.glob(f"runs/*/{DRIVER_LOCK}")) == []
