"""A PostgreSQL server of one's own, from the binaries of a distribution's package."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SETTINGS = {"fsync": "off", "max_connections": "100", "listen_addresses": "127.0.0.1"}


@contextlib.contextmanager
def postgres_server(database: str) -> Iterator[str]:
    """Address of a new, empty database, with user and password; skips the test where PostgreSQL is not installed."""
    binaries = _find_binaries()
    folder = Path(tempfile.mkdtemp(prefix="ralm-postgres-"))  # short, for the socket, and open to another user
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    password = secrets.token_hex(16)
    (folder / "password").write_text(password)
    user = _unprivileged_user()
    if user is not None:
        for path in (folder, folder / "password"):
            shutil.chown(path, user)

    def call(name: str, *arguments: str) -> None:
        command = [str(binaries / name), "-D", str(folder / "data"), *arguments]
        with (folder / "output").open("ab") as output:  # no pipe: the server would hold it open
            done = subprocess.run(
                command, user=user, cwd=folder, stdout=output, stderr=output, check=False, timeout=120
            )
        assert done.returncode == 0, (folder / "output").read_text()

    try:
        access = ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--username=ralm"]
        call("initdb", *access, "--encoding=UTF8", "--locale=C", "--no-sync")
        settings = {**SETTINGS, "port": str(port), "unix_socket_directories": str(folder)}
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        call("pg_ctl", "start", "-w", "-o", options)
        try:
            _create(database, port, password)
            yield f"postgresql+psycopg2://ralm:{password}@127.0.0.1:{port}/{database}"
        finally:
            call("pg_ctl", "stop", "-m", "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find_binaries() -> Path:
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = shutil.which("initdb") or (packaged[-1] if packaged else None)
    if found is None:
        pytest.skip("needs PostgreSQL (`apt-get install -y --no-install-recommends postgresql`)")
    return Path(found).resolve().parent


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


def _create(database: str, port: int, password: str) -> None:
    psycopg2 = pytest.importorskip("psycopg2", reason="needs psycopg2-binary, see the extra `server`")
    connection = psycopg2.connect(host="127.0.0.1", port=port, user="ralm", password=password, dbname="postgres")
    connection.autocommit = True
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute(f"create database {database}")
