"""The committed files: fresh, the same everywhere, usable as a form, and complete for a cluster."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.images import BASE_IMAGE, CPU_IMAGE, GPU_IMAGE
from pipelines.compile import IMAGES, NEVER_CACHED, PIPELINES, PROFILES, TITLES, compiled_file
from pipelines.lint import lint_pipeline
from pipelines.profiles import Sizes
from pipelines.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]
TYPES = {"STRING", "NUMBER_INTEGER", "NUMBER_DOUBLE", "BOOLEAN"}
ENVIRONMENT = {
    "RALM_HOME": "/ralm",
    "RALM_STORE_URI": "/ralm/store",
    "RALM_PRECISION": "bf16",
    "RALM_JOB_CLAIM": "ralm-home",
    "RALM_JOB_ACCELERATOR": "nvidia.com/gpu",
    "RALM_JOB_CPUS": "16",
    "RALM_JOB_MEMORY": "256Gi",
    "RALM_JOB_SECRET": "ralm-store",
    "MLFLOW_TRACKING_URI": "http://mlflow:5000",
}
SECRETS = {
    "AWS_ACCESS_KEY_ID": "ralm-store",
    "AWS_SECRET_ACCESS_KEY": "ralm-store",
    "MLFLOW_TRACKING_USERNAME": "ralm-mlflow",
    "MLFLOW_TRACKING_PASSWORD": "ralm-mlflow",
    "RALM_WEBHOOK_URL": "ralm-webhook",
}
KINDS = {
    "small": ("plan", "start", "finish", "select-pair", "watch", "gate", "register", "report"),
    "corpus": ("download-passages", "download-questions", "download-model", "compare"),
    "encode": ("embed",),
    "index": ("index",),
    "evaluate": ("evaluate",),
    "train": ("train",),
}
Documents = list[dict[str, Any]]


def read(path: Path) -> Documents:
    return list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader))


@functools.cache
def committed(pipeline: str, profile: str = "cluster") -> Documents:
    return read(compiled_file(profile, pipeline=pipeline))  # type: ignore[arg-type]


def tasks(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every task of every graph in a file that runs a container: its component without number, and itself."""
    for part in (document["root"], *document["components"].values()):
        for task in part.get("dag", {}).get("tasks", {}).values():
            component = document["components"][task["componentRef"]["name"]]
            if "executorLabel" in component:
                yield re.sub(r"-op(-\d+)?$", "", component["executorLabel"].removeprefix("exec-")), task


def containers(pipeline: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each executor of a cluster file: its component, its container, and what is for kubernetes alone."""
    document, platform = committed(pipeline)
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for label, executor in document["deploymentSpec"]["executors"].items():
        yield re.sub(r"-op(-\d+)?$", "", label.removeprefix("exec-")), executor["container"], settings[label]


# ---- the files as they are committed ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files as another process compiles them, in another folder, with settings and secrets of its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    own = {
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": str(ROOT),
        "HOME": "/leak/home",
        "HOSTNAME": "leak-host",
        "RALM_HOME": str(folder / "leak-ralm"),
        "RALM_STORE_URI": "s3://leak-bucket",
        "RALM_PRECISION": "fp32",
        "RALM_WIKI_BASE_URL": "http://leak.example",
        "RALM_ATLAS_BASE_URL": "http://leak.example",
        "RALM_DATASETS_BASE_URL": "http://leak.example",
        "RALM_WEBHOOK_URL": "http://leak.example/leak",
        "MLFLOW_TRACKING_URI": "http://leak.example",
        "AWS_SECRET_ACCESS_KEY": "leak-key",
    }
    command = [sys.executable, "-m", "pipelines.cli", "pipeline", "compile", "--output", str(folder / "out"), "--json"]
    done = subprocess.run(
        command, env={**os.environ, **own}, cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["files"]) == len(PIPELINES) * len(PROFILES) == 12
    return folder / "out"


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_committed_file_is_what_anybody_compiles(pipeline: str, profile: Any, elsewhere: Path) -> None:
    path = compiled_file(profile, pipeline=pipeline)
    text = path.read_text(encoding="utf-8")
    assert text == (elsewhere / path.name).read_text(encoding="utf-8"), "run `make compile`"
    assert "leak" not in text.replace("leaking", "")
    assert str(ROOT) not in text
    assert not re.search(r"/(home|Users|tmp|root)/", text)


def test_nothing_else_is_committed() -> None:
    expected = {compiled_file(profile, pipeline=pipeline).name for pipeline in PIPELINES for profile in PROFILES}
    assert {path.name for path in compiled_file("local").parent.iterdir()} == expected


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_linter_finds_nothing(pipeline: str, profile: Any) -> None:
    path = compiled_file(profile, pipeline=pipeline)
    is_for_cluster = profile == "cluster"
    found = lint_pipeline(path, allowed_images=IMAGES, is_for_cluster=is_for_cluster, never_cached=NEVER_CACHED)
    assert found == []


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_profiles_differ_in_nothing_but_what_tasks_need(pipeline: str) -> None:
    """Only then the run that is tested here tells something about the one on a cluster."""

    def plain(profile: str) -> Any:
        document = copy.deepcopy(committed(pipeline, profile)[0])
        for _, task in tasks(document):
            task.pop("retryPolicy", None)
            inputs = task.get("inputs", {}).get("parameters", {})
            for name in [name for name in inputs if name == "accelerator_count" or name.endswith("train_gpus")]:
                del inputs[name]
        for executor in document["deploymentSpec"]["executors"].values():
            for name in ("image", "resources", "env"):
                executor["container"].pop(name, None)
        return document

    assert plain("local") == plain("container") == plain("cluster")


# ---- the form -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_person_can_fill_in_the_form(pipeline: str) -> None:
    document = committed(pipeline)[0]
    info, inputs = document["pipelineInfo"], document["root"]["inputDefinitions"]["parameters"]
    assert (info["name"], info["displayName"]) == (pipeline, TITLES[pipeline])
    assert info["description"].endswith(".")
    assert 8 <= len(inputs) <= 16
    for name, about in inputs.items():
        assert about["parameterType"] in TYPES, name
        assert about["isOptional"], name
        assert "defaultValue" in about, name
        words = about["description"].split()
        assert len(words) >= 5, (name, words)
        assert words[-1].endswith("."), name
        # What an empty text or a 0 means has to be said where the default is one.
        if about["defaultValue"] in ("", 0, -1):
            marks = ("empty:", "0:", "-1:", "where it is not", "true to", "instead of", "an index", "the passages")
            assert any(mark in about["description"] for mark in marks), name


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_form_names_only_recipes_that_exist(pipeline: str) -> None:
    about = committed(pipeline)[0]["root"]["inputDefinitions"]["parameters"]["recipe"]
    assert about["defaultValue"] in RECIPES
    named = set(re.findall(r"\b(?:quickstart|nq-base|atlas-[\w-]+)", about["description"]))
    assert named
    assert named <= set(RECIPES)


def test_a_reindex_with_the_defaults_does_not_fetch_a_whole_wikipedia() -> None:
    inputs = committed("reindex")[0]["root"]["inputDefinitions"]["parameters"]
    assert (inputs["recipe"]["defaultValue"], inputs["source"]["defaultValue"]) == ("quickstart", "")


# ---- tasks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_what_has_to_run_every_time_is_never_cached(pipeline: str) -> None:
    seen = set()
    for name, task in tasks(committed(pipeline)[0]):
        if f"{name}-op" in NEVER_CACHED:
            assert not task.get("cachingOptions", {}).get("enableCache", False), name
            seen.add(name)
        else:
            is_last = (pipeline, name) == ("evaluate", "evaluate")
            assert task["cachingOptions"].get("enableCache", False) is not is_last, name
    assert {"plan", "start", "finish"} < seen


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_errors_come_after_the_run_that_they_are_noted_on(pipeline: str) -> None:
    document = committed(pipeline)[0]
    (body,) = [part for name, part in document["components"].items() if name.startswith("comp-exit-handler")]
    first = [name for name, task in body["dag"]["tasks"].items() if not task.get("dependentTasks")]
    assert first == ["start-op"]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_task_has_a_name_for_people(pipeline: str) -> None:
    document = committed(pipeline)[0]
    names = [task["taskInfo"]["name"] for _, task in tasks(document)]
    assert not [name for name in names if name.endswith("-op")]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_no_task_installs_packages(pipeline: str) -> None:
    for name, container, _ in containers(pipeline):
        assert "pip install" not in " ".join(container["command"]), name


@pytest.mark.parametrize("profile", ["local", "container"])
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_elsewhere_nothing_is_asked_for(pipeline: str, profile: str) -> None:
    documents = committed(pipeline, profile)
    assert len(documents) == 1
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        assert set(executor["container"]) == {"args", "command", "image"}
        assert executor["container"]["image"] in (BASE_IMAGE, CPU_IMAGE)
    assert not [name for name, task in tasks(documents[0]) if "retryPolicy" in task]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_container_of_a_cluster_has_what_it_needs(pipeline: str) -> None:
    kinds = {name: kind for kind, names in KINDS.items() for name in names}
    seen = set()
    for name, container, settings in containers(pipeline):
        size = getattr(Sizes(), kinds[name])
        resources = container["resources"]
        assert resources["resourceCpuRequest"] == size.cpus, name
        assert resources["resourceCpuLimit"] == size.max_cpus, name
        assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"] == size.memory, name
        assert settings["activeDeadlineSeconds"] == str(size.timeout_s), name
        assert {part["name"]: part["value"] for part in container["env"]} == ENVIRONMENT, name
        assert settings["pvcMount"][0]["mountPath"] == "/ralm", name
        assert settings["pvcMount"][0]["pvcNameParameter"]["runtimeValue"]["constant"] == "ralm-home", name
        assert settings["fieldPathAsEnv"] == [{"fieldPath": "metadata.labels['pipeline/runid']", "name": "KFP_RUN_ID"}]
        given = {
            part["envVar"]: (secret["secretNameParameter"]["runtimeValue"]["constant"], secret["optional"])
            for secret in settings["secretAsEnv"]
            for part in secret["keyToEnv"]
        }
        assert given == {variable: (secret, True) for variable, secret in SECRETS.items()}, name
        seen.add(name)
    assert {"start", "plan", "evaluate", "finish"} < seen


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_tasks_on_a_gpu_can_get_one(pipeline: str) -> None:
    seen = set()
    for name, container, settings in containers(pipeline):
        if name not in ("embed", "evaluate", "train"):
            assert "accelerator" not in container["resources"], name
            assert "tolerations" not in settings, name
            assert container["image"] in (BASE_IMAGE, CPU_IMAGE), name
            continue
        seen.add(name)
        accelerator = container["resources"]["accelerator"]
        assert accelerator["resourceType"] == "nvidia.com/gpu", name
        count = "{{$.inputs.parameters['pipelinechannel--plan-op-train_gpus']}}" if name == "train" else "1"
        assert accelerator["resourceCount"] == count, name
        assert container["image"] == GPU_IMAGE, name
        assert settings["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}], name
        (memory,) = settings["emptyDirMounts"]
        assert (memory["mountPath"], memory["medium"]) == ("/dev/shm", "Memory"), name
    assert seen >= ({"evaluate"} if pipeline == "evaluate" else {"embed", "evaluate"})


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_task_but_the_last_is_tried_again(pipeline: str) -> None:
    for name, task in tasks(committed(pipeline)[0]):
        if name == "finish":
            assert "retryPolicy" not in task
            continue
        policy = task["retryPolicy"]
        assert (policy["maxRetryCount"], policy["backoffDuration"], policy["backoffFactor"]) == (3, "60s", 2.0), name


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_finished_runs_are_cleared_away(pipeline: str) -> None:
    config = committed(pipeline)[1]["platforms"]["kubernetes"]["pipelineConfig"]
    assert config == {"resourceTtlOnCompletion": 7 * 24 * 3600}


# What is taken from a cluster file, and what the linter then says of it.
REMOVED = {
    "resourceCpuRequest": "no cpu request",
    "resourceCpuLimit": "no cpu limit",
    "resourceMemoryRequest": "no memory request",
    "resourceMemoryLimit": "no memory limit",
    "activeDeadlineSeconds": "no timeout",
    "retryPolicy": "no retry with a backoff",
    "tolerations": "an accelerator without a toleration",
    "accelerator": "without an accelerator",
    "tag": "unpinned",
    "never cached": "caching enabled",
}


@pytest.mark.parametrize("removed", REMOVED)
def test_the_linter_misses_it_when_it_is_gone(removed: str, tmp_path: Path) -> None:
    document, platform = copy.deepcopy(committed("reindex"))
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-embed-op"]
    container = document["deploymentSpec"]["executors"]["exec-embed-op"]["container"]
    (embed,) = [task for name, task in tasks(document) if name == "embed"]
    (watch,) = [task for name, task in tasks(document) if name == "watch"]
    if removed == "tag":
        container["image"] = container["image"].partition(":")[0]
    elif removed == "never cached":
        watch["cachingOptions"] = {"enableCache": True}
    elif removed.startswith("resource"):
        for name in (removed, removed.removeprefix("resource")[0].lower() + removed.removeprefix("resource")[1:]):
            container["resources"].pop(name, None)  # kfp writes the number as well, for older clusters
    else:
        holder = next(part for part in (settings, container["resources"], embed) if removed in part)
        del holder[removed]
    path = tmp_path / "reindex.cluster.yaml"
    path.write_text(yaml.safe_dump_all([document, platform], sort_keys=True), encoding="utf-8")
    found = lint_pipeline(path, allowed_images=IMAGES, is_for_cluster=True, never_cached=NEVER_CACHED)
    assert found
    assert all("embed" in line or "watch" in line for line in found), found
    assert any(REMOVED[removed] in line for line in found), found
