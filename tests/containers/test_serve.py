"""The HTTP service in its image: as in a cluster, but for the network, which is the host's."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from components import images
from tests.containers.conftest import ENGINE, LOCKED_DOWN, engine

pytestmark = pytest.mark.containers


def readable_copy(source: str, target: Path) -> None:
    """A copy for the images' user; pytest's folders are of their owner alone."""
    shutil.copytree(source, target)
    for place in (target, *target.rglob("*")):
        place.chmod(0o755 if place.is_dir() else 0o644)


def call(port: int, path: str, content: Any = None) -> tuple[int, Any]:
    """Status and content of an answer."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        method = "GET" if content is None else "POST"
        connection.request(method, path, json.dumps(content), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text.strip() else None


def wait_for(name: str, pattern: str, limit_s: float = 120) -> re.Match[str]:
    """Wait for a line in a container's log."""
    deadline = time.monotonic() + limit_s
    while not (found := re.search(pattern, log := engine("logs", name))):
        assert time.monotonic() < deadline, log
        time.sleep(0.2)
    return found


def test_the_service_in_its_image(tmp_path: Path, tiny_model: str, toy_index: str, toy_passages: str) -> None:
    """It answers, says how it is, and ends well on the SIGTERM that a cluster sends."""
    given = {"model": tiny_model, "index": toy_index, "passages": toy_passages}
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    words = []
    for kind, source in given.items():
        readable_copy(source, tmp_path / kind)
        words += [f"--{kind}", f"/given/{kind}"]
    name = f"ralm-test-serve-{os.getpid()}"
    options = [*LOCKED_DOWN[1:], "--detach", "--network", "host", "--name", name, "-e", "RALM_TRACKING=off"]
    command = ["ralm", "serve", "--port", "0", *words]
    try:
        engine("run", *options, "-e", "RALM_HOME=/tmp/r", "-v", f"{tmp_path}:/given:ro", images.CPU_IMAGE, *command)
        port = int(wait_for(name, r"listening at http://127\.0\.0\.1:(\d+)")[1])
        wait_for(name, "ready: ")
        assert call(port, "/health")[0] == call(port, "/ready")[0] == 200
        status, content = call(port, "/invocations", {"inputs": ["what is the colour of granite"]})
        assert status == 200, content
        (answered,) = content["predictions"]
        assert answered["passages"]
        assert call(port, "/invocations", {"inputs": 7})[0] == 400
        subprocess.run([ENGINE, "stop", "--time", "60", name], check=True, capture_output=True, timeout=100)
        assert engine("inspect", "--format", "{{.State.ExitCode}}", name).strip() == "0"
        assert "Traceback" not in engine("logs", name)
    finally:
        engine("rm", "--force", name, check=False)
