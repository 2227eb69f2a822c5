"""Progress: a line now and then, a marked line for a driver, nothing for short loops."""

from __future__ import annotations

import logging

import pytest

from ralm import log
from ralm.log import PROGRESS_MARK, progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    return now


def run(clock: list[float], seconds: float) -> None:
    with progress(total=10, what="embed", unit="passages") as bar:
        for _ in range(10):
            clock[0] += seconds
            bar.update(1, note="loss 0.5")


def test_a_line_every_30_s(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(clock, 10)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "embed: 3 / 10 passages, 10.0 s each, 70 s left, loss 0.5"
    assert lines[-1] == "embed: 10 / 10 passages, 10.0 s each"
    assert len(lines) == 4


def test_a_short_loop_says_nothing(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(clock, 1)
    assert not caplog.records


def test_a_driver_is_told_every_second(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RALM_PROGRESS", "driver")
    run(clock, 1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith(f"{PROGRESS_MARK}embed: 1 / 10 passages")
