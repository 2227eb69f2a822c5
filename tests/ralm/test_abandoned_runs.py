"""MLflow runs of processes that were killed: they cannot close them themselves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from pathlib import Path

import pytest

from ralm import tracking


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch, ralm_home: Path) -> Path:
    monkeypatch.setenv("RALM_TRACKING", "on")
    return ralm_home / "mlflow.db"


def statuses(database: Path) -> dict[str, str]:
    with sqlite3.connect(database) as connection:
        return dict(connection.execute("select name, status from runs"))


def start(name: str, monkeypatch: pytest.MonkeyPatch, *stages: str) -> None:
    """A pipeline run whose tasks ended without closing their runs."""
    monkeypatch.setenv("RALM_RUN_ID", f"driver of {name}")
    parent = tracking.start_parent_run(name, kfp_run_id=name, params={})
    for stage in stages:
        tracking._open_run(stage, parent)
        tracking._close_run("RUNNING")


def test_a_pipeline_that_ends_closes_the_runs_of_tasks_that_were_killed(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start("one", monkeypatch, "embed", "index")
    start("other", monkeypatch, "train")
    tracking.finish_parent_run(tag=tracking.KFP_RUN_TAG, value="one", status="FAILED")
    assert statuses(database) == {
        "one": "FAILED",
        "embed": "KILLED",
        "index": "KILLED",
        "other": "RUNNING",
        "train": "RUNNING",
    }


def test_what_a_driver_left_open_is_closed_for_it(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start("one", monkeypatch, "embed")
    start("other", monkeypatch)
    tracking.close_left_runs("driver of one", "KILLED")
    assert statuses(database) == {"one": "KILLED", "embed": "KILLED", "other": "RUNNING"}


def test_a_run_that_was_closed_keeps_its_state(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start("one", monkeypatch)
    tracking.finish_parent_run(tag=tracking.KFP_RUN_TAG, value="one", status="FINISHED")
    tracking.close_left_runs("driver of one", "KILLED")
    assert statuses(database) == {"one": "FINISHED"}


def test_runs_that_a_backend_made_are_its_own_business(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start("one", monkeypatch, "embed")
    with sqlite3.connect(database) as connection:
        (own,) = connection.execute("select run_uuid from runs where name = 'embed'").fetchone()
    monkeypatch.setenv("MLFLOW_RUN_ID", own)
    tracking.finish_parent_run(tag=tracking.KFP_RUN_TAG, value="one", status="FAILED")
    assert statuses(database) == {"one": "RUNNING", "embed": "RUNNING"}


def test_a_broken_database_costs_one_line(
    database: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tracking.connect()
    with sqlite3.connect(database) as connection:
        connection.execute("drop table runs")
    with tracking.stage_run("embed") as run:
        assert run.run_id == ""
    assert "Traceback" not in capfd.readouterr().err
    (told,) = (record.getMessage() for record in caplog.records if record.name == "ralm.tracking")
    assert told == "tracking: MlflowException: (sqlite3.OperationalError) no such table: runs"


def _connect_and_be_killed(at: int) -> None:
    """Make the database, up to the `at`-th change of a table."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    seen = 0

    def count(connection: object, cursor: object, statement: str, *_: object) -> None:
        nonlocal seen
        seen += "ALTER TABLE" in statement
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "after_cursor_execute", count)
    tracking.connect()


@pytest.mark.parametrize("at", [2, 9])
def test_a_database_that_was_half_made_is_made_anew(at: int, database: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=_connect_and_be_killed, args=(at,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert tracking.start_parent_run("next", kfp_run_id="next", params={})
    assert statuses(database) == {"next": "RUNNING"}
    left = sorted(path.name for path in database.parent.iterdir())
    assert left == [".mlflow.lock", "mlflow.db"]
