"""Whole runs of the graphs that go on from a registered model, one after another, with MLflow and a webhook.

The main figure is made to depend on the corpus alone: the share of questions whose page is among all 7 passages. A
corpus without these pages is worse, whatever the model does.
"""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.driver import Done, Driver
from tests.webhook import Webhook

SETTINGS: dict[str, Any] = {
    "evaluate": {"num_passages": 2, "recall_at": [1, 7]},
    "gate": {"metric": "recall_title_at_7", "resamples": 200},
}
PAGES = {
    "Granite": "amber",
    "Willow": "silver",
    "Otter": "crimson",
    "Copper": "iron",
    "Falcon": "wooden",
    "Harbour": "amber",
    "Violin": "silver",
}
"""The corpus of the toy run; questions are asked about the last two."""
NEXT = {**{title: word for title, word in PAGES.items() if title != "Granite"}, "Otter": "purple", "Badger": "amber"}
"""One page is gone, one came, one changed."""
LATER = {**NEXT, "Badger": "silver"}
WORSE = dict.fromkeys(("Granite", "Willow", "Otter", "Copper", "Falcon", "Badger", "Moon"), "grey")
EARLY_TASKS = ["start", "select-pair", "plan", "watch"]


@dataclass
class Story:
    """A home with a champion, and commands in it."""

    driver: Driver
    hook: Webhook
    folder: Path
    questions: Path
    runs: dict[str, Done] = field(default_factory=dict)
    messages: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What the webhook was told of each run."""
    parents: dict[str, dict[str, str]] = field(default_factory=dict)
    """Tags of each run's parent run in MLflow, and its status."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Alias of each version after the worse corpus."""

    def run(self, label: str, *words: str) -> Done:
        """Run a command and remember what came of it."""
        before = len(self.hook.messages)
        done = self.runs[label] = self.driver.run(*words)
        self.messages[label] = self.hook.messages[before:]
        self.parents[label] = self._last_parent()
        return done

    def pipeline(self, name: str, label: str, *, settings: Mapping[str, Any] = SETTINGS, **inputs: str) -> Done:
        """Run a pipeline with the toy questions."""
        given = {"questions": str(self.questions), "settings": json.dumps(settings), **inputs}
        words = [word for key, value in given.items() for word in ("--param", f"{key}={value}")]
        return self.run(label, "pipeline", "run", "--pipeline", name, "--json", *words)

    def reindex(self, label: str, pages: Mapping[str, str], **more: Any) -> Done:
        """Re-index a corpus of these pages."""
        place = self.folder / f"{'-'.join(pages)}-{'-'.join(pages.values())}.csv"
        with place.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["title", "text"])
            for title, word in pages.items():
                writer.writerow([title, f"The colour of {title} is mostly {word} in the northern valleys."])
        return self.pipeline("reindex", label, **{"source": str(place), "num_shards": "2", **more})

    def versions(self) -> dict[str, str]:
        """Alias of each version in the registry."""
        listed = self.driver.run("registry", "list", "--json").result["versions"]
        return {version["version"]: version["alias"] for version in listed}

    def query(self, sql: str, *values: str) -> list[tuple[Any, ...]]:
        """Ask the MLflow database."""
        with sqlite3.connect(self.driver.home / "mlflow.db") as connection:
            return connection.execute(sql, values).fetchall()

    def _last_parent(self) -> dict[str, str]:
        parents = "select run_uuid from tags where key = 'kfp.run_id'"
        run, status = self.query(
            f"select run_uuid, status from runs where run_uuid in ({parents}) order by start_time desc limit 1"
        )[0]
        return {**dict(self.query("select key, value from tags where run_uuid = ?", run)), "status": status}


@pytest.fixture(scope="module")
def story(toy_run: Any, toy_question_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A new corpus, the same again, a worse one, that again, and two runs that fail."""
    folder = tmp_path_factory.mktemp("reindex")
    home = folder / "home"
    shutil.copytree(toy_run.home, home)
    with Webhook() as hook, Driver(home, RALM_WEBHOOK_URL=hook.url) as driver:
        story = Story(driver, hook, folder, toy_question_files)
        story.reindex("new", NEXT)
        story.reindex("again", NEXT)
        story.reindex("worse", WORSE)
        story.reindex("worse again", WORSE)
        story.aliases = story.versions()
        story.reindex("no source", {}, source=str(folder / "missing.csv"))
        story.reindex("no index", LATER, settings={**SETTINGS, "index": {"kind": "pq", "code_size": 7}})
        yield story


# ---- something new ------------------------------------------------------------------------------------------------


def test_a_new_corpus_becomes_the_next_version(story: Story) -> None:
    result = story.runs["new"].result
    assert result["registered"]["version"] == "2"
    assert result["registered"]["alias"] == "champion"
    assert result["registered"]["promoted"] is True
    assert result["decision"]["promote"] is True
    assert result["decision"]["champion_version"] == "1"
    assert result["metrics"]["recall_title_at_7"] == 1.0
    assert story.messages["new"] == []


def test_only_what_changed_is_encoded(story: Story) -> None:
    result = story.runs["new"].result
    pages, passages = result["changes"]["pages"], result["changes"]["passages"]
    assert (pages["before"], pages["after"]) == (7, 7)
    assert (pages["unchanged"], pages["changed"], pages["added"], pages["removed"]) == (5, 1, 1, 1)
    assert passages["unchanged"] + passages["removed"] == passages["before"] == 7
    assert passages["unchanged"] + passages["added"] == passages["after"] == 7
    assert (passages["taken_over"], passages["encoded"]) == (5, 2)
    shards = [event["counts"] for event in result["artifacts"] if event["stage"] == "embed"]
    assert len(shards) == 2
    assert sum(shard["passages"] for shard in shards) == 7
    assert sum(shard["taken_over"] for shard in shards) == 5
    assert sum(shard["encoded"] for shard in shards) == 2


def test_mlflow_knows_the_run_and_where_the_version_comes_from(story: Story) -> None:
    parent = story.parents["new"]
    assert (parent["status"], parent["ralm.outcome"]) == ("FINISHED", "succeeded")
    assert parent["ralm.promotion"].startswith("promoted: ralm-quickstart 2: ")
    tags = dict(story.query("select key, value from model_version_tags where version = ?", "2"))
    result = story.runs["new"].result
    made = {event["kind"]: event["fingerprint"] for event in result["artifacts"]}
    assert tags["ralm.corpus"] == made["passages"]
    assert len(tags["ralm.passage_encoder"]) == 64
    assert (tags["ralm.parent_version"], tags["ralm.measured_against"]) == ("1", "1")
    assert tags["ralm.index"] == made["index"]
    children = "select name from runs where run_uuid in (select run_uuid from tags where value = ?)"
    (run_id,) = story.query("select run_uuid from tags where key = 'ralm.run_id' and value = ?", result["run_id"])[0]
    names = [name for (name,) in story.query(children, run_id)]
    assert sorted(names) == sorted(event["stage"] for event in result["artifacts"])


def test_a_summary_says_what_happened(story: Story) -> None:
    from pipelines.package_runs import show_stages

    text = show_stages(story.runs["new"].result)
    assert "passages           7, 2 of them encoded" in text
    assert "registered         ralm-quickstart version 2 (champion)" in text
    text = show_stages(story.runs["worse"].result)
    assert "registered         ralm-quickstart version 3 (challenger)" in text
    assert "because            recall title@7 of the challenger 0.00 %, of the champion 100.00 %" in text
    assert "nothing new" in show_stages(story.runs["again"].result)


# ---- nothing new --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["again", "worse again"])
def test_nothing_new_ends_early_and_does_nothing(label: str, story: Story) -> None:
    done = story.runs[label]
    assert done.tasks == [*EARLY_TASKS, "finish"]
    result = done.result
    assert (result["artifacts"], result["registered"], result["decision"]) == ([], {}, {})
    assert story.messages[label] == []
    assert story.parents[label]["status"] == "FINISHED"
    assert story.parents[label]["ralm.outcome"].startswith("nothing new: the content of ")


def test_what_was_refused_is_not_tried_again(story: Story) -> None:
    assert "version 3 of ralm-quickstart is of it too and was weighed already" in story.runs["worse again"].log


# ---- something worse ----------------------------------------------------------------------------------------------


def test_a_worse_index_is_kept_but_not_used(story: Story) -> None:
    result = story.runs["worse"].result
    assert result["decision"]["promote"] is False
    assert (result["registered"]["version"], result["registered"]["alias"]) == ("3", "challenger")
    assert result["registered"]["promoted"] is False
    assert story.aliases == {"1": "", "2": "champion", "3": "challenger"}
    assert story.parents["worse"]["status"] == "FINISHED"


def test_a_refusal_is_told_once_and_noted(story: Story) -> None:
    parent = story.parents["worse"]
    assert parent["ralm.promotion"].startswith("refused: ralm-quickstart 3: recall title@7 of the challenger 0.00 %")
    assert parent["ralm.outcome"] == parent["ralm.promotion"]
    (message,) = story.messages["worse"]
    assert (message["pipeline"], message["state"], message["reason"]) == ("reindex", "refused", parent["ralm.outcome"])
    assert message["run_id"] == parent["kfp.run_id"]
    assert message["reason"] in message["text"]


# ---- failures -----------------------------------------------------------------------------------------------------


def test_a_task_that_fails_is_named_with_its_error(story: Story) -> None:
    done = story.runs["no source"]
    assert (done.code, done.out) == (2, "")
    told = f"{story.folder}/missing.csv: expected a file, found nothing"
    assert done.error == f"ralm: error: task watch failed: {told}"
    assert "Traceback" not in done.log
    (message,) = story.messages["no source"]
    assert (message["state"], message["reason"]) == ("failed", f"failed: watch: {told}")
    assert story.parents["no source"]["status"] == "FAILED"
    assert story.parents["no source"]["ralm.outcome"] == message["reason"]


def test_so_is_one_in_a_graph_in_a_condition(story: Story) -> None:
    done = story.runs["no index"]
    told = "kind: pq needs at least 256 passages, found 7; use flat"
    assert (done.code, done.out) == (2, "")
    assert done.error == f"ralm: error: task index failed: {told}"
    (message,) = story.messages["no index"]
    assert message["reason"] == f"failed: index: {told}"
    assert story.parents["no index"]["status"] == "FAILED"
    assert "gate" not in done.tasks


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--param", "nonsense=1"], "param: reindex has no input 'nonsense', expected one of confidence, force,"),
        (["--param", "num_shards=many"], "param num_shards: expected a whole number, found 'many'"),
        (["--param", "force=maybe"], "param force: expected true or false, found 'maybe'"),
        (["--param", "max_loss=nan"], "param max_loss: expected a number, found 'nan'"),
        (["--param", "recipe"], "param: expected NAME=VALUE, found 'recipe'"),
        (["--recipe", "quickstart", "--param", "recipe=quickstart"], "param recipe: given twice"),
        (["--num-steps", "3"], "param: reindex has no input 'num_steps'"),
        (["--config", "settings.yaml"], "config: goes with train-and-evaluate; give --param NAME=VALUE"),
        (["--param", "recipe=nonsense"], "recipe: expected one of"),
        (["--param", "recipe=nq-base"], "questions: this recipe names none"),
        (["--param", "confidence=95"], "confidence: expected more than 0.5 and less than 1, found 95.0"),
        (["--param", "max_loss=-0.5"], "max_loss: expected at least 0, or -1 for that of the recipe, found -0.5"),
        (["--param", 'settings={"embed": {"speed": 1}}'], "embed.speed: unknown setting"),
        (["--param", 'settings={"evaluate": {"split": 1}}'], "split: expected str, found 1"),
        (["--pipeline", "nonsense"], "pipeline: expected one of train-and-evaluate, reindex, evaluate, pretrain"),
        (["--pipeline", "train-and-evaluate", "--param", "recipe=x"], "param: train-and-evaluate has a flag for each"),
    ],
)
def test_what_is_wrong_with_a_command_is_told_before_any_task(
    words: list[str], expected: str, ralm_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.cli import main

    assert main(["pipeline", "run", "--pipeline", "reindex", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("ralm: error: ")
    assert expected in captured.err.splitlines()[-1]
    assert not (ralm_home / "runs").exists()


# ---- what takes longer --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_champion_is_needed(tmp_path: Path, run_ralm: Any) -> None:
    done = run_ralm(["pipeline", "run", "--pipeline", "reindex"], tmp_path)
    assert done.returncode == 2
    expected = "task select-pair failed: select: the registry has no champion of ralm-quickstart; train a pair first"
    assert expected in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_what_was_rolled_back_stays_so_unless_a_person_promotes_it(story: Story) -> None:
    assert story.versions() == {"1": "", "2": "champion", "3": "challenger"}
    assert story.driver.run("registry", "rollback", "--recipe", "quickstart").code == 0
    try:
        done = story.reindex("after rollback", NEXT)
        assert done.tasks == [*EARLY_TASKS, "finish"]
        assert "version 2 of ralm-quickstart is of it too and was weighed already" in done.log
        assert story.versions()["1"] == "champion"
        forced = story.reindex("forced", NEXT, force="true").result
        assert (forced["registered"]["version"], forced["registered"]["promoted"]) == ("2", False)
        assert "it was rolled back" in forced["registered"]["reason"]
        assert [message["state"] for message in story.messages["forced"]] == ["refused"]
        assert all(event["reused"] for event in forced["artifacts"] if event["stage"] in ("download", "embed", "index"))
        assert story.versions() == {"1": "champion", "2": "challenger", "3": ""}
    finally:
        words = ["registry", "promote", "2", "--recipe", "quickstart", "--because", "the test goes on"]
        assert story.driver.run(*words).code == 0


@pytest.mark.slow
def test_questions_on_fresh_facts_are_asked_besides(story: Story) -> None:
    fresh = story.folder / "fresh"
    fresh.mkdir()
    row = {"question": "what is the colour of badger", "answers": ["silver"], "positive_titles": ["Badger"]}
    (fresh / "test.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    done = story.reindex("fresh", LATER, fresh_questions=str(fresh))
    result = done.result
    assert sum(task.startswith("evaluate") for task in done.tasks) == 4
    assert sum(task.startswith("gate") for task in done.tasks) == 1
    assert result["decision"]["fresh"]["recall_title_at_7"]["questions"] == 1
    assert result["metrics"]["num_questions"] == 6  # of the main questions, whichever evaluation ended last
    assert result["registered"]["alias"] == "champion"


@pytest.mark.slow
def test_a_pair_is_evaluated_by_alias_by_number_and_by_place(story: Story) -> None:
    by_number = story.pipeline("evaluate", "version 1", version="1").result
    by_alias = story.pipeline("evaluate", "champion").result
    assert (by_number["metrics"]["recall_title_at_7"], by_alias["metrics"]["recall_title_at_7"]) == (1.0, 1.0)
    assert [event["stage"] for event in by_number["artifacts"]] == ["download", "evaluate"]
    assert by_number["registered"] == by_number["decision"] == {}
    worse = {event["kind"]: event["uri"] for event in story.runs["worse"].result["artifacts"]}
    places = {"index": worse["index"], "passages": worse["passages"]}
    model = story.runs["worse"].result["registered"]["model"]
    given = story.pipeline("evaluate", "places", model=model, **places).result
    assert given["metrics"]["recall_title_at_7"] == 0.0
    assert story.parents["places"]["ralm.outcome"] == "succeeded"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"version": "99"}, "the registry has no 99 of ralm-quickstart"),
        ({"model": "/nowhere"}, "expected model, index and passages, or none of them, found model"),
        ({"registered_as": "other"}, "the registry has no champion of ralm-other"),
    ],
)
def test_a_pair_that_is_not_there(inputs: dict[str, str], expected: str, story: Story) -> None:
    done = story.pipeline("evaluate", "wrong", **inputs)
    assert done.code == 2
    assert expected in done.error
    assert len(story.messages["wrong"]) == 1
    assert expected in story.messages["wrong"][0]["reason"]


@pytest.mark.slow
def test_a_model_learns_on_the_corpus_itself(story: Story, toy_corpus: Path, tiny_model_files: Path) -> None:
    few = {"num_passages": 2, "num_reranked": 0}
    settings = {
        "download": {"num_test": 2, "num_dev": 1, "model": {"retriever": {"max_passage_tokens": 64}}},
        "train": {"num_steps": 2, "batch_size": 2, "refresh_schedule": "-1", **few},
        "evaluate": {"recall_at": [1, 5], **few},
    }
    sources = {"passages": str(toy_corpus), "model": str(tiny_model_files), "questions": "corpus:mlm"}
    done = story.pipeline("pretrain", "pretrain", settings=settings, num_shards="2", **sources)
    result = done.result
    assert result["registered"]["name"] == "ralm-atlas-pretrain-mlm"
    assert result["registered"]["alias"] == "champion"
    assert "rouge_1" in result["metrics"]
    assert story.parents["pretrain"]["ralm.outcome"] == "succeeded"
    assert story.messages["pretrain"] == []
