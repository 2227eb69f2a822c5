"""What a task needs where it runs: images, resources, secrets, volumes, retries, timeouts; one profile for each place.

A graph is traced once for each profile; `place` gives every task what the profile of that trace says. `local` and
`container` ask for nothing but an image. A cluster differs from site to site: `Cluster` holds what may differ, as
defaults here or from a file given to `ralm pipeline compile --cluster`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from kfp import dsl, kubernetes
from kfp.dsl.pipeline_task import PipelineTask

from components.images import GPU_IMAGE
from pipelines.compile import Profile
from ralm.errors import ConfigError

HOUR = 3600


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


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the kinds of tasks get; the defaults fit the English Wikipedia (about 40 million passages)."""

    small: Size = Size(cpus="500m", max_cpus="2", memory="4Gi", timeout_s=HOUR)
    """Plan, watch, select, gate, register, and the run's start and end."""
    corpus: Size = Size(cpus="8", max_cpus="16", memory="32Gi", timeout_s=24 * HOUR)
    """Download of the corpus and the comparison of two."""
    encode: Size = Size(cpus="4", max_cpus="8", memory="32Gi", timeout_s=24 * HOUR, gpus=1)
    """One shard of the encoding."""
    index: Size = Size(cpus="16", max_cpus="32", memory="160Gi", timeout_s=24 * HOUR)
    """The index build."""
    evaluate: Size = Size(cpus="8", max_cpus="16", memory="128Gi", timeout_s=24 * HOUR, gpus=1)
    """An evaluation: the index and the model in one process."""
    train: Size = Size(cpus="16", max_cpus="32", memory="256Gi", timeout_s=7 * 24 * HOUR, gpus=8)
    """Training on one node; with several the task only waits for its job."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What differs from cluster to cluster. Names of secrets, never their values."""

    registry: str = ""
    """Where the images are, such as `registry.example.org/ralm`; empty: as they are named."""
    pull_secret: str = ""
    """Secret for that registry."""
    store_uri: str = "/ralm/store"
    """`RALM_STORE_URI` of every task: an object store (`s3://bucket/prefix`), or a path on the volume."""
    claim: str = "ralm"
    """ReadWriteMany volume claim, mounted as `RALM_HOME` at `/ralm`: caches, checkpoints, locks."""
    store_secret: str = "ralm-store"
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; it need not exist."""
    mlflow_uri: str = "http://mlflow:5000"
    """Tracking server. Where Kubeflow's own MLflow integration is switched on, it goes before."""
    mlflow_secret: str = "ralm-mlflow"
    """Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; it need not exist."""
    webhook_secret: str = "ralm-webhook"
    """Secret with RALM_WEBHOOK_URL, told of failed and refused runs; it need not exist."""
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
        for name in ("claim", "gpu_resource", "gpu_taint", "store_uri"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: expected a name, found an empty text")


Kind = Literal["small", "corpus", "encode", "index", "evaluate", "train"]
HOME: Final = "/ralm"
SHARED_MEMORY: Final = "/dev/shm"
_current: ContextVar[tuple[Profile, Cluster]] = ContextVar("profile", default=("local", Cluster()))


@contextlib.contextmanager
def tracing_for(profile: Profile, cluster: Cluster) -> Iterator[None]:
    """Inside, graphs are traced for a profile."""
    token = _current.set((profile, cluster))
    try:
        yield
    finally:
        _current.reset(token)


def place(task: PipelineTask, kind: Kind, *, name: str = "", is_cached: bool = True, is_last: bool = False) -> Any:
    """Give a task what it needs, by the profile of this trace.

    Args:
        task: of the graph.
        kind: which of the `Sizes`.
        name: shown in the user interface.
        is_cached: False for what has to run every time.
        is_last: the exit task: tried once.
    """
    if name:
        task.set_display_name(name)
    if not is_cached:
        task.set_caching_options(False)
    profile, cluster = _current.get()
    if profile == "cluster":
        _place_in_cluster(task, cluster, getattr(cluster.sizes, kind), is_last=is_last)
    return task


def pipeline_config() -> dsl.PipelineConfig | None:
    """Settings of a whole run, by the profile of this trace."""
    profile, cluster = _current.get()
    if profile != "cluster":
        return None
    config = dsl.PipelineConfig()
    config.ttl_seconds_after_finished = cluster.keep_days * 24 * HOUR
    return config


def _place_in_cluster(task: PipelineTask, cluster: Cluster, size: Size, *, is_last: bool) -> None:
    image = GPU_IMAGE if size.gpus else task.container_spec.image
    task.set_container_image(f"{cluster.registry.rstrip('/')}/{image}" if cluster.registry else image)
    task.set_cpu_request(size.cpus).set_cpu_limit(size.max_cpus)
    task.set_memory_request(size.memory).set_memory_limit(size.memory)
    kubernetes.set_timeout(task, size.timeout_s)
    if not is_last:
        task.set_retry(cluster.retries, backoff_duration="60s", backoff_factor=2, backoff_max_duration="1800s")
    if size.gpus:
        task.set_accelerator_type(cluster.gpu_resource).set_accelerator_limit(size.gpus)
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
        "RALM_JOB_ACCELERATOR": cluster.gpu_resource,
        "MLFLOW_TRACKING_URI": cluster.mlflow_uri,
    }
    if cluster.registry:
        variables["RALM_JOB_IMAGE"] = f"{cluster.registry.rstrip('/')}/{GPU_IMAGE}"
    return {name: value for name, value in variables.items() if value}


def _secrets(cluster: Cluster) -> dict[str, tuple[str, ...]]:
    secrets = {
        cluster.store_secret: ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        cluster.mlflow_secret: ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
        cluster.webhook_secret: ("RALM_WEBHOOK_URL",),
    }
    return {name: variables for name, variables in secrets.items() if name}


def read_cluster(place: str) -> Cluster:
    """A `Cluster` from a YAML or JSON file; what is not given is as here.

    Raises:
        ConfigError: an unknown setting or one of another type; the message names the file.
    """
    from ralm.artifacts.files import read_settings
    from ralm.cli import parse_config

    try:
        cluster: Cluster = parse_config(Cluster, json.dumps(read_settings(place)))
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    return cluster
