"""What a task needs where it runs: images, resources, secrets, volumes, retries, timeouts; one profile for each place.

A graph is traced once for each profile; `place` gives every task what the profile of that trace says. `local` and
`container` ask for nothing but an image. A cluster differs from site to site: `Cluster` holds what may differ, as
defaults here or from a file given to `ralm pipeline compile --cluster`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from kfp import dsl, kubernetes
from kfp.dsl.pipeline_channel import PipelineChannel
from kfp.dsl.pipeline_task import PipelineTask

from components.images import GPU_IMAGE
from pipelines.compile import Profile
from ralm.errors import ConfigError

HOUR: Final = 3600
HOME: Final = "/ralm"
SHARED_MEMORY: Final = "/dev/shm"
_CORES: Final = re.compile(r"\d+(\.\d+)?|\d+m")
_MEMORY: Final = re.compile(r"\d+[KMGT]i?")


@dataclass(frozen=True, kw_only=True)
class Size:
    """What one kind of task gets."""

    cpus: str
    """Cores it is promised."""
    max_cpus: str
    """Cores it may use."""
    memory: str
    """Memory it is promised, which is also its limit: a task above it is killed and tried again elsewhere."""
    timeout_s: int
    """After which it is ended and tried again."""
    gpus: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.timeout_s < 1 or self.gpus < 0:
            raise ConfigError(f"size: expected timeout_s of at least 1 and gpus of at least 0, found {self}")
        for name in ("cpus", "max_cpus"):
            if not _CORES.fullmatch(getattr(self, name)):
                raise ConfigError(f"{name}: expected cores such as 8 or 500m, found {getattr(self, name)!r}")
        if not _MEMORY.fullmatch(self.memory):
            raise ConfigError(f"memory: expected an amount such as 64Gi, found {self.memory!r}")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the kinds of tasks get; the defaults fit the English Wikipedia (about 40 million passages)."""

    small: Size = Size(cpus="500m", max_cpus="2", memory="4Gi", timeout_s=HOUR)
    """Plan, watch, select, gate, register, and the run's start and end."""
    corpus: Size = Size(cpus="8", max_cpus="16", memory="32Gi", timeout_s=24 * HOUR)
    """Download of corpus, questions and model (its weights are in memory once, in fp32), comparison of two corpora."""
    encode: Size = Size(cpus="4", max_cpus="8", memory="32Gi", timeout_s=24 * HOUR, gpus=1)
    """One shard of the encoding."""
    index: Size = Size(cpus="16", max_cpus="32", memory="160Gi", timeout_s=24 * HOUR)
    """The index build."""
    evaluate: Size = Size(cpus="8", max_cpus="16", memory="128Gi", timeout_s=24 * HOUR, gpus=1)
    """An evaluation: the index and the model in one process."""
    train: Size = Size(cpus="16", max_cpus="32", memory="256Gi", timeout_s=7 * 24 * HOUR, gpus=1)
    """Training on one node, with a GPU for each of `num_processes` (0: none); also each node of several, for which the
    task itself only waits, without a GPU."""

    def __post_init__(self) -> None:
        """Check what the run decides."""
        if self.train.gpus > 1:
            raise ConfigError(f"train: gpus: expected 1 (for each process) or 0, found {self.train.gpus}")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What differs from cluster to cluster. Names of secrets, never their values."""

    registry: str = ""
    """Where the images are, such as `registry.example.org/ralm`; empty: as they are named."""
    pull_secret: str = ""
    """Secret for that registry."""
    store_uri: str = "/ralm/store"
    """`RALM_STORE_URI` of every task: an object store (`s3://bucket/prefix`), or a path on the volume."""
    claim: str = "ralm-home"
    """ReadWriteMany volume claim, mounted as `RALM_HOME` at `/ralm`: caches, checkpoints, locks."""
    store_secret: str = "ralm-store"
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; it need not exist. Nodes of a train job take MLflow's
    name and password from it too."""
    mlflow_uri: str = "http://mlflow:5000"
    """Tracking server. Where Kubeflow's own MLflow integration is switched on, it goes before."""
    mlflow_secret: str = "ralm-mlflow"
    """Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; it need not exist."""
    webhook_secret: str = "ralm-webhook"
    """Secret with RALM_WEBHOOK_URL, told of failed and refused runs; it need not exist."""
    environment: dict[str, str] = field(default_factory=dict)
    """More variables of every task, such as `{"AWS_ENDPOINT_URL": "http://minio:9000"}`; nothing secret."""
    gpu_resource: str = "nvidia.com/gpu"
    gpu_labels: dict[str, str] = field(default_factory=dict)
    """Node labels that GPU tasks ask for, such as `{"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}`."""
    gpu_taint: str = "nvidia.com/gpu"
    """Taint of GPU nodes that GPU tasks tolerate, of any value and effect."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Number format of all models: `auto` would differ between the tasks with and without a GPU."""
    retries: int = 3
    """Tries after the first, 1, 2, 4 ... minutes apart."""
    keep_days: int = 7
    """Days that the pods and workflow of a finished run are kept; artifacts are not in them."""
    sizes: Sizes = field(default_factory=Sizes)

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.retries < 1 or self.keep_days < 1:
            raise ConfigError(f"retries and keep_days: expected at least 1, found {self.retries} and {self.keep_days}")
        for name in ("claim", "gpu_resource", "gpu_taint"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: expected a name, found an empty text")
        if "://" not in self.store_uri and not self.store_uri.startswith(f"{HOME}/"):
            expected = (
                f"expected an object store such as s3://bucket/prefix, or a path below {HOME}, which all tasks share"
            )
            raise ConfigError(f"store_uri: {expected}, found {self.store_uri!r}")
        if "://" in self.registry:
            raise ConfigError(f"registry: expected a name such as registry.example.org/ralm, found {self.registry!r}")


Kind = Literal["small", "corpus", "encode", "index", "evaluate", "train"]
_current: ContextVar[tuple[Profile, Cluster]] = ContextVar("profile", default=("local", Cluster()))


@contextlib.contextmanager
def tracing_for(profile: Profile, cluster: Cluster) -> Iterator[None]:
    """Inside, graphs are traced for a profile."""
    token = _current.set((profile, cluster))
    try:
        yield
    finally:
        _current.reset(token)


def place(
    task: PipelineTask,
    kind: Kind,
    *,
    name: str = "",
    is_cached: bool = True,
    is_last: bool = False,
    gpus: PipelineChannel | None = None,
) -> Any:
    """Give a task what it needs, by the profile of this trace.

    Args:
        task: of the graph.
        kind: which of the `Sizes`.
        name: shown in the user interface.
        is_cached: False for what has to run every time.
        is_last: the exit task: tried once.
        gpus: how many GPUs, where the run decides it and not its `Size`.
    """
    if name:
        task.set_display_name(name)
    if not is_cached:
        task.set_caching_options(False)
    profile, cluster = _current.get()
    if profile == "cluster":
        size = getattr(cluster.sizes, kind)
        _place_in_cluster(task, cluster, size, gpus=gpus or size.gpus, is_last=is_last)
    return task


def pipeline_config() -> dsl.PipelineConfig | None:
    """Settings of a whole run, by the profile of this trace."""
    profile, cluster = _current.get()
    if profile != "cluster":
        return None
    config = dsl.PipelineConfig()
    config.ttl_seconds_after_finished = cluster.keep_days * 24 * HOUR
    return config


def _place_in_cluster(
    task: PipelineTask, cluster: Cluster, size: Size, *, gpus: PipelineChannel | int, is_last: bool
) -> None:
    image = GPU_IMAGE if size.gpus else task.container_spec.image
    task.set_container_image(f"{cluster.registry.rstrip('/')}/{image}" if cluster.registry else image)
    task.set_cpu_request(size.cpus).set_cpu_limit(size.max_cpus)
    task.set_memory_request(size.memory).set_memory_limit(size.memory)
    kubernetes.set_timeout(task, size.timeout_s)
    if not is_last:
        task.set_retry(cluster.retries, backoff_duration="60s", backoff_factor=2, backoff_max_duration="1800s")
    if size.gpus:
        task.set_accelerator_type(cluster.gpu_resource).set_accelerator_limit(gpus)
        kubernetes.add_toleration(task, key=cluster.gpu_taint, operator="Exists")
        for label, value in sorted(cluster.gpu_labels.items()):
            kubernetes.add_node_selector(task, label, value)
        kubernetes.empty_dir_mount(task, volume_name="shared-memory", mount_path=SHARED_MEMORY, medium="Memory")
    kubernetes.mount_pvc(task, cluster.claim, HOME)
    if cluster.pull_secret:
        kubernetes.set_image_pull_secrets(task, [cluster.pull_secret])
    for variable, value in _variables(cluster).items():
        task.set_env_variable(variable, value)
    kubernetes.use_field_path_as_env(task, env_name="KFP_RUN_ID", field_path="metadata.labels['pipeline/runid']")
    for secret, variables in _secrets(cluster).items():
        kubernetes.use_secret_as_env(task, secret, {name: name for name in variables}, optional=True)


def _variables(cluster: Cluster) -> dict[str, str]:
    variables = {
        "RALM_HOME": HOME,
        "RALM_STORE_URI": cluster.store_uri,
        "RALM_PRECISION": cluster.precision,
        "RALM_JOB_CLAIM": cluster.claim,
        "RALM_JOB_ACCELERATOR": cluster.gpu_resource if cluster.sizes.train.gpus else "none",
        "RALM_JOB_CPUS": cluster.sizes.train.cpus,
        "RALM_JOB_MEMORY": cluster.sizes.train.memory,
        "RALM_JOB_SECRET": cluster.store_secret,
        "MLFLOW_TRACKING_URI": cluster.mlflow_uri,
    }
    if cluster.registry:
        variables["RALM_JOB_IMAGE"] = f"{cluster.registry.rstrip('/')}/{GPU_IMAGE}"
    return {name: value for name, value in (variables | cluster.environment).items() if value}


def _secrets(cluster: Cluster) -> dict[str, tuple[str, ...]]:
    secrets = {
        cluster.store_secret: ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        cluster.mlflow_secret: ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
        cluster.webhook_secret: ("RALM_WEBHOOK_URL",),
    }
    return {name: variables for name, variables in secrets.items() if name}


def read_cluster(place: str) -> Cluster:
    """A `Cluster` from a YAML or JSON file; what is not given is as here, also of a size.

    Raises:
        ConfigError: an unknown setting or one of another type; the message names the file.
    """
    from ralm.artifacts.files import read_settings
    from ralm.cli import parse_config

    settings = read_settings(place)
    try:
        cluster: Cluster = parse_config(Cluster, json.dumps(settings))
    except ConfigError as error:
        raise ConfigError(f"{place}: {re.sub('^Cluster: (config[.:] ?)?', '', str(error))}") from error
    return cluster
