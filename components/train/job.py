"""Training on several nodes: a task starts a TrainJob of Kubeflow Trainer, waits for it and takes its model over.

The only module that talks to Kubernetes; what the job is, `job_manifest.py` says. The job's name stands for what is
trained, so that another try of the task finds the job that is already there. Its workers run the same stage with the
store's places in place of the task's folders, and go on from their checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from components.train.job_manifest import (
    API_VERSION,
    GROUP,
    NODE,
    JobSettings,
    check_store,
    job_name,
    job_variables,
    make_manifest,
    shared_artifact,
)
from components.train.job_status import condition, first_failed, pod_states, size_of
from ralm import tracking
from ralm.artifacts.files import Location, join
from ralm.artifacts.manifest import Manifest, open_artifact, read_artifact
from ralm.artifacts.store import stored_location, take_finished
from ralm.errors import ArtifactError, ConfigError, WorkerError

logger = logging.getLogger(__name__)

POLL_S = 10.0
PATIENCE_S = 900.0
"""An API server that is busy or away is asked again this long."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
SHORT_PATIENCE_S = 20.0
"""For what is only told, and for a task that is stopped: less than the grace period of a pod."""
GONE_WITHIN_S = 600.0
TIMEOUT_S: Final = (5, 15)
"""To connect, and to wait for an answer."""
LOG_LINES: Final = 50

HINTS: Final = {
    400: "it needs Kubeflow Trainer 2.2 or newer",
    401: "the token of the task's service account is missing or has expired",
    403: "bind the Role in deploy/kubernetes/trainer to the service account of the task",
    404: "is Kubeflow Trainer installed, and is there such a namespace?",
    409: "something else changed it at the same moment; run the task again",
}


class JobError(WorkerError):
    """A train job could not be started, failed, or was lost; the message names it."""


class RefusedError(JobError):
    """The Kubernetes API refused a request."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
        """The API's own word, such as `NotFound`; empty where it does not know the resource at all."""


def train_as_job(arguments: Mapping[str, str], *, config: str, num_processes: int, nodes: int) -> Manifest:
    """Run the train stage on several nodes, and hand over the model they made.

    A try of a task that finds the job of an earlier one waits for it; a failed job is made anew and goes on from its
    checkpoints. SIGTERM and Ctrl-C delete the job.

    Args:
        arguments: the stage's folders by name, as this task sees them; empty: not given.
        config: the stage's config as JSON.
        num_processes: worker processes on each node.
        nodes: nodes.

    Raises:
        ConfigError: a setting of the job is missing or wrong, or the store is not shared.
        ArtifactError: an input is unfinished, or only on this machine.
        JobError: Kubernetes refused, the job failed, or someone deleted it.
    """
    settings = JobSettings.from_environment()
    store = check_store()
    inputs = {name: shared_artifact(name, place) for name, place in arguments.items() if place and name != "trained"}
    name = job_name(
        {key: artifact.fingerprint for key, artifact in inputs.items()},
        config=config,
        settings=settings,
    )
    left = join(store, "handover", name)
    with tracking.resumed_by_workers():
        variables = job_variables(settings, num_processes)
    manifest = make_manifest(
        name,
        flags={**{key: artifact.base for key, artifact in inputs.items()}, "trained": left, "config": config},
        variables=variables,
        settings=settings,
        num_processes=num_processes,
        nodes=nodes,
    )
    cluster = Cluster(settings.namespace)
    try:
        _start(cluster, manifest, left)
        _wait(cluster, name)
    except KeyboardInterrupt:
        _stop(cluster, name)
        raise
    return _take_over(name, left, arguments["trained"])


class Cluster:
    """The train jobs of a namespace and their pods, in the cluster that this pod runs in."""

    def __init__(self, namespace: str) -> None:
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise ConfigError(
                f"training on several nodes needs the package kubernetes in this image: {error}"
            ) from None
        configuration = client.Configuration()
        try:
            config.load_incluster_config(configuration)
        except config.ConfigException as error:
            raise ConfigError(f"training on several nodes needs a pod with a service account: {error}") from None
        configuration.retries = False  # `_call` has the patience
        connection = client.ApiClient(configuration)
        self._namespace = namespace
        self._kind = (GROUP, API_VERSION, namespace, "trainjobs")
        self._objects, self._core = client.CustomObjectsApi(connection), client.CoreV1Api(connection)

    def job(self, name: str) -> Mapping[str, Any] | None:
        """A train job, if it is there."""
        try:
            found = self._call(f"get trainjobs {name}", self._objects.get_namespaced_custom_object, *self._kind, name)
        except RefusedError as error:
            if error.reason != "NotFound":
                raise
            return None
        return dict(found)

    def create(self, manifest: Mapping[str, Any]) -> bool:
        """Create a train job. False if one of its name is there, made by another try at the same moment."""
        create = self._objects.create_namespaced_custom_object
        doing = f"create trainjobs {manifest['metadata']['name']}"
        try:
            self._call(doing, create, *self._kind, body=manifest, field_validation="Strict")
        except RefusedError as error:
            if error.reason != "AlreadyExists":
                raise
            return False
        return True

    def delete(self, name: str, *, patience_s: float | None = None) -> None:
        """Delete a train job and, before it, its pods."""
        delete, doing = self._objects.delete_namespaced_custom_object, f"delete trainjobs {name}"
        try:
            self._call(doing, delete, *self._kind, name, propagation_policy="Foreground", patience_s=patience_s)
        except RefusedError as error:
            if error.reason != "NotFound":
                raise

    def pods(self, name: str) -> list[Any]:
        """The pods of a train job; none where the task may not list them."""
        selector = f"jobset.sigs.k8s.io/jobset-name={name}"
        listed = self._try("list pods", self._core.list_namespaced_pod, self._namespace, label_selector=selector)
        return list(listed.items) if listed else []

    def log(self, pod: str) -> list[str]:
        """The last lines that a pod wrote; none where they are gone or the task may not read them."""
        read = self._core.read_namespaced_pod_log
        text = self._try("get pods/log", read, pod, self._namespace, container=NODE, tail_lines=LOG_LINES)
        return [line for line in str(text or "").splitlines() if line.strip()]

    def _try(self, doing: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Ask the API for something that is only told; None where it does not answer."""
        try:
            return self._call(doing, call, *arguments, patience_s=SHORT_PATIENCE_S, **options)
        except JobError as error:
            logger.debug("%s", error)
            return None

    def _call(
        self, doing: str, call: Callable[..., Any], *arguments: Any, patience_s: float | None = None, **options: Any
    ) -> Any:
        """Ask the API; again, after growing pauses, while it is busy or does not answer.

        Raises:
            RefusedError: it said no.
            JobError: it did not answer for too long.
        """
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        give_up_at = time.monotonic() + (PATIENCE_S if patience_s is None else patience_s)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return call(*arguments, **options, _request_timeout=TIMEOUT_S)
            except ApiException as error:
                message, reason = _told(error)
                if error.status != 429 and error.status < 500:
                    hint = "" if "webhook" in message else HINTS.get(error.status, "")
                    told = f"{doing} in namespace {self._namespace}: refused with {error.status}: {message}"
                    raise RefusedError(f"{told}; {hint}" if hint else told, reason) from None
                problem = f"{error.status} {message}"
            except HTTPError as error:
                problem = str(error)
            if time.monotonic() + pause_s > give_up_at:
                raise JobError(f"{doing}: no answer from the Kubernetes API: {problem}; the job itself may go on")
            logger.warning("%s: %s; asked again in %.0f s", doing, problem, pause_s)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _told(error: Any) -> tuple[str, str]:
    """Message and reason in an answer of the API that is no success."""
    try:
        status = json.loads(error.body)
        return str(status["message"]), str(status.get("reason", ""))
    except (TypeError, ValueError, KeyError):
        return str(error.body or error.reason).strip(), ""


def _start(cluster: Cluster, manifest: Mapping[str, Any], left: Location) -> None:
    """Create the job, unless it is there and runs or has done its work."""
    name = manifest["metadata"]["name"]
    job = cluster.job(name)
    if job is not None and _is_spent(job, left):
        logger.info("train job %s: an earlier one is of no more use; it is deleted and made anew", name)
        cluster.delete(name)
        give_up_at = time.monotonic() + GONE_WITHIN_S
        while cluster.job(name) is not None:
            if time.monotonic() > give_up_at:
                raise JobError(f"train job {name}: deleted, but still there after {GONE_WITHIN_S:.0f} s")
            time.sleep(POLL_S)
        job = None
    if job is None and cluster.create(manifest):
        logger.info(
            "train job %s: created in namespace %s, %s", name, manifest["metadata"]["namespace"], size_of(manifest)
        )
    else:
        logger.info("train job %s: already there, %s; this task waits for it", name, size_of(job or manifest))


def _is_spent(job: Mapping[str, Any], left: Location) -> bool:
    """True for a job that failed, is going, or whose model is no longer there."""
    if "deletionTimestamp" in job["metadata"] or condition(job, "Failed"):
        return True
    return condition(job, "Complete") is not None and _handed_over(left) is None


def _wait(cluster: Cluster, name: str) -> None:
    """Return when the job is complete; tell what its pods do whenever that changes."""
    shown = ""
    while True:
        job = cluster.job(name)
        if job is None:
            raise JobError(f"train job {name}: deleted by someone else while this task waited for it")
        if condition(job, "Complete"):
            logger.info("train job %s: complete", name)
            return
        if failed := condition(job, "Failed"):
            raise _failure(cluster, name, failed)
        state = "suspended, until a queue admits it" if condition(job, "Suspended") else pod_states(cluster.pods(name))
        if state != shown:
            shown = state
            logger.info("train job %s: %s", name, state)
        time.sleep(POLL_S)


def _failure(cluster: Cluster, name: str, failed: Mapping[str, Any]) -> JobError:
    """What is known about a failed job; the last lines of its first failed pod go to the log as they are."""
    message = f"train job {name} failed: {failed.get('reason', '')}: {failed.get('message', '')}"
    pod = first_failed(cluster.pods(name))
    if pod is None:
        return JobError(f"{message}; its failed pods are gone")
    message += f"; pod {pod.name} of job {pod.replicated_job} failed first, exit code {pod.exit_code} ({pod.reason})"
    lines = cluster.log(pod.name)
    for line in lines:
        logger.error("%s: %s", pod.name, line)
    told = [line for line in lines if "ralm: error: " in line][-1:] or lines[-3:]
    return JobError(f"{message}: {' | '.join(told) or 'its log cannot be read'}")


def _stop(cluster: Cluster, name: str) -> None:
    logger.warning("train job %s: this task is stopped, so the job is deleted", name)
    try:
        cluster.delete(name, patience_s=SHORT_PATIENCE_S)
    except JobError as error:
        logger.error("train job %s: still there: %s", name, error)


def _handed_over(left: Location) -> Manifest | None:
    """The manifest of the model that the workers left, if the store has it."""
    try:
        made = read_artifact(left).manifest
        return open_artifact(stored_location(made), made.kind).manifest
    except ArtifactError:
        return None


def _take_over(name: str, left: Location, output: Location) -> Manifest:
    """Hand the workers' model over to the task's output folder."""
    made = _handed_over(left)
    manifest = take_finished(output, made.kind, made.key) if made else None
    if manifest is None:
        raise JobError(f"train job {name}: complete, but there is no model at {left}; do its pods have the same store?")
    return dataclasses.replace(manifest, reused=False)
