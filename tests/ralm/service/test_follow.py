from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ralm import serving
from ralm.errors import ArtifactError, RalmError
from ralm.service import follow
from ralm.service.follow import Follower
from ralm.service.pair import ServedPair, Target
from tests.ralm.service.fakes import Echo, served
from tests.ralm.service.running import Running, running


class Registry:
    """What the alias says, and what comes of opening the champion; each an error or not."""

    champion: Any = "1"
    broken: Any = None
    opened: int = 0

    def find(self, recipe: str) -> str:
        assert recipe == "toy"
        if isinstance(self.champion, Exception):
            raise self.champion
        return str(self.champion)

    def target(self, recipe: str) -> Target:
        self.opened += 1
        if self.broken is not None:
            raise self.broken
        return served(None, str(self.champion)).target

    def load(self, target: Target, before: ServedPair) -> ServedPair:
        return served(Echo(f"Otter {target.version}"), target.version)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    made = Registry()
    monkeypatch.setattr(serving, "find_version", made.find)
    monkeypatch.setattr(follow, "champion_target", made.target)
    monkeypatch.setattr(follow, "load_pair", made.load)
    return made


@pytest.fixture
def server() -> Iterator[Running]:
    with running() as made:
        made.service.take(served(Echo("Otter 1"), "1"))
        yield made


def follower(server: Running, every_s: float = 0.01) -> Follower:
    return Follower("toy", server.service, every_s=every_s)


def title(server: Running) -> str:
    _, _, content = server.ask("who?")
    return str(content["predictions"][0]["passages"][0]["title"])


def test_a_new_champion_is_taken(registry: Registry, server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    one = follower(server)
    one.look()
    assert (registry.opened, title(server)) == (0, "Otter 1")
    registry.champion = "2"
    one.look()
    one.look()
    assert (registry.opened, title(server)) == (1, "Otter 2")
    assert "in service: models:/ralm-toy@champion version 2, index 222222222222; was version 1" in caplog.text
    registry.champion = "1"  # a rollback
    one.look()
    assert title(server) == "Otter 1"


@pytest.mark.parametrize("error", [ArtifactError("index: no such artifact"), RuntimeError("CUDA out of memory")])
def test_a_champion_that_cannot_be_served_leaves_the_old_one(
    registry: Registry, server: Running, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    registry.champion, registry.broken = "2", error
    one = follower(server, every_s=0.05)
    one.look()
    one.look()  # too early to try again
    assert (registry.opened, title(server)) == (1, "Otter 1")
    assert f"champion 2 cannot be served, version 1 goes on; tried again in 0 s: {error}" in caplog.text
    time.sleep(0.12)
    one.look()
    assert registry.opened == 2
    time.sleep(0.12)
    one.look()  # the second wait is twice as long
    assert registry.opened == 2
    registry.broken = None
    time.sleep(0.12)
    one.look()
    assert title(server) == "Otter 2"


def test_a_champion_that_cannot_answer_leaves_the_old_one(
    registry: Registry, server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry.champion = "2"
    monkeypatch.setattr(follow, "load_pair", lambda *_: served(Echo(fails_at=""), "2"))
    follower(server).look()
    assert title(server) == "Otter 1"
    assert "champion 2 cannot be served, version 1 goes on" in caplog.text
    assert server.call("/ready")[0] == 200


def test_a_registry_in_trouble_is_told_once(
    registry: Registry, server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one = follower(server)
    registry.champion = RalmError("MLflow at http://x: away")
    for _ in range(3):
        one.look()
    registry.champion = ""
    one.look()
    registry.champion = "1"
    one.look()
    told = [record.getMessage() for record in caplog.records if record.name == follow.__name__]
    assert told == [
        "version 1 goes on: the registry cannot be asked: MLflow at http://x: away",
        "version 1 goes on: there is no champion in the registry any more",
        "the registry is as expected again",
    ]
    assert title(server) == "Otter 1"


def test_it_looks_until_it_is_stopped(registry: Registry, server: Running) -> None:
    one = follower(server)
    one.start()
    registry.champion = "2"
    deadline = time.monotonic() + 10
    while title(server) != "Otter 2":
        assert time.monotonic() < deadline
    one.stop()
    one.thread.join(10)
    assert not one.thread.is_alive()
    registry.champion = "3"
    time.sleep(0.05)
    assert title(server) == "Otter 2"
