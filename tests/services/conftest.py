"""Real services for the tests here: PostgreSQL, an MLflow server on it, and an S3 server that both use."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.s3_proxy import BUCKET, CREDENTIALS, s3_server
from tests.services.postgres import postgres_server


@dataclass(frozen=True)
class Services:
    """The running services."""

    mlflow: str
    """Address of the MLflow server."""
    database: str
    """Address of its database."""
    s3: str
    """Address of the object store."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that uses them, with one store for all."""
        return {
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": self.s3,
            "MLFLOW_TRACKING_URI": self.mlflow,
            "RALM_STORE_URI": f"s3://{BUCKET}/store",
            "RALM_TRACKING": "on",
        }

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the database."""
        import psycopg2

        address = self.database.replace("+psycopg2", "")
        with contextlib.closing(psycopg2.connect(address)) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """All of them; skips where one is not installed."""
    with postgres_server("mlflow") as database, s3_server() as (host, port):
        s3 = f"http://{host}:{port}"
        with _mlflow_server(database, s3, tmp_path_factory.mktemp("mlflow")) as mlflow:
            yield Services(mlflow=mlflow, database=database, s3=s3)


@contextlib.contextmanager
def _mlflow_server(database: str, s3: str, folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", database, "--artifacts-destination", f"s3://{BUCKET}/mlflow", "--workers", "2"]
    environment = {
        **os.environ,
        **CREDENTIALS,
        "AWS_ENDPOINT_URL": s3,
        "MLFLOW_S3_ENDPOINT_URL": s3,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-2000:])
