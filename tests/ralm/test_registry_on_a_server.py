"""Promotions and rollbacks against a real MLflow server with basic auth, from several processes at once."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from components.gate.config import GateConfig
from components.gate.stage import gate
from ralm import rollback, serving
from ralm.errors import ConfigError, RalmError
from ralm.serving import versions
from tests.evaluations import Pairs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
ADMIN = ("admin", "correct-horse-battery")
READER = ("reader", "incorrect-horse-battery")
AUTH = """[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/auth.db
admin_username = {user}
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 300
"""
RACES = 8
"""Rounds of two promotions at once."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running server."""
    pytest.importorskip("flask_wtf", reason="needs mlflow[auth]")
    folder = tmp_path_factory.mktemp("server")
    (folder / "auth.ini").write_text(AUTH.format(folder=folder, user=ADMIN[0], password=ADMIN[1]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--app-name", "basic-auth", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    environment = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
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
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-2000:])


@pytest.fixture(autouse=True)
def connected(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This process uses the server as administrator, and a store that all share."""
    monkeypatch.setenv("RALM_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
    monkeypatch.setenv("RALM_STORE_URI", str(tmp_path / "store"))


class Worker:
    """A process with a RALM_HOME of its own, as on another machine."""

    def __init__(self, home: Path, **environment: str) -> None:
        home.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.registry_worker"],
            cwd=ROOT,
            env={**os.environ, "RALM_HOME": str(home), "OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, do: str, **words: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **words}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def call(self, do: str, **words: Any) -> dict[str, Any]:
        self.tell(do, **words)
        return self.answer()


@pytest.fixture
def workers(tmp_path: Path, connected: None) -> Iterator[list[Worker]]:
    """Two of them; they take a holder of the lease for dead after 15 seconds."""
    made = [Worker(tmp_path / f"home-{number}", TEST_LEASE_S="15") for number in range(2)]
    yield made
    for worker in made:
        worker.process.kill()
        worker.process.wait()


def both(workers: list[Worker], *orders: dict[str, Any]) -> list[dict[str, Any]]:
    """Have both work at the same moment."""
    for worker, order in zip(workers, orders, strict=True):
        worker.tell(**order, start_at=time.time() + 0.2)
    return [worker.answer() for worker in workers]


def tags_by_version(recipe: str) -> dict[str, dict[str, str]]:
    return {found.version: found.tags for found in versions(recipe)}


def champion(recipe: str) -> str:
    return next(found.version for found in versions(recipe) if found.alias == "champion")


def line_of(recipe: str) -> list[str]:
    """The champion, the one it replaced, and so on."""
    tags, version, line = tags_by_version(recipe), champion(recipe), []
    while version:
        assert version not in line
        line.append(version)
        version = tags[version][serving.REPLACED_TAG]
    return line


def test_no_promotion_is_lost_however_they_race(workers: list[Worker]) -> None:
    """All of them are promotions; each has to replace the one that it was measured against, and no other."""
    workers[0].call("register_pair", name="first")
    for number in range(RACES):
        orders = [
            {"do": "register_pair", "name": f"{number} of {worker}", "think_s": 0.05 * (number % 3)}
            for worker in range(2)
        ]
        answers = both(workers, *orders)
        assert all(answer["promoted"] for answer in answers), answers
    found = tags_by_version("race")
    assert len(found) == 2 * RACES + 1
    for tags in found.values():
        assert tags[serving.REPLACED_TAG] == tags[serving.MEASURED_TAG]
        assert tags[serving.REASON_TAG] == f"measured against {tags[serving.REPLACED_TAG]}"
    assert sorted(line_of("race"), key=int) == [str(number) for number in range(1, 2 * RACES + 2)]


class Store:
    """Gated pairs that are about to be registered as versions of one recipe."""

    def __init__(self, folder: Path, recipe: str) -> None:
        self.folder, self.recipe, self.pairs = folder, recipe, Pairs(folder)

    def order(self, name: str, right: int, against: tuple[str, int] = ("", 0), version: str = "") -> dict[str, Any]:
        """What registers a pair with so many of 40 answers right, gated against another one."""
        champion, its_right = against
        decision = str(self.folder / f"decision-{name}")
        gate(
            champion=self.pairs.predictions(champion, _scores(its_right)) if champion else "",
            challenger=self.pairs.predictions(name, _scores(right)),
            champion_version=version,
            decision=decision,
            config=GateConfig(resamples=500, max_loss=0.02),
        )
        return {
            "do": "register",
            "recipe": self.recipe,
            "registration": str(self.folder / f"registration-{name}"),
            "predictions": self.pairs.predictions(name, _scores(right)),
            "decision": decision,
            **self.pairs.parts(name),
        }


def _scores(right: int) -> Sequence[float]:
    return [1.0] * right + [0.0] * (40 - right)


@pytest.mark.parametrize("round_number", range(3))
def test_of_two_promotions_one_is_refused_and_measured_again(
    workers: list[Worker], tmp_path: Path, round_number: int
) -> None:
    """Both were measured against champion 1. Whoever is second is measured against whoever was first."""
    store = Store(tmp_path, f"two-{round_number}")
    assert workers[0].call(**store.order("a", 20))["promoted"]
    better, best = both(
        workers, store.order("bb", 30, ("a", 20), version="1"), store.order("ccc", 40, ("a", 20), version="1")
    )
    first, second = (better, best) if better["measured_against"] == "1" else (best, better)
    assert (first["promoted"], first["measured_against"], first["replaced"]) == (True, "1", "1")
    assert second["measured_against"] == first["version"]
    assert second["reason"].startswith(
        f"decided against champion 1, but champion is {first['version']}; measured again:"
    )
    assert second["promoted"] == (second is best)
    assert champion(store.recipe) == best["version"]
    assert [version.alias for version in versions(store.recipe)].count("champion") == 1


@pytest.mark.parametrize("round_number", range(4))
def test_rollback_and_promotion_at_once(workers: list[Worker], tmp_path: Path, round_number: int) -> None:
    store = Store(tmp_path, f"back-{round_number}")
    workers[0].call(**store.order("a", 20))
    workers[0].call(**store.order("bb", 30, ("a", 20), version="1"))
    promoted, back = both(
        workers, store.order("ccc", 40, ("bb", 30), version="2"), {"do": "roll_back", "recipe": store.recipe}
    )
    tags = tags_by_version(store.recipe)
    if "error" in back:  # the promotion was in between
        assert (
            back["error"]
            == "ConfigError: ralm-" + store.recipe + ": the champion was 2 and is now 3; nothing was changed"
        )
        assert (promoted["replaced"], champion(store.recipe)) == ("2", "3")
    elif back["before"] == "3":  # the promotion was first
        assert (promoted["replaced"], back["after"], champion(store.recipe)) == ("2", "2", "2")
        assert tags["3"][serving.ROLLED_BACK_TAG]
    else:  # the rollback was first: what was measured against 2 is measured against 1
        assert (back["before"], back["after"]) == ("2", "1")
        assert (promoted["promoted"], promoted["replaced"], champion(store.recipe)) == (True, "1", "3")
        assert "decided against champion 2, but champion is 1; measured again" in promoted["reason"]
        assert tags["2"][serving.ROLLED_BACK_TAG]


def test_a_holder_that_is_killed_holds_nobody_up_for_long(workers: list[Worker]) -> None:
    workers[0].tell("hold")
    ticket = workers[0].answer()["ticket"]
    assert ticket > 0
    workers[0].process.send_signal(signal.SIGKILL)
    started_at = time.monotonic()
    assert workers[1].call("register_pair", name="after the kill")["promoted"]
    assert 14 < time.monotonic() - started_at < 120


def test_a_holder_that_was_stopped_overrides_nobody(workers: list[Worker]) -> None:
    before = workers[0].call("register_pair", name="before the stop")["version"]
    workers[0].tell("register_stopped", name="stopped")
    assert workers[0].answer()["ticket"] > 0
    between = workers[1].call("register_pair", name="while it was stopped")
    assert (between["promoted"], between["replaced"]) == (True, before)
    workers[0].process.send_signal(signal.SIGCONT)
    late = workers[0].answer()
    assert (late["promoted"], late["replaced"]) == (True, between["version"])
    assert line_of("race")[:3] == [late["version"], between["version"], before]


def test_who_may_not_is_told(
    monkeypatch: pytest.MonkeyPatch, server: str, workers: list[Worker], tmp_path: Path
) -> None:
    from mlflow.server.auth.client import AuthServiceClient

    store = Store(tmp_path, "rights")
    workers[0].call(**store.order("a", 20))
    workers[0].call(**store.order("bb", 30, ("a", 20), version="1"))
    AuthServiceClient(server).create_user(*READER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    expected = (
        f"MLflow at {server} does not let user 'admin' in; check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASS"
    )
    with pytest.raises(ConfigError, match=expected):
        versions("rights")
    with pytest.raises(ConfigError, match=expected):
        rollback.rollback("rights")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", READER[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", READER[1])
    assert len(versions("rights")) == 2
    with pytest.raises(ConfigError, match="user 'reader' may not do this"):
        rollback.rollback("rights")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RalmError, match="MLflow at http://127.0.0.1:9: "):
        versions("rights")


def test_rollback_is_one_command(workers: list[Worker], tmp_path: Path) -> None:
    store = Store(tmp_path, "command")
    workers[0].call(**store.order("a", 20))
    workers[1].call(**store.order("bb", 30, ("a", 20), version="1"))
    assert champion("command") == "2"
    assert workers[1].call("roll_back", recipe="command")["after"] == "1"
    again = workers[0].call(**store.order("bb", 30, ("a", 20), version="1"))
    assert (again["promoted"], champion("command")) == (False, "1")
    assert "it was rolled back" in again["reason"]
