"""The end of a pipeline run: what MLflow keeps of it, and who is told."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.track.stage import finish
from ralm import tracking
from ralm.cli import run_step, run_task
from ralm.errors import DataError
from tests.evaluations import open_registry
from tests.webhook import Webhook

RUN = "run-1"


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with Webhook() as server:
        monkeypatch.setenv("RALM_WEBHOOK_URL", server.url)
        yield server


@pytest.fixture
def database(ralm_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return open_registry(ralm_home, monkeypatch)


@pytest.fixture
def parent(database: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The parent run of a pipeline run, as its task `start` makes it."""
    monkeypatch.setattr("ralm.cli.set_up_logging", lambda: None)
    monkeypatch.setenv("KFP_RUN_ID", RUN)
    return tracking.start_parent_run("toy", kfp_run_id=RUN, params={"recipe": "toy"})


def end(state: str, error: str = "") -> str:
    return finish(pipeline="reindex", kfp_run_id=RUN, state=state, error=error)


def found(database: Path, run_id: str) -> tuple[str, str]:
    """Status and outcome of a run."""
    with sqlite3.connect(database) as connection:
        (status,) = connection.execute("select status from runs where run_uuid = ?", [run_id]).fetchone()
        tags = dict(connection.execute("select key, value from tags where run_uuid = ?", [run_id]))
    return status, tags.get("ralm.outcome", "")


# The first three names are those of kfp's documentation and local runner, the others those of its backend.
@pytest.mark.parametrize(
    ("state", "status", "outcome"),
    [
        ("SUCCEEDED", "FINISHED", "succeeded"),
        ("FAILED", "FAILED", "failed: disk full"),
        ("CANCELLED", "KILLED", "cancelled"),
        ("COMPLETE", "FINISHED", "succeeded"),
        ("CACHED", "FINISHED", "succeeded"),
        ("CANCELED", "KILLED", "cancelled"),
        ("RUNNING", "FAILED", "failed: disk full"),
    ],
)
def test_every_state_of_a_run(
    state: str, status: str, outcome: str, database: Path, parent: str, hook: Webhook
) -> None:
    assert end(state, "disk full") == outcome
    assert found(database, parent) == (status, outcome)
    assert [message["reason"] for message in hook.messages] == [outcome] * (status == "FAILED")


def test_a_failure_is_told_with_the_error_of_the_task(database: Path, parent: str, hook: Webhook) -> None:
    def watch(*, source: str) -> None:
        raise DataError(f"{source}: expected a file,\nfound nothing")

    with pytest.raises(SystemExit):
        run_step(watch, source="füße.csv")
    outcome = "failed: watch: füße.csv: expected a file, found nothing"
    assert end("FAILED", "Task exit-handler-1 failed.") == outcome
    assert found(database, parent) == ("FAILED", outcome)
    (message,) = hook.messages
    assert message == {
        "text": f"RALM pipeline reindex: {outcome} (run {RUN})",
        "pipeline": "reindex",
        "run_id": RUN,
        "state": "failed",
        "reason": outcome,
    }


def test_errors_that_nobody_foresaw_are_told_too(parent: str) -> None:
    def watch() -> None:
        raise KeyError("surprise")

    with pytest.raises(KeyError):
        run_step(watch)
    assert end("FAILED", "") == "failed: watch: 'surprise'"


def test_a_stage_tells_its_error_as_a_step_does(parent: str) -> None:
    from components.gate.stage import gate

    with pytest.raises(SystemExit):
        run_task(gate, challenger="x", decision="y", config='{"max_loss": 2}', parent_run_id=parent)
    assert end("FAILED", "") == "failed: gate: max_loss: expected at least 0 and less than 1, found 2.0"


def test_without_a_word_from_the_task_its_logs_are_named(parent: str) -> None:
    assert end("FAILED") == "failed: see the logs of its tasks"


def test_what_failed_once_and_was_tried_again_is_no_failure(database: Path, parent: str, hook: Webhook) -> None:
    tracking.tag_pipeline_run(tracking.ERROR_TAG, "watch: no answer")
    assert end("SUCCEEDED") == "succeeded"
    assert hook.messages == []


@pytest.mark.parametrize("state", ["SUCCEEDED", "COMPLETE", "RUNNING"])
def test_a_refusal_is_told_once_and_is_no_failure(state: str, database: Path, parent: str, hook: Webhook) -> None:
    reason = "refused: ralm-toy 2: exact match −1.3 points"
    tracking.tag_pipeline_run(tracking.PROMOTION_TAG, reason)
    assert end(state) == reason
    assert found(database, parent) == ("FINISHED", reason)
    assert [message["state"] for message in hook.messages] == ["refused"]
    assert hook.messages[0]["text"] == f"RALM pipeline reindex: {reason} (run {RUN})"


@pytest.mark.parametrize("state", ["SUCCEEDED", "RUNNING"])
def test_nothing_new_is_said_and_nobody_is_told(state: str, database: Path, parent: str, hook: Webhook) -> None:
    tracking.tag_pipeline_run(tracking.PROMOTION_TAG, "nothing new: the champion is of enwiki 20261001")
    assert end(state) == "nothing new: the champion is of enwiki 20261001"
    assert found(database, parent)[0] == "FINISHED"
    assert hook.messages == []


def test_a_promotion_is_a_success_also_where_the_server_does_not_say_so(parent: str, hook: Webhook) -> None:
    tracking.tag_pipeline_run(tracking.PROMOTION_TAG, "promoted: ralm-toy 2: better")
    assert end("RUNNING") == "succeeded"
    assert end("FAILED", "the report") == "failed: the report"  # a later task failed
    assert len(hook.messages) == 1


def test_without_tracking_people_are_told_all_the_same(hook: Webhook) -> None:
    assert end("FAILED", "disk full") == "failed: disk full"
    assert end("SUCCEEDED") == "succeeded"
    assert [message["reason"] for message in hook.messages] == ["failed: disk full"]


def test_a_webhook_that_refuses_does_not_fail_the_run(database: Path, parent: str, hook: Webhook) -> None:
    hook.statuses = [404]
    assert end("FAILED", "x") == "failed: x"
    assert found(database, parent) == ("FAILED", "failed: x")


def test_runs_that_a_backend_nests_are_one_pipeline_run(
    database: Path, monkeypatch: pytest.MonkeyPatch, hook: Webhook
) -> None:
    """A backend with MLflow makes a run for the pipeline, for each loop and condition, and for each task in them."""
    monkeypatch.setenv("KFP_RUN_ID", RUN)
    root = tracking._open_run("pipeline", "")
    tracking._close_run("RUNNING")
    runs = {"condition": "", "register": "", "finish": root}
    for name in runs:
        runs[name] = tracking._open_run(name, runs[name] or (runs["condition"] or root))
        tracking._close_run("RUNNING")
    with monkeypatch.context() as task:
        task.setenv("MLFLOW_RUN_ID", runs["register"])
        with tracking.stage_run("register"):
            tracking.tag_parent_run(tracking.PROMOTION_TAG, "refused: worse")
    with monkeypatch.context() as task:
        task.setenv("MLFLOW_RUN_ID", runs["finish"])
        assert end("COMPLETE") == "refused: worse"
    assert found(database, root) == ("RUNNING", "refused: worse")  # the backend closes it


def test_nothing_is_tagged_outside_a_pipeline(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KFP_RUN_ID", "RALM_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    tracking.connect()
    tracking.tag_pipeline_run(tracking.ERROR_TAG, "x")
    with sqlite3.connect(database) as connection:
        assert connection.execute("select count(*) from tags").fetchone() == (0,)


def test_a_wrong_switch_is_one_line_also_in_the_first_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("kfp.pipeline_spec", reason="images have kfp without its compiler")
    from components.track.component import start_op

    monkeypatch.setattr("ralm.cli.set_up_logging", lambda: None)
    monkeypatch.setenv("RALM_TRACKING", "maybe")
    with pytest.raises(SystemExit, match="2"):
        start_op.python_func(recipe="toy", kfp_run_id=RUN)
    assert capsys.readouterr().err == "ralm: error: RALM_TRACKING: expected on or off, found 'maybe'\n"
