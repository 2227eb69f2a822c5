"""Messages to a webhook: who is asked how often, and what is never said about it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

import pytest

from ralm import notify
from tests.webhook import Webhook

MESSAGE = {"text": "RALM pipeline reindex: refused: −1.3 points on “Füße” 🦦", "state": "refused"}


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with Webhook() as server:
        yield server


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Instead of waiting between tries."""
    slept: list[float] = []
    monkeypatch.setattr(notify.time, "sleep", slept.append)
    return slept


def send(url: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setenv("RALM_WEBHOOK_URL", url)
    return notify.notify(MESSAGE)


def test_nothing_is_sent_without_an_address(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("RALM_WEBHOOK_URL", raising=False)
    monkeypatch.setattr(notify.urllib.request, "urlopen", lambda *_, **__: pytest.fail("something was sent"))
    assert not notify.notify(MESSAGE)
    assert not send("", monkeypatch)
    assert caplog.text == ""


def test_a_message_arrives_as_it_is(hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    assert send(hook.url, monkeypatch)
    assert hook.messages == [MESSAGE]
    assert hook.types == ["application/json"]


@pytest.mark.parametrize(
    ("statuses", "tries", "waits"),
    [([500, 503, 502], 3, [1, 2]), ([429, 429, 429], 3, [1, 2]), ([404], 1, []), ([403], 1, [])],
)
def test_a_server_that_fails_is_asked_three_times_and_one_that_refuses_once(
    statuses: list[int],
    tries: int,
    waits: list[int],
    hook: Webhook,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hook.statuses = list(statuses)
    assert not send(hook.url, monkeypatch)
    assert len(hook.messages) == tries
    assert pauses == waits
    assert f"did not take the message: status {statuses[-1]}" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_spaces_around_an_address_are_no_part_of_it(hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    assert send(f" {hook.url}\n", monkeypatch)  # a secret made from a file ends with a line break


def test_a_second_try_may_do(
    hook: Webhook, pauses: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hook.statuses = [500]
    assert send(hook.url, monkeypatch)
    assert (len(hook.messages), pauses, caplog.text) == (2, [1], "")


def test_a_server_that_is_silent_is_given_up(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notify, "TIMEOUT_S", 0.05)
    with socket.socket() as deaf:  # takes connections and never answers
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        assert not send(f"http://127.0.0.1:{deaf.getsockname()[1]}/s3cr3t", monkeypatch)
    assert pauses == [1, 2]
    assert "did not take the message: TimeoutError" in caplog.text
    assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:1/s3cr3t", "did not take the message: URLError"),
        ("http://[bad/s3cr3t", "did not take the message: ValueError"),
        ("http://127.0.0.1:x/s3cr3t", "did not take the message: InvalidURL"),
        ("http://host\n.example/s3cr3t", "did not take the message: InvalidURL"),
        ("file:///etc/s3cr3t", "RALM_WEBHOOK_URL: expected an http or https address"),
    ],
)
def test_an_address_that_leads_nowhere_is_never_logged(
    url: str, expected: str, pauses: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    assert not send(url, monkeypatch)
    assert expected in caplog.text
    assert "s3cr3t" not in caplog.text
