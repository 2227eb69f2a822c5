"""Reads what the Kubernetes API tells about a train job and its pods: conditions, states, which pod failed first."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REPLICATED_JOB_LABEL = "jobset.sigs.k8s.io/replicatedjob-name"


def condition(job: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """The condition of a job that is true now: `Complete`, `Failed` or `Suspended`."""
    found = job.get("status", {}).get("conditions", [])
    return next((entry for entry in found if entry["type"] == kind and entry["status"] == "True"), None)


def size_of(job: Mapping[str, Any]) -> str:
    """Nodes and processes of a job, for people."""
    trainer = job["spec"]["trainer"]
    return f"{trainer['numNodes']} nodes with {trainer['numProcPerNode']} processes each"


def pod_states(pods: Sequence[Any]) -> str:
    """What the pods do, on one line, such as `1 Pending (Unschedulable), 3 Running`."""
    states = collections.Counter(map(_pod_state, pods))
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "no pods to be seen yet"


def _pod_state(pod: Any) -> str:
    """The phase of a pod, and what keeps it from running."""
    states = [status.state for status in pod.status.container_statuses or ()]
    reasons = [state.waiting.reason for state in states if state and state.waiting]
    if pod.status.phase == "Pending":
        reasons += [entry.reason for entry in pod.status.conditions or () if entry.status == "False"]
    reason = next(filter(None, reasons), "")
    return f"{pod.status.phase} ({reason})" if reason else str(pod.status.phase)


@dataclass(frozen=True)
class FailedPod:
    """A pod whose container ended with an error."""

    name: str
    replicated_job: str
    exit_code: int
    reason: str


def first_failed(pods: Sequence[Any]) -> FailedPod | None:
    """The pod that failed first: the others fail because they lost it."""
    ended = [
        (state.terminated, pod)
        for pod in pods
        for status in pod.status.container_statuses or ()
        for state in (status.state, status.last_state)
        if state and state.terminated and state.terminated.exit_code != 0
    ]
    if not ended:
        return None
    terminated, pod = min(ended, key=lambda entry: (str(entry[0].finished_at), entry[1].metadata.name))
    job = (pod.metadata.labels or {}).get(REPLICATED_JOB_LABEL, "")
    return FailedPod(pod.metadata.name, job, terminated.exit_code, terminated.reason or "")
