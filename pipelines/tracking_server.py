"""An MLflow server on loopback for the time of one run: containers cannot share a sqlite database with their host."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ralm import tracking
from ralm.artifacts.files import ralm_home
from ralm.errors import WorkerError

START_S: Final = 120.0
STOP_S: Final = 10.0


@contextlib.contextmanager
def served_tracking(log: Path) -> Iterator[str]:
    """Inside, MLflow answers at the URL that is given, for the very database that this process uses.

    Args:
        log: file for what the server says.

    Yields:
        The server's URL; what `MLFLOW_TRACKING_URI` says where that is a server already; empty where tracking is off.

    Raises:
        WorkerError: the server does not start.
    """
    uri = tracking.tracking_uri()
    if not tracking.is_enabled():
        yield ""
        return
    if not uri.startswith("sqlite:"):
        yield uri
        return
    tracking.connect()  # makes the database and the experiment, with artifacts at a path that containers see
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    artifacts = (ralm_home() / "mlartifacts").as_uri()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri, "--default-artifact-root", artifacts, "--no-serve-artifacts"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        _wait_for(url, server, log)
        yield url
    finally:
        _stop(server)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise WorkerError(f"MLflow's server does not start; {log}: {said[-1] if said else 'it said nothing'}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, politely first."""
    for number, timeout_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout_s)
