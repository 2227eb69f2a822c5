"""The commands of deploy/argo/reindex.yaml, run as written on a toy champion: the same outcomes as Kubeflow's graph."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.argo import Run
from tests.pipelines.driver import Driver
from tests.webhook import Webhook

SETTINGS: Mapping[str, Any] = {
    "evaluate": {"num_passages": 2, "recall_at": [1, 7]},
    "gate": {"metric": "recall_title_at_7", "resamples": 200},
}
PAGES = ("Granite", "Willow", "Otter", "Copper", "Falcon", "Harbour", "Violin")
NEXT = (*PAGES[1:], "Badger")
WORSE = (*PAGES[:5], "Badger", "Moon")
"""Without the two pages that the questions are about."""

pytestmark = pytest.mark.slow


@dataclass
class Story:
    """A home with a champion, and what came of the workflow's runs in it."""

    home: Path
    statuses: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, list[str]] = field(default_factory=dict)
    messages: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)

    def query(self, sql: str, *values: str) -> list[tuple[Any, ...]]:
        """Ask the MLflow database."""
        with sqlite3.connect(self.home / "mlflow.db") as connection:
            return connection.execute(sql, values).fetchall()

    def parent(self, label: str) -> dict[str, str]:
        """Status and tags of a run's parent run."""
        ((run, status),) = self.query(
            "select r.run_uuid, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
            "where t.key = 'kfp.run_id' and t.value = ?",
            label,
        )
        return {**dict(self.query("select key, value from tags where run_uuid = ?", run)), "status": status, "id": run}


def write_corpus(place: Path, titles: tuple[str, ...]) -> str:
    with place.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "text"])
        for title in titles:
            writer.writerow([title, f"The colour of {title} is mostly amber in the northern valleys."])
    return str(place)


@pytest.fixture(scope="module")
def story(toy_run: Any, toy_question_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A new corpus, the same again, a worse one asked about what changed, and one that is not there."""
    folder = tmp_path_factory.mktemp("argo")
    shutil.copytree(toy_run.home, folder / "home")
    story = Story(folder / "home")
    questions = {"recipe": "quickstart", "questions": str(toy_question_files), "settings": json.dumps(SETTINGS)}
    new = write_corpus(folder / "next.csv", NEXT)
    worse = write_corpus(folder / "worse.csv", WORSE)
    runs: Mapping[str, Mapping[str, str]] = {
        "new": {"source": new, "num-shards": "2"},
        "again": {"source": new, "num-shards": "2"},
        "worse": {"source": worse, "num-shards": "1", "fresh-questions": str(toy_question_files)},
        "missing": {"source": str(folder / "missing.csv"), "num-shards": "1"},
    }
    for label, parameters in runs.items():
        with Webhook() as hook, Driver(story.home, RALM_WEBHOOK_URL=hook.url, RALM_RUN_ID=label) as driver:

            def command(words: list[str], driver: Driver = driver, label: str = label) -> int:
                if words[0] != "ralm":
                    assert words[0] == "find"
                    return 0
                done = driver.run(*words[1:])
                story.logs[label] = story.logs.get(label, "") + done.log
                return done.code

            run = Run(folder / label, label, command, {**questions, **parameters}, home=story.home)
            story.statuses[label] = run.run()
            story.tasks[label] = [words[2] for words in run.commands if words[0] == "ralm"]
            story.messages[label] = hook.messages
    return story


def test_a_new_corpus_becomes_the_next_version(story: Story) -> None:
    assert story.statuses["new"] == "Succeeded", story.logs["new"][-4000:]
    assert story.tasks["new"][-3:] == ["gate", "register", "finish"]
    parent = story.parent("new")
    assert (parent["status"], parent["ralm.outcome"]) == ("FINISHED", "succeeded")
    assert parent["ralm.promotion"].startswith("promoted: ralm-quickstart 2: ")
    assert story.messages["new"] == []
    aliases = dict(story.query("select version, alias from registered_model_aliases"))
    assert aliases[2] == "champion"


def test_runs_of_the_stages_are_children_of_the_runs_run(story: Story) -> None:
    children = "select name from runs where run_uuid in (select run_uuid from tags where key = ? and value = ?)"
    names = [name for (name,) in story.query(children, "mlflow.parentRunId", story.parent("new")["id"])]
    done = [task for task in story.tasks["new"] if task not in ("start", "select", "plan", "watch", "finish")]
    assert sorted(names) == sorted(done)


def test_what_is_handed_over_is_small(story: Story) -> None:
    files = [path for path in (story.home / "handover" / "new").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"manifest.json"}
    assert len(files) == 3 + 2 + 8  # what was selected, shards, and what the other stages made


def test_nothing_new_ends_early(story: Story) -> None:
    assert story.statuses["again"] == "Succeeded"
    assert story.tasks["again"] == ["start", "select", "plan", "watch", "finish"]
    assert story.parent("again")["ralm.outcome"].startswith("nothing new: the content of ")
    assert story.messages["again"] == []


def test_a_worse_index_is_refused_and_told(story: Story) -> None:
    assert story.statuses["worse"] == "Succeeded", story.logs["worse"][-4000:]
    assert story.tasks["worse"].count("evaluate") == 4
    parent = story.parent("worse")
    assert parent["ralm.promotion"].startswith("refused: ralm-quickstart 3: ")
    assert parent["status"] == "FINISHED"
    (message,) = story.messages["worse"]
    assert (message["pipeline"], message["state"], message["run_id"]) == ("reindex", "refused", "worse")


def test_a_failure_is_told_with_its_reason(story: Story) -> None:
    assert story.statuses["missing"] == "Failed"
    assert story.tasks["missing"][-2:] == ["watch", "finish"]
    parent = story.parent("missing")
    assert parent["status"] == "FAILED"
    assert "missing.csv: expected a file, found nothing" in parent["ralm.outcome"]
    (message,) = story.messages["missing"]
    assert message["state"] == "failed"
