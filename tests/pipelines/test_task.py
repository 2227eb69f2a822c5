"""`ralm task`: the tasks of a pipeline as commands, for schedulers that are not Kubeflow Pipelines."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import pytest

from components.plan.stage import Changes, Plan
from pipelines import cli, task
from pipelines.cli import main
from ralm.artifacts.manifest import read_artifact


def test_stages_are_those_of_the_command_line() -> None:
    assert set(task.STAGES) == set(cli.STAGES)


@pytest.mark.parametrize("name", [*task.STEPS, *task.STAGES])
def test_every_task_has_the_flags_of_its_function(name: str) -> None:
    flags = {action.dest for action in task.task_parser(name)._actions}
    parameters = inspect.signature(task._function(name)).parameters
    assert set(parameters) <= flags
    assert ("outputs" in flags, "parent_run_id" in flags) == (name in task.STEPS, name in task.STAGES)
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())


def test_a_step_tells_what_it_found_on_stdout_and_in_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--recipe", "quickstart", "--changes.num-shards", "3", "--changes.registered-as", "mine"]
    settings = ["--changes.settings", '{"evaluate": {"max_questions": 5}}', "--changes.made-with={}"]
    assert main(["task", "plan", *words, *settings, "--outputs", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == list(Plan._fields)
    files = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert set(files) == set(Plan._fields)
    assert json.loads(files["Output"]) == found["Output"] == [0, 1, 2]
    assert files["passages"] == found["passages"] == "asset:enwiki-2016-slice"
    assert json.loads(files["evaluate"])["max_questions"] == 5
    assert json.loads(files["register"])["recipe"] == "mine"


def test_what_is_not_given_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Schedulers give every flag, those without a value too."""
    empty = [f"--changes.{name}=" for name in ("passages", "questions", "mirrors", "registered-as", "settings")]
    assert main(["task", "plan", "--recipe=quickstart", *empty, "--changes.num-shards=0"]) == 0
    given = capsys.readouterr().out
    assert main(["task", "plan", "--recipe", "quickstart"]) == 0
    assert capsys.readouterr().out == given
    assert Changes().registered_as == ""


def test_a_stage_hands_over_a_reference(toy_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--source", str(toy_corpus), "--passages", str(tmp_path / "passages"), "--config", '{"passage_words": 50}']
    assert main(["task", "download", *words, "--parent-run-id=", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [path.name for path in (tmp_path / "passages").iterdir()] == ["manifest.json"]
    manifest = read_artifact(str(tmp_path / "passages")).manifest
    assert manifest.fingerprint == printed["fingerprint"]
    assert manifest.config["passage_words"] == 50


def test_a_run_without_tracking_begins_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task", "start", "--recipe", "quickstart", "--run-id", "one"]) == 0
    assert json.loads(capsys.readouterr().out) == {"parent_run_id": ""}
    for state, outcome in (("Succeeded", "succeeded"), ("Error", "failed: no node"), ("Failed", "failed: no node")):
        words = ["--pipeline", "reindex", "--run-id", "one", "--state", state, "--error", "no node"]
        assert main(["task", "finish", *words]) == 0
        assert json.loads(capsys.readouterr().out) == {"outcome": outcome}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "task: expected one of start, select, plan, watch, finish, download,"),
        (["nonsense"], "found 'nonsense'"),
        (["plan"], "recipe"),
        (["plan", "--recipe", "nonsense"], "recipe: expected one of"),
        (["plan", "--recipe", "quickstart", "--changes.settings", "x"], "settings: no JSON"),
        (["plan", "--recipe", "quickstart", "--changes.num-shards", "many"], "num_shards: expected int, found many"),
        (["index", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["compare", "--previous", "a", "--passages", "b", "--changes", "c", "--config", '{"x": 1}'], "x"),
        (["select", "--recipe", "q", "--selected-model", "m", "--selected-index", "i"], "selected_passages"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if "error" in line]
    assert line.startswith("ralm: error: ")
    assert expected in line


def test_an_error_of_a_stage_is_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--previous", "a", "--passages", str(tmp_path / "none"), "--changes", str(tmp_path / "changes")]
    assert main(["task", "compare", *words]) == 2
    assert "ralm: error: " in capsys.readouterr().err
    assert not (tmp_path / "changes").exists()


def test_an_image_without_the_model_libraries_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "components.index.stage", raising=False)
    monkeypatch.setitem(sys.modules, "components.index.stage", None)
    assert main(["task", "index", "--embeddings", "e", "--index", "i"]) == 2
    assert "index needs the package components.index.stage; use the image for models" in capsys.readouterr().err
