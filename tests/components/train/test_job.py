"""The train stage as a TrainJob: the genuine Kubernetes client against a stand-in for the API."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.train import job as job_module
from components.train import job_manifest
from components.train.config import TrainConfig
from components.train.job import JobError, train_as_job
from components.train.stage import train
from ralm import tracking
from ralm.artifacts.files import is_remote
from ralm.artifacts.manifest import Manifest, open_artifact, read_artifact
from ralm.artifacts.store import (
    Contents,
    files_location,
    handing_over_by_reference,
    plain_config,
    produce,
    stored_location,
)
from ralm.cli import EXIT_INTERRUPTED, exit_code, run_stage, run_task
from ralm.errors import ArtifactError, ConfigError
from tests.components.train.cluster_stub import (
    JOBS,
    PODS,
    TOKEN,
    Act,
    ClusterStub,
    condition,
    ended,
    nothing,
    pod,
    serve,
    status,
)

ROOT = Path(__file__).resolve().parents[3]
CONFIG = json.dumps({"num_steps": 2, "precision": "fp32", "task": {}})
KINDS = {"passages": "passages", "index": "index", "model": "model", "questions": "questions"}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterStub]:
    """The stand-in, and this process as a pod in the namespace `team` of its cluster; quick when it waits."""
    from kubernetes.config import incluster_config

    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    (folder / "token").write_text(TOKEN)
    (folder / "namespace").write_text("team\n")
    stub = ClusterStub()
    server = serve(stub, folder)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(folder / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(folder / "ca.crt"))
    monkeypatch.setattr(job_manifest, "NAMESPACE_FILE", folder / "namespace")
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_port))
    quick = {"POLL_S": 0.01, "FIRST_PAUSE_S": 0.01, "LONGEST_PAUSE_S": 0.02, "PATIENCE_S": 0.5, "TIMEOUT_S": (5, 5)}
    for name, value in quick.items():
        monkeypatch.setattr(job_module, name, value)
    yield stub
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def settings(ralm_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume at RALM_HOME with the store on it; nothing else of this machine."""
    for name in (*job_manifest.VARIABLES.values(), *job_manifest.SECRETS, *job_manifest.PASSED_ON):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RALM_TRACKING", "off")
    monkeypatch.setenv("RALM_JOB_CLAIM", "ralm-home")
    monkeypatch.setenv("RALM_JOB_ACCELERATOR", "none")
    monkeypatch.setenv("RALM_STORE_URI", str(ralm_home / "store"))


def make(kind: str, output: str, *, name: str = "", is_reference: bool = True) -> Manifest:
    """An artifact as a stage leaves it."""

    def build(folder: Path) -> Contents:
        (folder / "content.txt").write_text(f"{kind} {name}")
        return Contents(details={"name": name})

    def call() -> Manifest:
        return produce(output, kind=kind, stage=kind, stage_version=1, inputs={}, config={"name": name}, build=build)

    if not is_reference:
        return call()
    with handing_over_by_reference():
        return call()


@pytest.fixture
def arguments(tmp_path: Path, settings: None) -> dict[str, str]:
    """The stage's folders as KFP hands them over: a manifest that names the place in the store; no output yet."""
    places = {name: str(tmp_path / "inputs" / name) for name in KINDS}
    for name, kind in KINDS.items():
        make(kind, places[name])
    return {**places, "trained": str(tmp_path / "outputs" / "trained")}


def flags_of(manifest: dict[str, Any]) -> dict[str, str]:
    words = manifest["spec"]["trainer"]["args"][2:]
    return {flag.removeprefix("--"): value for flag, value in zip(words[::2], words[1::2], strict=True)}


def train_in_pods(job: dict[str, Any]) -> None:
    """What the job's workers do: make a model and hand it over."""
    make("model", flags_of(job)["trained"], name="trained", is_reference=False)


def complete(job: dict[str, Any]) -> None:
    train_in_pods(job)
    condition("Complete", "AllJobsCompleted")(job)


def call(arguments: dict[str, str], config: str = CONFIG) -> Manifest:
    with handing_over_by_reference():
        return train_as_job(arguments, config=config, num_processes=2, nodes=3)


def methods(cluster: ClusterStub) -> list[str]:
    return [method for method, _, _ in cluster.requests if method != "GET"]


def assert_nothing_written(arguments: dict[str, str]) -> None:
    assert not Path(arguments["trained"]).exists()


def test_a_job_is_made_awaited_and_its_model_handed_over(
    cluster: ClusterStub, arguments: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    cluster.pods = [pod("a", "Running"), pod("b", "Pending", conditions=[])]
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    cluster.pods[1]["status"]["conditions"] = [unschedulable]
    cluster.story = [nothing, condition("Suspended"), lambda job: job.pop("status"), nothing, complete]
    with caplog.at_level(logging.INFO):
        manifest = call(arguments)
    (made,) = cluster.created
    name = made["metadata"]["name"]
    assert methods(cluster) == ["POST"]
    assert {path for method, path, _ in cluster.requests if method == "GET"} == {f"{JOBS}/{name}", PODS}
    selectors = {query["labelSelector"] for _, path, query in cluster.requests if path == PODS}
    assert selectors == {f"jobset.sigs.k8s.io/jobset-name={name}"}
    told = [record.message for record in caplog.records if name in record.message]
    assert told == [
        f"train job {name}: created in namespace team, 3 nodes with 2 processes each",
        f"train job {name}: 1 Pending (Unschedulable), 1 Running",
        f"train job {name}: suspended, until a queue admits it",
        f"train job {name}: 1 Pending (Unschedulable), 1 Running",
        f"train job {name}: complete",
    ]
    assert [path.name for path in Path(arguments["trained"]).iterdir()] == ["manifest.json"]
    trained = open_artifact(arguments["trained"], "model")
    assert trained.manifest.data_uri == stored_location(manifest)
    assert trained.local("content.txt").read_text() == "model trained"
    assert (manifest.details, manifest.reused) == ({"name": "trained"}, False)


def test_workers_get_the_stores_places_and_the_config(cluster: ClusterStub, arguments: dict[str, str]) -> None:
    cluster.story = [complete]
    places = {name: stored_location(read_artifact(arguments[name]).manifest) for name in KINDS}
    call({**arguments, "index": "", "passages": ""})
    (made,) = cluster.created
    flags = flags_of(made)
    left = f"{os.environ['RALM_STORE_URI']}/handover/{made['metadata']['name']}"
    expected = {"model": places["model"], "questions": places["questions"], "trained": left, "config": CONFIG}
    assert flags == expected


def test_a_store_that_is_no_folder(
    cluster: ClusterStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ralm_home: Path
) -> None:
    monkeypatch.setenv("RALM_STORE_URI", f"memory://bucket-of-{tmp_path.name}/store")
    arguments = {"model": str(tmp_path / "model"), "trained": str(tmp_path / "trained")}
    make("model", arguments["model"], name="first")
    cluster.story = [complete]
    manifest = call(arguments)
    flags = flags_of(cluster.created[0])
    assert is_remote(flags["model"])
    assert files_location(manifest).startswith(stored_location(manifest))
    assert read_artifact(flags["trained"]).manifest.data_uri == files_location(manifest)
    assert read_artifact(arguments["trained"]).manifest.data_uri == files_location(manifest)
    assert not (ralm_home / "store").exists()


@pytest.fixture
def toy(
    session_home: Path,
    toy_index: str,
    toy_passages: str,
    tiny_model: str,
    toy_questions_artifact: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, str]:
    """Arguments of a real training: the toy artifacts, which are hard links to the session's store."""
    monkeypatch.setenv("RALM_HOME", str(session_home))
    monkeypatch.setenv("RALM_STORE_URI", str(session_home / "store"))
    monkeypatch.setattr(job_module, "TIMEOUT_S", (10, 250))
    inputs = {"passages": toy_passages, "index": toy_index, "model": tiny_model, "questions": toy_questions_artifact}
    return {**inputs, "trained": str(tmp_path / "trained")}


def toy_config(seed: int) -> str:
    return json.dumps(plain_config(TrainConfig(num_steps=1, batch_size=2, num_passages=2, precision="fp32", seed=seed)))


def test_a_task_with_several_nodes_and_the_job_it_starts(cluster: ClusterStub, toy: dict[str, str]) -> None:
    """The stage on both sides: as the task that starts a job, and with the arguments that the job gives it."""

    def work(job: dict[str, Any]) -> None:
        assert job["spec"]["trainer"]["args"][:2] == ["-m", "components.train"]
        assert run_stage(train, job["spec"]["trainer"]["args"][2:]) == 0
        condition("Complete")(job)

    cluster.story = [work]
    run_task(train, **toy, num_processes=1, nodes=2, config=toy_config(1))
    trained = open_artifact(toy["trained"], "model").manifest
    assert (trained.stage, trained.counts["steps"]) == ("train", 1)


@pytest.mark.slow
def test_the_jobs_command_as_trainers_runtime_runs_it(cluster: ClusterStub, toy: dict[str, str]) -> None:
    """Two pods of this machine, with the variables that Kubeflow Trainer's plugin for PyTorch sets."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def work(job: dict[str, Any]) -> None:
        trainer = job["spec"]["trainer"]
        command = [str(Path(sys.executable).with_name(trainer["command"][0])), *trainer["args"]]
        own = {entry["name"]: entry["value"] for entry in trainer["env"]}
        own |= {"PET_NNODES": str(trainer["numNodes"]), "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"])}
        own |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)}
        pods = [
            subprocess.Popen(command, env={**os.environ, **own, "PET_NODE_RANK": str(rank)}, cwd=ROOT)
            for rank in range(trainer["numNodes"])
        ]
        assert [each.wait(240) for each in pods] == [0] * len(pods)
        condition("Complete")(job)

    cluster.story = [work]
    with handing_over_by_reference():
        train_as_job(toy, config=toy_config(2), num_processes=1, nodes=2)
    assert open_artifact(toy["trained"], "model").manifest.counts["steps"] == 1


def test_workers_write_to_the_run_of_the_task(
    cluster: ClusterStub, arguments: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_active_run_id", "run-of-the-stage")
    cluster.story = [complete]
    call(arguments)
    variables = {entry["name"]: entry["value"] for entry in cluster.created[0]["spec"]["trainer"]["env"]}
    assert variables["MLFLOW_RUN_ID"] == "run-of-the-stage"


def test_another_try_waits_for_the_job_of_the_first(cluster: ClusterStub, arguments: dict[str, str]) -> None:
    cluster.story = [complete]
    call(arguments)
    (made,) = cluster.created
    cluster.jobs = {made["metadata"]["name"]: made}  # it runs; the task was killed without a word
    cluster.requests.clear()
    cluster.story = [nothing, nothing, complete]
    call(arguments)
    assert methods(cluster) == []
    assert open_artifact(arguments["trained"], "model")


def test_a_complete_job_is_taken_over_at_once(cluster: ClusterStub, arguments: dict[str, str]) -> None:
    cluster.story = [complete]
    first = call(arguments)
    cluster.requests.clear()
    assert call(arguments) == first
    assert methods(cluster) == []


def test_a_complete_job_without_its_model_is_made_anew(cluster: ClusterStub, arguments: dict[str, str]) -> None:
    cluster.story = [complete]
    place = Path(stored_location(call(arguments)))
    (place / "manifest.json").rename(place / "lost")
    cluster.requests.clear()

    def mend(job: dict[str, Any]) -> None:
        (place / "lost").rename(place / "manifest.json")
        complete(job)

    cluster.story = [nothing, mend]
    call(arguments)
    assert methods(cluster) == ["DELETE", "POST"]


@pytest.mark.parametrize(
    "spent", [condition("Failed", "FailedJobs"), lambda job: job["metadata"].update(deletionTimestamp="2026-01-01")]
)
def test_a_failed_job_is_made_anew(cluster: ClusterStub, arguments: dict[str, str], spent: Act) -> None:
    cluster.story = [complete]
    call(arguments)
    (made,) = cluster.created
    old = json.loads(json.dumps(made))
    spent(old)
    cluster.jobs = {made["metadata"]["name"]: old}
    cluster.requests.clear()
    cluster.story = [nothing, complete]
    call(arguments)
    assert methods(cluster) == ["DELETE", "POST"]
    assert cluster.created[1] == made


def test_two_tries_at_one_moment_share_the_job(cluster: ClusterStub, arguments: dict[str, str]) -> None:
    made_by_other = status(409, "AlreadyExists", "already exists")

    def appear(method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, bytes]:
        if method == "POST":
            type(cluster).answer(cluster, method, path, query, body)
            return made_by_other
        return type(cluster).answer(cluster, method, path, query, body)

    cluster.answer = appear  # type: ignore[method-assign]
    cluster.story = [complete]
    call(arguments)
    assert methods(cluster) == ["POST"]


def test_a_failed_job_tells_the_pod_that_failed_first(
    cluster: ClusterStub, arguments: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    cluster.pods = [
        pod("node-0", "Failed", **ended(1, "2026-01-01T00:00:09Z")),
        pod("node-1", "Running", **ended(2, "2026-01-01T00:00:05Z", is_last=True)),
        pod("node-2", "Succeeded", **ended(0, "2026-01-01T00:00:01Z")),
    ]
    cluster.logs = {"node-1": "loading\nralm: error: table: no column {'a': 1}\n\n==== ChildFailedError\n"}
    cluster.story = [nothing, condition("Failed", "FailedJobs", "jobset failed")]
    with pytest.raises(JobError) as failed:
        call(arguments)
    name = cluster.created[0]["metadata"]["name"]
    assert str(failed.value) == (
        f"train job {name} failed: FailedJobs: jobset failed; pod node-1 of job node failed first, exit code 2 "
        "(Error): ralm: error: table: no column {'a': 1}"
    )
    assert "node-1: ==== ChildFailedError" in caplog.messages
    (query,) = [query for _, path, query in cluster.requests if path.endswith("/log")]
    assert query == {"container": "node", "tailLines": "50"}
    assert name in cluster.jobs, "a failed job is left for people to look at"
    assert_nothing_written(arguments)


def test_a_failed_job_whose_log_is_gone(cluster: ClusterStub, arguments: dict[str, str]) -> None:
    cluster.story = [condition("Failed", "DeadlineExceeded", "too long")]
    with pytest.raises(JobError, match="DeadlineExceeded: too long; its failed pods are gone"):
        call(arguments)


def test_pods_that_may_not_be_read_do_not_matter(cluster: ClusterStub, arguments: dict[str, str]) -> None:
    plain = cluster.answer

    def refuse(method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, bytes]:
        return status(403, "Forbidden", "no") if path.startswith(PODS) else plain(method, path, query, body)

    cluster.answer = refuse  # type: ignore[method-assign]
    cluster.story = [nothing, complete]
    call(arguments)
    assert open_artifact(arguments["trained"], "model")


NOT_THERE = status(404, "NotFound", 'trainjobs.trainer.kubeflow.org "x" not found')
FORBIDDEN = status(403, "Forbidden", 'trainjobs.trainer.kubeflow.org is forbidden: User "team:runner" cannot create')
WEBHOOK = status(403, "Forbidden", 'admission webhook "validator" denied the request: no runtime torch-distributed')
STRICT = status(400, "BadRequest", 'strict decoding error: unknown field "spec.runtimePatches"')


@pytest.mark.parametrize(
    ("method", "answer", "words"),
    [
        ("GET", status(401, "Unauthorized", "Unauthorized"), "401: Unauthorized; the token of the task's service"),
        ("GET", (404, b"404 page not found\n"), "404: 404 page not found; is Kubeflow Trainer installed"),
        ("POST", FORBIDDEN, "cannot create; bind the Role in deploy/kubernetes/trainer"),
        ("POST", WEBHOOK, "denied the request: no runtime torch-distributed"),
        ("POST", status(404, "NotFound", 'namespaces "team" not found'), 'namespaces "team" not found; is Kubeflow'),
        ("POST", status(409, "Conflict", "quota was modified"), "409: quota was modified; something else changed it"),
        ("POST", STRICT, '"spec.runtimePatches"; it needs Kubeflow Trainer 2.2 or newer'),
        ("POST", status(422, "Invalid", "spec.trainer.numNodes: Invalid value"), "422: spec.trainer.numNodes: Invalid"),
    ],
)
def test_a_refusal_is_told_on_one_line(
    cluster: ClusterStub, arguments: dict[str, str], method: str, answer: tuple[int, bytes], words: str
) -> None:
    cluster.answers = {method: [answer]}
    with pytest.raises(JobError) as refused:
        call(arguments)
    message = str(refused.value)
    assert words in message
    assert message.startswith(f"{'get' if method == 'GET' else 'create'} trainjobs ralm-train-")
    assert "\n" not in message
    assert ("bind the Role" in message) == (answer is FORBIDDEN)
    assert cluster.jobs == {}
    assert_nothing_written(arguments)


@pytest.mark.parametrize(
    "trouble",
    [status(500, "InternalError", "etcd leader changed"), status(429, "TooManyRequests", "slow down"), None, 0.5],
    ids=["500", "429", "closed connection", "silence"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_busy_server_is_asked_again(
    cluster: ClusterStub,
    arguments: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    trouble: tuple[int, bytes] | float | None,
) -> None:
    cluster.answers = {method: [trouble, trouble]}
    cluster.story = [complete]
    monkeypatch.setattr(job_module, "PATIENCE_S", 10.0)
    monkeypatch.setattr(job_module, "TIMEOUT_S", (0.2, 0.2))
    call(arguments)
    assert len(cluster.created) == 1
    assert len([line for line in caplog.messages if "asked again in" in line]) == 2


def test_a_server_that_stays_away(
    cluster: ClusterStub, arguments: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "9")
    with pytest.raises(JobError, match=r"get trainjobs ralm-train-\w+: no answer from the Kubernetes API: .*refused"):
        call(arguments)
    assert_nothing_written(arguments)


def test_a_job_that_someone_deletes(cluster: ClusterStub, arguments: dict[str, str]) -> None:
    def vanish(job: dict[str, Any]) -> None:
        cluster.answers = {"GET": [(200, json.dumps({"kind": "PodList", "items": []}).encode()), NOT_THERE]}

    cluster.story = [vanish]
    with pytest.raises(JobError, match="deleted by someone else"):
        call(arguments)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_task_that_is_stopped_deletes_its_job(
    cluster: ClusterStub, arguments: dict[str, str], number: signal.Signals
) -> None:
    cluster.story = [nothing, nothing, lambda job: os.kill(os.getpid(), number)]
    with exit_code() as outcome:
        call(arguments)
    assert outcome.code == EXIT_INTERRUPTED
    assert methods(cluster) == ["POST", "DELETE"]
    (query,) = [query for method, _, query in cluster.requests if method == "DELETE"]
    assert query == {"propagationPolicy": "Foreground"}
    assert all("deletionTimestamp" in job["metadata"] for job in cluster.jobs.values())
    assert_nothing_written(arguments)


def test_a_task_that_is_stopped_while_the_server_is_away(
    cluster: ClusterStub, arguments: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(job_module, "SHORT_PATIENCE_S", 0.05)
    monkeypatch.setattr(job_module, "PATIENCE_S", 60.0)
    cluster.answers = {"DELETE": [status(503, "Unavailable", "away")] * 50}
    cluster.story = [lambda job: os.kill(os.getpid(), signal.SIGTERM)]
    with exit_code() as outcome:
        call(arguments)
    assert outcome.code == EXIT_INTERRUPTED
    assert "still there: delete trainjobs" in caplog.text


def test_a_job_that_leaves_no_model(cluster: ClusterStub, arguments: dict[str, str]) -> None:
    cluster.story = [condition("Complete")]
    with pytest.raises(JobError, match=r"complete, but there is no model at .*/handover/ralm-train-"):
        call(arguments)
    assert_nothing_written(arguments)


def test_an_input_that_is_only_here(cluster: ClusterStub, arguments: dict[str, str], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RALM_STORE_URI", str(tmp_path / "own"))
        make("model", str(tmp_path / "here"), name="here", is_reference=False)
    with pytest.raises(ArtifactError, match=r"here: the nodes of a train job cannot read the model in this folder"):
        call({**arguments, "model": str(tmp_path / "here")})
    assert cluster.requests == []


def test_an_input_of_links_is_found_in_the_store(
    cluster: ClusterStub, arguments: dict[str, str], tmp_path: Path
) -> None:
    made = make("model", str(tmp_path / "links"), name="links", is_reference=False)
    cluster.story = [complete]
    call({**arguments, "model": str(tmp_path / "links")})
    assert flags_of(cluster.created[0])["model"] == stored_location(made)


@pytest.mark.parametrize("store", ["", "/elsewhere/store"])
def test_a_store_that_is_not_shared(
    cluster: ClusterStub, arguments: dict[str, str], monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.setenv("RALM_STORE_URI", store)
    with pytest.raises(ConfigError, match="RALM_STORE_URI: expected an object store, or a path below RALM_HOME"):
        call(arguments)


def test_outside_a_cluster(cluster: ClusterStub, arguments: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(ConfigError, match="needs a pod with a service account: Service host/port is not set"):
        call(arguments)
