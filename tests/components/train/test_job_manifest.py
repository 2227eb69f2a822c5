"""A train job's manifest and settings, and the files in deploy/: checked offline against the APIs' own schemas."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from components.images import CPU_IMAGE, GPU_IMAGE
from components.train import job_manifest
from components.train.job_manifest import JobSettings, job_name, job_variables, make_manifest
from ralm.errors import ConfigError
from tests.components.train.cluster_stub import check_trainjob

DEPLOY = Path(__file__).resolve().parents[3] / "deploy" / "kubernetes" / "trainer"
SETTINGS = JobSettings(claim="ralm-home", namespace="team", image=GPU_IMAGE, secret="ralm-store")
STORE = "s3://bucket/store"
FLAGS = {name: f"{STORE}/{name}/KEY" for name in ("passages", "index", "model", "questions")}
FLAGS |= {"trained": f"{STORE}/handover/ralm-train-example", "config": '{"num_steps": 1000}'}


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment of a task with an object store and a tracking server."""
    names = (*job_manifest.VARIABLES.values(), *job_manifest.SECRETS, *job_manifest.PASSED_ON)
    for name in (*names, "KFP_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(job_manifest, "NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setenv("RALM_HOME", "/mnt/ralm")
    monkeypatch.setenv("RALM_STORE_URI", STORE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://object-store.example:9000")


def manifest(settings: JobSettings = SETTINGS, flags: dict[str, str] = FLAGS) -> dict[str, Any]:
    variables = job_variables(settings, 4)
    name = "ralm-train-example"
    return make_manifest(name, flags=flags, variables=variables, settings=settings, num_processes=4, nodes=2)


def values(made: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in made["spec"]["trainer"]["env"] if "value" in entry}


def documents(name: str) -> list[dict[str, Any]]:
    return [entry for entry in yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")) if entry]


def pods_of(job: dict[str, Any]) -> dict[str, Any]:
    """The pods' part of a job as a Pod, with what the job sets on the container, for the schema of core objects."""
    trainer = job["spec"]["trainer"]
    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = replicated["template"]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    own = {name: trainer[name] for name in ("image", "command", "args", "env")}
    containers = [{**container, **own, "resources": trainer["resourcesPerNode"]}]
    metadata = {"name": "pod", **template["metadata"]}
    spec = {**template["spec"], "containers": containers, "restartPolicy": "OnFailure"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def check_core(entry: dict[str, Any]) -> None:
    kubernetes_validate.validate(entry, "1.37", strict=True)


@pytest.mark.parametrize("accelerator", ["nvidia.com/gpu", "none"])
def test_the_manifest_is_valid(accelerator: str) -> None:
    made = manifest(JobSettings(claim="c", namespace="n", image="i", accelerator=accelerator))
    check_trainjob(made)
    check_core(pods_of(made))


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every field whose name the API defines."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        if isinstance(key, str) and prefix[-1:] not in (("labels",), ("requests",), ("limits",)):
            yield (*prefix, key)
        yield from paths(entry, (*prefix, key))


@pytest.mark.parametrize("path", list(paths(documents("train-job.yaml")[0])), ids=lambda path: ".".join(map(str, path)))
def test_a_misspelt_field_is_refused(path: tuple[Any, ...]) -> None:
    (mutant,) = documents("train-job.yaml")
    parent = mutant
    for key in path[:-1]:
        parent = parent[key]
    parent[f"{path[-1]}s"] = parent.pop(path[-1])
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's, or that of a field that is not known
        check_trainjob(mutant)


def number_as_text(job: dict[str, Any]) -> None:
    job["spec"]["trainer"]["numNodes"] = "2"


def quantity_as_number(job: dict[str, Any]) -> None:
    job["spec"]["trainer"]["resourcesPerNode"]["limits"]["memory"] = {"amount": 1}


def text_as_truth(job: dict[str, Any]) -> None:
    pod = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pod["template"]["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] = "yes"


@pytest.mark.parametrize("change", [number_as_text, quantity_as_number, text_as_truth])
def test_a_value_of_another_type_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    (mutant,) = documents("train-job.yaml")
    change(mutant)
    with pytest.raises(ValueError):  # noqa: PT011
        check_trainjob(mutant)


def test_the_example_is_what_a_task_makes() -> None:
    (example,) = documents("train-job.yaml")
    made = manifest()
    assert made["metadata"].pop("namespace") == "team"
    assert example == made


def test_the_files_of_the_kustomization_are_valid() -> None:
    (kustomization,) = documents("kustomization.yaml")
    entries = [entry for name in kustomization["resources"] for entry in documents(name)]
    assert sorted(entry["kind"] for entry in entries) == [
        "PersistentVolumeClaim",
        "Role",
        "RoleBinding",
        "ServiceAccount",
    ]
    for entry in entries:
        check_core(entry)
    assert {path.name for path in DEPLOY.iterdir()} == {
        *kustomization["resources"],
        "kustomization.yaml",
        "train-job.yaml",
        "README.md",
    }


@pytest.mark.parametrize("name", ["rights.yaml", "volume.yaml"])
def test_a_misspelt_field_of_the_kustomization_is_refused(name: str) -> None:
    for place, entry in enumerate(documents(name)):
        for path in paths(entry):
            mutant = documents(name)[place]
            parent = mutant
            for key in path[:-1]:
                parent = parent[key]
            if "metadata" in path[:-1] or path[0] in ("kind", "apiVersion"):  # other names there would be no schema
                continue
            parent[f"{path[-1]}s"] = parent.pop(path[-1])
            with pytest.raises(kubernetes_validate.ValidationError):
                check_core(mutant)


def test_the_role_allows_what_the_task_does() -> None:
    (role,) = [entry for entry in documents("rights.yaml") if entry["kind"] == "Role"]
    allowed = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    done = {("trainer.kubeflow.org", "trainjobs", verb) for verb in ("get", "create", "delete")}
    assert allowed >= {*done, ("", "pods", "list"), ("", "pods/log", "get")}


def test_secrets_are_references(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in job_manifest.SECRETS:
        monkeypatch.setenv(name, "hunter2")
    made = manifest()
    assert "hunter2" not in json.dumps(made)
    secrets = [entry for entry in made["spec"]["trainer"]["env"] if "valueFrom" in entry]
    assert [entry["name"] for entry in secrets] == list(job_manifest.SECRETS)
    references = [entry["valueFrom"]["secretKeyRef"] for entry in secrets]
    assert references == [{"name": "ralm-store", "key": name, "optional": True} for name in job_manifest.SECRETS]


def test_a_secret_that_the_pods_would_not_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    settings = JobSettings(claim="c", namespace="n", image="i")
    with pytest.raises(
        ConfigError, match="RALM_JOB_SECRET: not set, but this task uses AWS_SECRET_ACCESS_KEY"
    ) as error:
        job_variables(settings, 1)
    assert "hunter2" not in str(error.value)


def test_a_password_in_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:hunter2@mlflow.example")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI: has a password inside") as error:
        job_variables(SETTINGS, 1)
    assert "hunter2" not in str(error.value)


def test_variables_follow_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RALM_PRECISION", "fp32")
    monkeypatch.setenv("MLFLOW_RUN_ID", "run-of-the-backend")
    found = values(manifest())
    assert found == {
        "AWS_ENDPOINT_URL": "http://object-store.example:9000",
        "MLFLOW_RUN_ID": "run-of-the-backend",
        "MLFLOW_TRACKING_URI": "http://mlflow.example:5000",
        "OMP_NUM_THREADS": "2",
        "RALM_HOME": "/mnt/ralm",
        "RALM_PRECISION": "fp32",
        "RALM_STORE_URI": STORE,
    }


def test_a_database_of_the_task_is_not_for_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert values(manifest())["RALM_TRACKING"] == "off"


def test_dollars_stay_dollars() -> None:
    made = manifest(flags={"config": '{"format": "$(HOME) $x $$"}'})
    assert made["spec"]["trainer"]["args"] == ["-m", "components.train", "--config", '{"format": "$$(HOME) $$x $$$$"}']


def test_resources_of_a_node() -> None:
    settings = JobSettings(claim="c", namespace="n", image="i", accelerator="none", cpus=3, memory="4Gi")
    found = manifest(settings)["spec"]["trainer"]
    assert found["resourcesPerNode"] == {"requests": {"cpu": "3", "memory": "4Gi"}, "limits": {"memory": "4Gi"}}
    assert (found["numNodes"], found["numProcPerNode"]) == (2, 4)


def test_the_run_of_the_pipeline_is_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "5f0c")
    assert manifest()["metadata"]["labels"]["pipeline/runid"] == "5f0c"
    monkeypatch.setenv("KFP_RUN_ID", "no label!")
    assert "pipeline/runid" not in manifest()["metadata"]["labels"]


def test_the_name_stands_for_what_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def name(*, fingerprint: str = "f", config: str = '{"a": 1, "b": 2}', **changes: Any) -> str:
        settings = dataclasses.replace(SETTINGS, **changes)
        return job_name({"model": fingerprint}, config=config, settings=settings)

    first = name()
    assert first == name(config='{"b":2,"a":1}') == name(memory="128Gi", cpus=4)
    assert len(f"{first}-node-0-0") <= 63
    found = {first, name(fingerprint="g"), name(config="{}"), name(image="j"), name(accelerator="none")}
    monkeypatch.setenv("RALM_PRECISION", "bf16")
    found.add(name())
    monkeypatch.setenv("RALM_STORE_URI", "s3://other/store")
    found.add(name())
    assert len(found) == 7


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    job_manifest.NAMESPACE_FILE.write_text("team\n")
    monkeypatch.setenv("RALM_JOB_CLAIM", "ralm-home")
    monkeypatch.setenv("RALM_JOB_CPUS", "16")
    assert JobSettings.from_environment() == JobSettings(claim="ralm-home", namespace="team", image=GPU_IMAGE, cpus=16)
    monkeypatch.setenv("RALM_JOB_NAMESPACE", "other")
    monkeypatch.setenv("RALM_JOB_ACCELERATOR", "none")
    found = JobSettings.from_environment()
    assert (found.namespace, found.image) == ("other", CPU_IMAGE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"RALM_JOB_CLAIM": ""}, "RALM_JOB_CLAIM: not set; the nodes of a train job keep their checkpoints"),
        ({"RALM_JOB_CLAIM": "Home_1"}, "RALM_JOB_CLAIM: expected the name of a Kubernetes object, found 'Home_1'"),
        ({"RALM_JOB_NAMESPACE": ""}, "RALM_JOB_NAMESPACE: not set, and this is no pod"),
        ({"RALM_JOB_SECRET": "a/b"}, "RALM_JOB_SECRET: expected the name"),
        ({"RALM_JOB_ACCELERATOR": "gpu"}, "RALM_JOB_ACCELERATOR: expected a resource such as nvidia.com/gpu, or none"),
        ({"RALM_JOB_CPUS": "many"}, "RALM_JOB_CPUS: expected a whole number, found 'many'"),
        ({"RALM_JOB_CPUS": "0"}, "RALM_JOB_CPUS: expected at least 1, found 0"),
        ({"RALM_JOB_MEMORY": "64 GB"}, "RALM_JOB_MEMORY: expected an amount such as 64Gi, found '64 GB'"),
    ],
)
def test_wrong_settings_are_named(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], words: str) -> None:
    for name, value in {"RALM_JOB_CLAIM": "c", "RALM_JOB_NAMESPACE": "n", **changes}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        JobSettings.from_environment()
    assert words in str(error.value)
