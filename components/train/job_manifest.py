"""What a train job is: its settings, what it reads, and its TrainJob manifest as plain data.

A TrainJob (Kubeflow Trainer 2.2 or newer) names a runtime of the cluster, which says how PyTorch is run on several
nodes: it starts one pod a node and sets `PET_NNODES`, `PET_NPROC_PER_NODE`, `PET_NODE_RANK`, `PET_MASTER_ADDR` and
`PET_MASTER_PORT`, which `torchrun` reads. The manifest adds the image, the command, resources and the shared volume.
Nothing here asks Kubernetes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

from components.images import CPU_IMAGE, GPU_IMAGE, VERSION
from ralm import tracking
from ralm.artifacts.files import Location, encode_json, exists, is_remote, join, local_path, ralm_home
from ralm.artifacts.manifest import MANIFEST, Artifact, read_artifact
from ralm.artifacts.store import store_uri, stored_location
from ralm.errors import ArtifactError, ConfigError

GROUP: Final = "trainer.kubeflow.org"
API_VERSION: Final = "v1alpha1"
NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
NO_ACCELERATOR: Final = "none"
FILE_GROUP: Final = 1000
"""Group that may write to the shared volume, whichever user the image has."""
NODE: Final = "node"
"""Name of the pods' job and of their container in Trainer's runtimes for PyTorch."""

VARIABLES: Final = {
    "claim": "RALM_JOB_CLAIM",
    "namespace": "RALM_JOB_NAMESPACE",
    "image": "RALM_JOB_IMAGE",
    "runtime": "RALM_JOB_RUNTIME",
    "accelerator": "RALM_JOB_ACCELERATOR",
    "cpus": "RALM_JOB_CPUS",
    "memory": "RALM_JOB_MEMORY",
    "secret": "RALM_JOB_SECRET",
}
PASSED_ON: Final = (
    "RALM_PRECISION",
    "RALM_LOG_LEVEL",
    "RALM_TRACKING",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_WORKSPACE",
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
"""Variables of the task that the pods get with the same value."""
SECRETS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)
"""Variables that the pods get from the Secret, whose keys have these names; their values are in no manifest."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_RESOURCE = re.compile(rf"{NO_ACCELERATOR}|[a-z0-9.-]+/[A-Za-z0-9._-]+")
_MEMORY = re.compile(r"[1-9][0-9]*(\.[0-9]+)?[KMGT]i")
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """Where a train job runs and what its pods get. Each field has a variable in `VARIABLES`."""

    claim: str
    """PersistentVolumeClaim (ReadWriteMany) that every pod mounts at `$RALM_HOME`."""

    namespace: str
    """Namespace of the job; by default the one of the task's pod."""

    image: str
    """Image of the pods; by default the one of this version for the accelerator."""

    runtime: str = "torch-distributed"
    """ClusterTrainingRuntime of the cluster for PyTorch."""

    accelerator: str = "nvidia.com/gpu"
    """Resource that each process gets one of, `none` for the CPU alone."""

    cpus: int = 8
    """Cores of a node."""

    memory: str = "64Gi"
    """Memory of a node."""

    secret: str = ""
    """Secret with what the object store and MLflow ask for, by the names in `SECRETS`; none by default."""

    def __post_init__(self) -> None:
        if not self.claim:
            raise ConfigError(
                f"{VARIABLES['claim']}: not set; the nodes of a train job keep their checkpoints in one RALM_HOME: "
                "name the PersistentVolumeClaim (ReadWriteMany) to mount there"
            )
        if not self.namespace:
            raise ConfigError(f"{VARIABLES['namespace']}: not set, and this is no pod, which would know its own")
        for name in ("claim", "namespace", "runtime", "secret"):
            value = getattr(self, name)
            if value and not _NAME.fullmatch(value):
                raise ConfigError(f"{VARIABLES[name]}: expected the name of a Kubernetes object, found {value!r}")
        if not _RESOURCE.fullmatch(self.accelerator):
            raise ConfigError(
                f"{VARIABLES['accelerator']}: expected a resource such as nvidia.com/gpu, or {NO_ACCELERATOR}, "
                f"found {self.accelerator!r}"
            )
        if self.cpus < 1:
            raise ConfigError(f"{VARIABLES['cpus']}: expected at least 1, found {self.cpus}")
        if not _MEMORY.fullmatch(self.memory):
            raise ConfigError(f"{VARIABLES['memory']}: expected an amount such as 64Gi, found {self.memory!r}")

    @classmethod
    def from_environment(cls) -> Self:
        """The settings of the task that starts the job.

        Raises:
            ConfigError: one is missing, or no value of its kind.
        """
        given: dict[str, Any] = {name: os.environ.get(variable) for name, variable in VARIABLES.items()}
        given = {name: value for name, value in given.items() if value}
        if "cpus" in given:
            if not given["cpus"].isdecimal():
                raise ConfigError(f"{VARIABLES['cpus']}: expected a whole number, found {given['cpus']!r}")
            given["cpus"] = int(given["cpus"])
        is_gpu = given.get("accelerator") != NO_ACCELERATOR
        own = NAMESPACE_FILE.read_text(encoding="utf-8").strip() if NAMESPACE_FILE.is_file() else ""
        return cls(**{"claim": "", "namespace": own, "image": GPU_IMAGE if is_gpu else CPU_IMAGE, **given})


def check_store() -> Location:
    """The store, if the pods of a job can reach it.

    Raises:
        ConfigError: it is not set, or a path outside the volume that the pods mount.
    """
    store = os.environ.get("RALM_STORE_URI", "")
    if not store or not is_shared(store):
        raise ConfigError(
            f"RALM_STORE_URI: expected an object store, or a path below RALM_HOME ({ralm_home()}), where the nodes of "
            f"a train job mount their volume, found {store!r}"
        )
    return store


def is_shared(place: Location) -> bool:
    """True for a URL, and for a path on the volume that the pods of a job mount."""
    return is_remote(place) or local_path(place).is_relative_to(ralm_home())


def shared_artifact(name: str, location: Location) -> Artifact:
    """An input of the task, at a place that the pods of a job can read.

    Args:
        name: of the input.
        location: what the task was given, usually a small folder whose manifest names the place in the store.

    Raises:
        ArtifactError: it is unfinished, or only in a folder of this machine.
    """
    found = read_artifact(location)
    for place in (found.base, stored_location(found.manifest)):
        if is_shared(place) and exists(join(place, MANIFEST)):
            return read_artifact(place)
    raise ArtifactError(
        f"{location}: the nodes of a train job cannot read the {name} in this folder, and the store {store_uri()} does "
        "not have them; let all tasks use one shared store (RALM_STORE_URI)"
    )


def job_name(fingerprints: Mapping[str, str], *, config: str, settings: JobSettings) -> str:
    """Name of the job that trains this: the same for every try of a task, another one for anything else.

    The numbers of nodes and processes are not in it: two jobs must not write the same checkpoints at once.

    Args:
        fingerprints: of the inputs, by name.
        config: the stage's config as JSON.
        settings: of the job; its image stands for the code.
    """
    parts = {
        "inputs": dict(fingerprints),
        "config": json.loads(config),
        "image": settings.image,
        "accelerator": settings.accelerator,
        "precision": os.environ.get("RALM_PRECISION", ""),
        "store": store_uri(),
    }
    return f"ralm-train-{hashlib.sha256(encode_json(parts)).hexdigest()[:16]}"


def job_variables(settings: JobSettings, num_processes: int) -> list[dict[str, Any]]:
    """The pods' environment: values that are no secret, and references to those that are.

    Raises:
        ConfigError: the task uses a secret that the pods would not get, or one inside a URL.
    """
    plain = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    plain |= {"RALM_HOME": str(ralm_home()), "RALM_STORE_URI": store_uri()}
    plain["OMP_NUM_THREADS"] = str(max(1, settings.cpus // num_processes))  # torchrun's own choice is 1
    if tracking.tracking_uri().startswith("sqlite:"):  # a file that is this task's own
        plain["RALM_TRACKING"] = "off"
    for name, value in plain.items():
        if "://" in value and urlsplit(value).password:
            raise ConfigError(f"{name}: has a password inside; put it into a Secret, named by {VARIABLES['secret']}")
    used = [name for name in SECRETS if os.environ.get(name)]
    if used and not settings.secret:
        raise ConfigError(
            f"{VARIABLES['secret']}: not set, but this task uses {', '.join(used)}; the nodes of a train job get them "
            "from a Secret with these keys"
        )
    references = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": settings.secret, "key": name, "optional": True}}}
        for name in (SECRETS if settings.secret else ())
    ]
    return [*({"name": name, "value": _literal(value)} for name, value in sorted(plain.items())), *references]


def make_manifest(
    name: str,
    *,
    flags: Mapping[str, str],
    variables: list[dict[str, Any]],
    settings: JobSettings,
    num_processes: int,
    nodes: int,
) -> dict[str, Any]:
    """The TrainJob that runs the train stage on several nodes.

    Args:
        name: of the job.
        flags: of the stage, by name.
        variables: the pods' environment, from `job_variables`.
        settings: where it runs.
        num_processes: worker processes on each node.
        nodes: pods.
    """
    words = [word for flag, value in flags.items() for word in (f"--{flag}", _literal(value))]
    accelerators = {} if settings.accelerator == NO_ACCELERATOR else {settings.accelerator: str(num_processes)}
    return {
        "apiVersion": f"{GROUP}/{API_VERSION}",
        "kind": "TrainJob",
        "metadata": {"name": name, "namespace": settings.namespace, "labels": _labels()},
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": settings.runtime},
            "trainer": {
                "image": settings.image,
                "command": ["torchrun"],
                "args": ["-m", "components.train", *words],
                "env": variables,
                "numNodes": nodes,
                "numProcPerNode": num_processes,
                "resourcesPerNode": {
                    "requests": {"cpu": str(settings.cpus), "memory": settings.memory, **accelerators},
                    "limits": {"memory": settings.memory, **accelerators},
                },
            },
            "runtimePatches": [_pod_patch(settings.claim)],
        },
    }


def _pod_patch(claim: str) -> dict[str, Any]:
    """What the pods get beside Trainer's runtime: the shared volume, memory for NCCL's exchanges, and no rights."""
    container = {
        "name": NODE,
        "volumeMounts": [
            {"name": "home", "mountPath": str(ralm_home())},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod = {
        "securityContext": {
            "runAsNonRoot": True,
            "fsGroup": FILE_GROUP,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": "home", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
        "containers": [container],
    }
    # A service mesh's proxy would stand between the processes.
    labels = {**_labels(), "sidecar.istio.io/inject": "false"}
    replicated = {"name": NODE, "template": {"spec": {"template": {"metadata": {"labels": labels}, "spec": pod}}}}
    return {
        "manager": "ralm-pipelines/train",
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [replicated]}}},
    }


def _labels() -> dict[str, str]:
    labels = {
        "app.kubernetes.io/name": "ralm-train",
        "app.kubernetes.io/part-of": "ralm-pipelines",
        "app.kubernetes.io/version": VERSION,
    }
    run = os.environ.get("KFP_RUN_ID", "")
    return {**labels, "pipeline/runid": run} if _LABEL.fullmatch(run) else labels


def _literal(value: str) -> str:
    """A text as it is: Kubernetes would replace `$(NAME)` in arguments and variables.

    >>> _literal('{"prompt": "$(HOME)"}')
    '{"prompt": "$$(HOME)"}'
    """
    return value.replace("$", "$$")
