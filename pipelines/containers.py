"""Tasks as containers of this machine: what each may see, how it is started, followed and ended.

A container gets its image's root read-only, no capabilities, no root user, a `/tmp` of its own, the host's network (for
MLflow on loopback), `$RALM_HOME` at the same path, and read-only what the run's inputs name. kfp 2.17's own function
for this reports a container that fails quickly as a success (kubeflow/pipelines issue 13332); `pipelines/local.py`
replaces it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from components.images import CPU_IMAGE, GPU_IMAGE
from ralm.artifacts.files import ralm_home
from ralm.errors import ConfigError, WorkerError

if TYPE_CHECKING:
    from docker.client import DockerClient
    from docker.models.containers import Container

logger = logging.getLogger(__name__)
IMAGE_USER: Final = 65532
RUN_LABEL: Final = "ralm.run"
MEMORY_VARIABLE: Final = "RALM_CONTAINER_MEMORY"
_PASSED: Final = re.compile(
    r"(RALM|MLFLOW|AWS|HF|OMP|MKL|PIP|FSSPEC)_\w+|(HTTPS?|NO|ALL)_PROXY|(https?|no|all)_proxy"
    r"|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
)
"""Variables of this process that tasks get, too. Files they name are mounted."""
_PIP_SETTINGS: Final = "/etc/pip.conf"
SIGNAL_EXIT: Final = 128
ANSWER_S: Final = 600.0
"""Limit of one request to the engine; starting a container on a busy machine takes seconds."""


@dataclass(frozen=True)
class ContainerChild:
    """A running task."""

    container: Container
    memory: str
    """Its limit; empty: none."""

    @property
    def stdout(self) -> Iterator[str]:
        """What it prints, line by line, errors included; ends with the container."""
        rest = b""
        for chunk in self.container.logs(stream=True, follow=True):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (f"{line.decode(errors='replace')}\n" for line in lines)
        if rest:
            yield rest.decode(errors="replace")

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Exit code, negative for a signal; None if it has not ended in time, or nobody knows."""
        from docker.errors import NotFound
        from requests.exceptions import ConnectionError, ReadTimeout

        try:
            code = int(self.container.wait(timeout=timeout_s or 10**9)["StatusCode"])
        except (NotFound, ReadTimeout, ConnectionError):
            return None
        return SIGNAL_EXIT - code if code > SIGNAL_EXIT else code

    def explain(self, code: int) -> str:
        """How it ended, where it has not said so itself."""
        self.container.reload()
        if code == -signal.SIGKILL and (self.container.attrs["State"].get("OOMKilled") or self.memory):
            return f"killed, out of memory: more than {self.memory or 'the machine has'}"
        return ""

    def signal(self, number: int) -> None:
        """Send a signal to its first process; does nothing after its end."""
        from docker.errors import APIError

        with contextlib.suppress(APIError):
            self.container.kill(signal=int(number))

    def close(self) -> None:
        """Remove it."""
        from docker.errors import APIError

        with contextlib.suppress(APIError):
            self.container.remove(force=True)


@dataclass(frozen=True)
class Engine:
    """A container engine, and what the containers of one pipeline run have in common."""

    client: DockerClient
    run_id: str
    settings: Mapping[str, Any]
    """Arguments of every start, as docker-py names them."""
    has_gpu: bool

    def start(self, image: str, command: list[str], environment: Mapping[str, str]) -> ContainerChild:
        """Start a task.

        Raises:
            WorkerError: the engine refuses.
        """
        from docker.errors import APIError

        hand_over(ralm_home() / "runs" / self.run_id)
        variables = {**_passed_variables(), **environment}
        try:
            container = self.client.containers.run(
                self.image(image), command, detach=True, environment=variables, **self.settings
            )
        except APIError as error:
            raise WorkerError(f"{image}: the container engine refuses: {error.explanation or error}") from error
        return ContainerChild(container, str(self.settings.get("mem_limit", "")))

    def image(self, name: str) -> str:
        """The image of a task here: that with CUDA where the engine has GPUs."""
        return GPU_IMAGE if self.has_gpu and name == CPU_IMAGE else name

    def check_images(self, names: set[str]) -> None:
        """Raise ConfigError if an image is not here."""
        from docker.errors import ImageNotFound

        for name in sorted(map(self.image, names)):
            try:
                self.client.images.get(name)
            except ImageNotFound as error:
                raise ConfigError(f"{name}: no such image here; build it with `make images`") from error


def open_engine(run_id: str, inputs: Mapping[str, Any]) -> Engine:
    """Find the container engine of `DOCKER_HOST`, or of the usual place.

    Args:
        run_id: of the pipeline run.
        inputs: of the pipeline; paths among them are mounted.

    Raises:
        ConfigError: docker-py is missing, or no engine answers.
    """
    try:
        from docker.client import DockerClient
        from docker.errors import DockerException
    except ImportError as error:
        raise ConfigError("the container runner needs the package docker; install the extra kfp") from error
    try:
        client = DockerClient.from_env(timeout=ANSWER_S)
        about = client.info()
    except DockerException as error:
        place = os.environ.get("DOCKER_HOST", "the usual socket")
        raise ConfigError(f"no container engine answers at {place}: {error}") from error
    is_rootless = any("rootless" in str(option) for option in about.get("SecurityOptions") or ())
    has_gpu = "nvidia" in (about.get("Runtimes") or {})
    return Engine(client, run_id, _settings(run_id, inputs, is_rootless=is_rootless, has_gpu=has_gpu), has_gpu)


def _settings(run_id: str, inputs: Mapping[str, Any], *, is_rootless: bool, has_gpu: bool) -> dict[str, Any]:
    from docker.types import DeviceRequest, Mount

    user = os.getuid() or IMAGE_USER
    group = os.getgid() if os.getuid() else IMAGE_USER
    settings: dict[str, Any] = {
        "labels": {RUN_LABEL: run_id},
        "mounts": [
            Mount(target=path, source=path, type="bind", read_only=not is_writable)
            for path, is_writable in sorted(_mounted(inputs).items())
        ],
        "network_mode": "host",
        "read_only": True,
        "tmpfs": {"/tmp": ""},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "user": f"{user}:{group}",
        "working_dir": str(ralm_home()),
        "init": True,  # a first process without handlers ignores SIGTERM, and leaves zombies
    }
    if is_rootless:
        settings["userns_mode"] = "keep-id"
    if has_gpu:
        settings["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    if memory := os.environ.get(MEMORY_VARIABLE, ""):
        if not re.fullmatch(r"[1-9]\d*[bkmg]?", memory):
            raise ConfigError(f"{MEMORY_VARIABLE}: expected an amount such as 8g, found {memory!r}")
        settings |= {"mem_limit": memory, "memswap_limit": memory}
    return settings


def _passed_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _PASSED.fullmatch(name)}


def _mounted(inputs: Mapping[str, Any]) -> dict[str, bool]:
    """Paths that containers see, and whether they may write there."""
    store = os.environ.get("RALM_STORE_URI", "").removeprefix("file://")
    writable = [str(ralm_home()), *([os.path.abspath(store)] if store and "://" not in store else [])]
    for path in writable:
        Path(path).mkdir(parents=True, exist_ok=True)
    named = [*_texts(dict(inputs)), _PIP_SETTINGS, *_passed_variables().values()]
    shown = {os.path.abspath(text) for text in named if text.startswith("/") and os.path.exists(text)}
    outside = {path for path in shown if not any(os.path.commonpath([path, place]) == place for place in writable)}
    return dict.fromkeys(outside, False) | dict.fromkeys(writable, True)


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested settings, also those inside of JSON texts."""
    if isinstance(value, str):
        yield value.removeprefix("file://")
        if value.startswith(("{", "[")):
            with contextlib.suppress(ValueError):
                yield from _texts(json.loads(value))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def hand_over(folder: Path) -> None:
    """Where this process is root, give what is root's in a folder to the user of the images, which is never root."""
    if os.getuid():
        return
    for place, _, names in os.walk(folder):
        for path in (place, *(os.path.join(place, name) for name in names)):
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(path).st_uid == 0:
                    os.lchown(path, IMAGE_USER, IMAGE_USER)


def remove_left(run_id: str) -> None:
    """Remove containers that a killed driver left running."""
    try:
        engine = open_engine(run_id, {})
    except ConfigError as error:
        logger.warning("containers of the run %s may be left: %s", run_id, error)
        return
    for container in engine.client.containers.list(all=True, filters={"label": f"{RUN_LABEL}={run_id}"}):
        ContainerChild(container, "").close()
