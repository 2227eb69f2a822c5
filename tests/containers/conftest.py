"""An engine with our images in it; `make test-containers` provides both. Without them the tests skip and say why."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from components import images
from tests.pipelines.conftest import toy_arguments, toy_corpus  # noqa: F401 - fixtures

ENGINE = os.environ.get("CONTAINER_ENGINE", "podman")
LOCKED_DOWN = ["--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]


def engine(*words: str, check: bool = True) -> str:
    """What a command of the engine prints."""
    done = subprocess.run([ENGINE, *words], capture_output=True, text=True, check=False, timeout=250)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="session", autouse=True)
def built_images() -> None:
    """Skip where there is no engine, or an image is missing."""
    for image in (images.BASE_IMAGE, images.CPU_IMAGE):
        try:
            done = subprocess.run([ENGINE, "image", "inspect", image], capture_output=True, check=False, timeout=60)
        except FileNotFoundError:
            pytest.skip(f"no container engine: {ENGINE} is not installed; see docker/bootstrap.sh")
        if done.returncode:
            pytest.skip(f"{image} is not built; run `make test-containers`")
    if not os.environ.get("DOCKER_HOST") and not os.path.exists("/var/run/docker.sock"):
        pytest.skip("no engine answers docker-py: set DOCKER_HOST, see docker/bootstrap.sh")


@pytest.fixture
def in_image() -> Callable[..., Any]:
    """Run a command in an image, without network, on a root that cannot be written to."""

    def run(image: str, *words: str, options: tuple[str, ...] = ()) -> str:
        return engine("run", *LOCKED_DOWN, "--network", "none", *options, image, *words)

    return run
