"""The compiled graph from corpus to registry, once, with MLflow on; the tests look at what it left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ralm.artifacts.tables import read_table

ROOT = Path(__file__).resolve().parents[2]
STAGE_RUNS = {"download": 3, "embed": 4, "index": 2, "evaluate": 2, "train": 1, "report": 1, "register": 1}


def test_summary_names_what_was_made(toy_run: Any) -> None:
    result = toy_run.result
    assert result["passages"] == 7
    assert "exact_match" in result["before"]
    assert "exact_match" in result["after"]
    assert Path(result["report"]).is_file()
    assert result["registration"]["version"] == "1"
    assert result["registration"]["alias"] == "champion"
    assert result["reused"] == []


def test_what_each_task_said_is_kept(toy_run: Any) -> None:
    logs = {path.name: path.read_text() for path in toy_run.home.glob("runs/*/logs/*.log")}
    assert {"train.log", "embed.log", "register.log"} <= logs.keys()
    assert "KFP Executor" in logs["train.log"]


def test_log_is_tidy(toy_run: Any) -> None:
    assert "KFP Executor" not in toy_run.log
    assert "task train: done" in toy_run.log
    assert "UserWarning" not in toy_run.log


def test_mlflow_has_a_parent_with_a_child_for_each_stage(toy_run: Any) -> None:
    children = "select value from tags where key = 'mlflow.parentRunId'"
    parents = toy_run.query(f"select name, status from runs where run_uuid in ({children})")
    assert parents == [("quickstart", "FINISHED")]
    stages = toy_run.query(
        "select name, count(*) from runs where status = 'FINISHED' and "
        "run_uuid in (select run_uuid from tags where key = 'mlflow.parentRunId') group by name"
    )
    assert dict(stages) == STAGE_RUNS


def test_mlflow_has_parameters_metrics_and_datasets(toy_run: Any) -> None:
    def values(sql: str) -> set[str]:
        return {str(row[0]) for row in toy_run.query(sql)}

    assert {"config.num_steps", "config.learning_rate"} <= values("select distinct key from params")
    assert "exact_match" in values("select distinct key from metrics")
    assert {"passages", "questions"} <= values("select distinct name from datasets")


def test_the_last_run_is_noted(toy_run: Any) -> None:
    last = json.loads((toy_run.home / "runs" / "last.json").read_text())
    assert last["recipe"] == "quickstart"
    assert Path(last["model"], "manifest.json").is_file()
    assert last["num_passages"] == 2


def test_ask_answers_with_the_champion(toy_run: Any, run_ralm: Any) -> None:
    done = run_ralm(["ask", "what is the colour of otter", "--json"], toy_run.home)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["source"] == "models:/ralm-quickstart@champion"
    assert len(answer["passages"]) == 2
    assert {"title", "section", "score", "text", "passage_id"} <= set(answer["passages"][0])


@pytest.mark.slow
def test_a_second_run_reuses_everything_and_registers_nothing_new(toy_run: Any) -> None:
    done = toy_run.again("--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"train (model)", "embed (embeddings)", "index (index)", "report (report)"} <= set(result["reused"])
    assert result["registration"]["version"] == "1"
    assert result["before"] == toy_run.result["before"]


def test_a_failing_task_is_named(tmp_path: Path, toy_arguments: list[str], run_ralm: Any) -> None:
    arguments = ["pipeline", "run", *toy_arguments, "--passages", str(tmp_path / "missing.csv"), "--json"]
    done = run_ralm(arguments, tmp_path / "home", RALM_TRACKING="off")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "ralm: error: task download-passages failed" in done.stderr
    assert "missing.csv" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home" / "runs" / "last.json").exists()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--recipe", "nonsense"], "recipe: expected one of"),
        (["--settings", '{"train": {"nonsense": 1}}'], "train.nonsense: unknown setting"),
        (["--settings", '{"train": {"num_steps": "many"}}'], "num_steps"),
        (["--num-steps", "x"], "invalid int value"),
        (["--nonsense", "1"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_settings_end_before_any_task(
    more: list[str], expected: str, tmp_path: Path, toy_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.cli import main

    assert main(["pipeline", "run", *toy_arguments, *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("ralm: error: ")
    assert expected in error


def test_sigterm_ends_the_children_too(tmp_path: Path, toy_arguments: list[str]) -> None:
    environment = {**os.environ, "RALM_HOME": str(tmp_path), "RALM_TRACKING": "off", "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "pipeline", "run", *toy_arguments],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert driver.stderr is not None
    for line in driver.stderr:
        if "download-model: started" in line:
            break
    time.sleep(0.5)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(30) == 130
    driver.stderr.close()
    marker = str(tmp_path).encode()
    deadline = time.monotonic() + 30  # the server of forks ends a moment after its driver
    while alive := [path for path in Path("/proc").glob("[0-9]*/environ") if marker in _read(path)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mlm", "lm"])
def test_pretraining_on_the_corpus_itself(toy_arguments: list[str], tmp_path: Path, run_ralm: Any, task: str) -> None:
    """Joint, reranked and refreshed training on texts that are not allowed to find themselves."""
    settings = {
        "download": {"num_test": 2, "num_dev": 1, "model": {"retriever": {"max_passage_tokens": 64}}},
        "train": {
            "mode": "joint",
            "num_steps": 3,
            "batch_size": 2,
            "num_passages": 2,
            "num_reranked": 5,
            "refresh_schedule": "2",
            "evaluate_every_steps": 2,
        },
        "evaluate": {"num_passages": 2, "recall_at": [1, 5]},
        "report": {"resamples": 100},
    }
    place = toy_arguments.index("--questions") + 1
    arguments = [*toy_arguments[:place], f"corpus:{task}", *toy_arguments[place + 1 :], "--json"]
    arguments[arguments.index("--settings") + 1] = json.dumps(settings)
    done = run_ralm(["pipeline", "run", *arguments], tmp_path / "home", RALM_TRACKING="off")
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout)
    assert {"rouge_1", "eval_loss"} <= set(result["after"])
    manifest = json.loads(Path(result["model"], "manifest.json").read_text())
    assert manifest["counts"]["questions"] == 4
    assert [row["step"] for row in manifest["details"]["evaluations"]] == [2]
    (trained,) = list(Path(result["model"]).glob("training_log.parquet"))
    assert read_table(str(trained), "training_log/2").column("index_overlap").null_count == 2
