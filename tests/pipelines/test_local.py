from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from unittest import mock

import pytest

from pipelines.local import _stopping_on_signals
from pipelines.tasks import EXIT_INTERRUPTED, Child, Tasks


def test_a_signal_while_a_task_starts_does_not_wait_for_itself() -> None:
    def start_slowly() -> Child:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)  # the handler runs inside, in this thread
        raise AssertionError("the signal was lost")

    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the handler waits for the lock of its own thread"))
    signal.alarm(5)
    tasks = Tasks(environment={})
    try:
        with pytest.raises(KeyboardInterrupt), _stopping_on_signals(tasks):
            tasks.follow(start_slowly)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert tasks.follow(start_slowly) == EXIT_INTERRUPTED  # nothing starts any more


def test_stopping_waits_for_the_start_in_another_thread() -> None:
    tasks = Tasks(environment={})
    started, order = threading.Event(), []

    def start() -> None:
        with tasks.lock:
            started.set()
            time.sleep(0.2)
            order.append("started")

    thread = threading.Thread(target=start)
    thread.start()
    started.wait()
    tasks.stop()
    order.append("stopped")
    thread.join()
    assert order == ["started", "stopped"]


def test_a_task_whose_end_nobody_knows_has_failed() -> None:
    """Such as a container whose engine is gone."""
    child = mock.Mock(stdout=["line\n"], **{"wait.return_value": None})
    tasks = Tasks(environment={})
    tasks.name("comp-embed-op")
    assert tasks.follow(lambda: child) == 1
    assert (tasks.failed, tasks.exit_code, child.close.call_count) == ("embed", 1, 1)
    assert "nothing tells how it ended" in tasks.reason


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
@pytest.mark.parametrize("is_folder_full", [False, True])
def test_a_full_disk_takes_the_log_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_folder_full: bool
) -> None:
    child = mock.Mock(stdout=["one\n", "two\n"], **{"wait.return_value": 0, "explain.return_value": ""})
    logs = tmp_path / "logs"
    if is_folder_full:
        logs.write_text("in the way")
    else:
        logs.mkdir()
        (logs / "embed.log").symlink_to("/dev/full")
    tasks = Tasks(environment={}, logs=logs)
    tasks.name("comp-embed-op")
    assert tasks.follow(lambda: child) == 0
    assert capsys.readouterr().err == "    one\n    two\n"
