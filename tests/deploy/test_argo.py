"""deploy/argo: valid for Argo, runnable as written, and the same graph as pipelines/reindex.py."""

from __future__ import annotations

import copy
import json
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compile import compiled_file
from pipelines.task import STEPS, task_parser
from ralm.cli import normalise_flags
from tests.deploy.argo import Node, Run, fill_in, is_true, may_start, workflow_spec
from tests.deploy.manifests import DEPLOY, Document, documents

WRITERS = (yaml.Dumper, yaml.representer.SafeRepresenter)
BEFORE = [writer.yaml_representers for writer in WRITERS]
models = pytest.importorskip("hera.workflows.models")
for writer, representers in zip(WRITERS, BEFORE, strict=True):
    writer.yaml_representers = representers  # hera changes how all of yaml writes texts, that of kfp too
SHOWN = ("system.Metrics", "system.Markdown", "system.HTML")
EARLY = ["start", "select", "plan", "watch"]


def check(document: Document) -> None:
    """Raise for a field that is unknown, missing or of another type. The models drop what they do not know."""
    known = models.CronWorkflow.model_validate(document)
    if known.model_dump(by_alias=True, exclude_unset=True, mode="json") != document:
        raise ValueError("unknown field, or a value of another type")


def cron_workflow() -> Document:
    (document,) = documents(DEPLOY / "argo" / "reindex.yaml")
    return document


def tasks() -> dict[str, Document]:
    """The templates that call `ralm task`."""
    templates = workflow_spec()["templates"]
    return {t["name"]: t for t in templates if t.get("container", {}).get("command", [])[:2] == ["ralm", "task"]}


# ---- the schema ---------------------------------------------------------------------------------------------------


def test_the_workflow_is_valid() -> None:
    check(cron_workflow())


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of one field of each name that Argo defines."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        if isinstance(key, str) and prefix[-1:] not in (("requests",), ("limits",), ("nodeSelector",)):
            yield (*prefix, key)
        yield from paths(entry, (*prefix, key))


def test_a_misspelt_field_is_refused() -> None:
    original = cron_workflow()
    firsts = {tuple(key for key in path if isinstance(key, str)): path for path in reversed(list(paths(original)))}
    assert len(firsts) > 50
    for path in firsts.values():
        mutant = copy.deepcopy(original)
        parent = mutant
        for key in path[:-1]:
            parent = parent[key]
        parent[f"{path[-1]}s"] = parent.pop(path[-1])
        with pytest.raises(ValueError):  # noqa: PT011 - pydantic's, or that of a field that is not known
            check(mutant)


def test_one_run_at_a_time_and_each_has_an_end() -> None:
    spec = cron_workflow()["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["workflowSpec"]["activeDeadlineSeconds"] > 86400
    for name, template in tasks().items():
        assert template["activeDeadlineSeconds"] > 0
        retry = template["retryStrategy"]
        assert (retry["limit"], retry["retryPolicy"]) == ("3", "Always"), name
        assert retry["expression"] == "asInt(lastRetry.exitCode) != 2"


# ---- the commands -------------------------------------------------------------------------------------------------


def sample(word: str, template: Document) -> str:
    """A word of a command with a value for every name that the template may use."""
    values = {"config": "{}", "shard": "0", "num-shards": "2", "made-with": "{}"}
    inputs = [parameter["name"] for parameter in template.get("inputs", {}).get("parameters", [])]
    scope = {f"inputs.parameters.{name}": values.get(name, "text") for name in inputs}
    for parameter in workflow_spec()["arguments"]["parameters"]:
        scope[f"workflow.parameters.{parameter['name']}"] = parameter["value"]
    return fill_in(word, {**scope, "workflow.uid": "uid", "workflow.status": "Succeeded"})


@pytest.mark.parametrize("name", list(tasks()))
def test_a_command_is_understood(name: str) -> None:
    template = tasks()[name]
    command = template["container"]["command"][2]
    words = [sample(word, template) for word in template["container"]["args"]]
    task_parser(command).parse_args(normalise_flags(words))
    assert ("--outputs=/tmp/outputs" in words) == bool(template.get("outputs"))


@pytest.mark.parametrize("name", [name for name, template in tasks().items() if template.get("outputs")])
def test_an_output_is_a_field_of_what_the_step_finds(name: str) -> None:
    template = tasks()[name]
    fields = typing.get_type_hints(STEPS[template["container"]["command"][2]])["return"]._fields
    for parameter in template["outputs"]["parameters"]:
        assert Path(parameter["valueFrom"]["path"]).name in fields


# ---- the same graph as Kubeflow's ---------------------------------------------------------------------------------


def graph_tasks() -> Iterator[tuple[str, frozenset[str], str, tuple[str, ...], int]]:
    """Stage, flags, image, resources and timeout of each task of the compiled graph."""
    spec, platform = yaml.safe_load_all(compiled_file("cluster", pipeline="reindex").read_text(encoding="utf-8"))
    executors = spec["deploymentSpec"]["executors"]
    limits = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]

    def walk(component: Document) -> Iterator[tuple[str, frozenset[str], str, tuple[str, ...], int]]:
        for task in component["dag"]["tasks"].values():
            inner = spec["components"][task["componentRef"]["name"]]
            if "dag" in inner:
                yield from walk(inner)
                continue
            inputs = task.get("inputs", {})
            outputs = inner.get("outputDefinitions", {}).get("artifacts", {})
            made = [name for name, output in outputs.items() if output["artifactType"]["schemaTitle"] not in SHOWN]
            flags = {*inputs.get("parameters", {}), *inputs.get("artifacts", {}), *made}
            container = executors[inner["executorLabel"]]["container"]
            size = container["resources"]
            amounts = [size[f"resource{what}"] for what in ("CpuRequest", "CpuLimit", "MemoryRequest", "MemoryLimit")]
            gpus = size.get("accelerator", {}).get("resourceCount", "0")
            timeout = int(limits[inner["executorLabel"]]["activeDeadlineSeconds"])
            stage = inner["executorLabel"].removeprefix("exec-").split("-op")[0].split("-")[0]
            yield stage, frozenset(flags), container["image"], (*amounts, gpus), timeout

    yield from walk(spec["root"])


RENAMED = {"kfp_run_id": "run_id", "status": "state"}
"""Inputs that only Kubeflow knows, and what stands for them."""


def test_tasks_flags_images_and_sizes_are_those_of_the_graph() -> None:
    expected = {
        (stage, frozenset(RENAMED.get(flag, flag) for flag in flags - {"recipes"}), *rest)
        for stage, flags, *rest in graph_tasks()
    }
    found = set()
    for template in tasks().values():
        container = template["container"]
        words = [word.partition("=")[0] for word in container["args"]]
        flags = [flag.removeprefix("--").removeprefix("changes.") for flag in normalise_flags(words)]
        asked, most = container["resources"]["requests"], container["resources"]["limits"]
        size = (asked["cpu"], most["cpu"], asked["memory"], most["memory"], most.get("nvidia.com/gpu", "0"))
        stage, image = container["command"][2], container["image"]
        found.add((stage, frozenset(flags) - {"outputs"}, image, size, template["activeDeadlineSeconds"]))
    assert found == expected


def test_inputs_and_their_defaults_are_those_of_the_graph() -> None:
    spec = next(yaml.safe_load_all(compiled_file("cluster", pipeline="reindex").read_text(encoding="utf-8")))
    expected = {
        name.replace("_", "-"): definition["defaultValue"]
        for name, definition in spec["root"]["inputDefinitions"]["parameters"].items()
    }
    given = {parameter["name"]: parameter["value"] for parameter in workflow_spec()["arguments"]["parameters"]}
    assert given.keys() == expected.keys()
    chosen = {"recipe", "source", "questions", "num-shards"}  # an example; the others are the defaults
    for name in given.keys() - chosen:
        plain = expected[name] if isinstance(expected[name], str) else json.dumps(expected[name])
        assert given[name] == plain, name


# ---- how it goes, without the work --------------------------------------------------------------------------------


class Pretend:
    """Commands that do nothing but note what they read and write, and find what they are told to."""

    def __init__(self, is_new: bool = True, fails: str = "") -> None:
        self.is_new, self.fails = is_new, fails
        self.written: set[str] = set()

    def __call__(self, words: list[str]) -> int:
        if words[:2] != ["ralm", "task"]:
            return 0
        task, flags = words[2], dict(word.removeprefix("--").split("=", 1) for word in words[3:])
        places = {name: value for name, value in flags.items() if "/handover/" in value}
        own = {"download": ("passages", "questions"), "embed": ("embeddings",), "compare": ("changes",)}
        own |= {"evaluate": ("predictions",), "gate": ("decision",), "register": ("registration",), "index": ("index",)}
        own |= {"select": tuple(places)}
        made = {value for name, value in places.items() if name in own.get(task, ())}
        for name, place in places.items():
            is_there = place in self.written or any(known.startswith(f"{place}/") for known in self.written)
            assert is_there or place in made, f"{task} reads {name} {place}, which nobody has written"
        if self.fails == task:
            return 1
        is_shared = task == "embed"  # each shard makes a folder of its own in there
        assert is_shared or not made & self.written, f"{task} writes {made}, which another task has written"
        self.written |= made
        if "outputs" in flags:
            self._find(Path(flags["outputs"]))
        return 0

    def _find(self, folder: Path) -> None:
        folder.mkdir()
        found = {"is_new": json.dumps(self.is_new), "Output": "[0, 1, 2]", "num_shards": "3", "recipe": "mine"}
        for template in tasks().values():
            for parameter in template.get("outputs", {}).get("parameters", []):
                name = Path(parameter["valueFrom"]["path"]).name
                (folder / name).write_text(found.get(name, "{}"), encoding="utf-8")


def pretend(folder: Path, does: Pretend, **parameters: str) -> tuple[str, list[str], list[list[str]]]:
    """Status, tasks and commands of a run that pretends."""
    given = {name.replace("_", "-"): value for name, value in parameters.items()}
    run = Run(folder, "uid", does, given)
    status = run.run()
    return status, [words[2] if words[0] == "ralm" else words[0] for words in run.commands], run.commands


def test_the_tasks_of_a_run_that_found_something(tmp_path: Path) -> None:
    status, names, commands = pretend(tmp_path, Pretend())
    assert status == "Succeeded"
    rebuild = ["download", "compare", "embed", "embed", "embed", "index", "download", "evaluate", "evaluate"]
    assert names == [*EARLY, *rebuild, "gate", "register", "finish", "find"]
    shards = [word for words in commands if words[2] == "embed" for word in words if word.startswith("--shard")]
    assert shards == ["--shard=0", "--shard=1", "--shard=2"]
    assert all(words[0] != "ralm" or not any("{{" in word for word in words) for words in commands)


def test_the_tasks_of_a_run_with_questions_about_what_changed(tmp_path: Path) -> None:
    status, names, commands = pretend(tmp_path, Pretend(), fresh_questions="dataset:templama")
    assert status == "Succeeded"
    assert names[-7:] == ["download", "evaluate", "evaluate", "gate", "register", "finish", "find"]
    assert (names.count("evaluate"), names.count("gate"), names.count("register")) == (4, 1, 1)
    (gate,) = [words for words in commands if words[2] == "gate"]
    assert any(word.startswith("--fresh-challenger=") for word in gate)


def test_nothing_new_ends_after_four_tasks(tmp_path: Path) -> None:
    status, names, _ = pretend(tmp_path, Pretend(is_new=False))
    assert (status, names) == ("Succeeded", [*EARLY, "finish", "find"])


@pytest.mark.parametrize("task", ["select", "watch", "download", "embed", "gate"])
def test_after_a_failure_only_the_end_follows(task: str, tmp_path: Path) -> None:
    status, names, commands = pretend(tmp_path, Pretend(fails=task))
    assert status == "Failed"
    assert names[-2:] == [task, "finish"]
    assert "--state=Failed" in commands[-1]


# ---- the runner itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "expected"),
    [("true == true", True), ("false == true", False), ("'' == ''", True), ("'a/b' == ''", False), ("'a' != ''", True)],
)
def test_conditions(condition: str, expected: bool) -> None:
    assert is_true(condition) is expected


def test_dependencies() -> None:
    nodes = {"a": Node("Succeeded"), "b": Node("Skipped")}
    cases: Sequence[tuple[str, bool]] = [("a && b", True), ("b.Succeeded", False), ("b.Succeeded || a.Succeeded", True)]
    for depends, expected in cases:
        assert may_start(depends, nodes) is expected
