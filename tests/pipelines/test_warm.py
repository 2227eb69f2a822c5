from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipelines import warm
from pipelines.tasks import Tasks
from pipelines.warm import Child, start_task

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "python3 -m kfp.dsl.executor_main  --component_module_path ..."
SOURCE = """
from kfp import dsl

def work() -> str:
    import os, time
    {body}
    return "done"
"""


@pytest.fixture(autouse=True)
def nothing_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "PRELOADED", [])


def words(body: str, output: str) -> list[str]:
    """The command of a task as the compiler writes it."""
    given = json.dumps({"inputs": {}, "outputs": {"outputFile": output}})
    source = SOURCE.format(body=body)
    return ["sh", "-c", SCRIPT, source, "--executor_input", given, "--function_to_execute", "work"]


def end(child: Child) -> tuple[int | None, str]:
    text = child.stdout.read()
    return child.wait(20), text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_full_disk_is_told_in_one_line(ralm_home: Path) -> None:
    code, text = end(start_task(words("pass", "/dev/full"), {}))
    assert code == 1
    assert "Traceback" not in text
    assert text.splitlines()[-1] == f"ralm: error: {ralm_home}: no space left on device"


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    code, text = end(start_task(words("raise ValueError('broken')", str(tmp_path / "out.json")), {}))
    assert code == 1
    assert "Traceback" in text
    assert "ValueError: broken" in text


def test_a_task_that_was_killed_is_told_by_its_signal(tmp_path: Path) -> None:
    tasks = Tasks(environment={})
    tasks.name("comp-embed-op")
    code = tasks.run_subprocess(words("os.kill(os.getpid(), 9)", str(tmp_path / "out.json")))
    assert (code, tasks.failed, tasks.reason) == (-9, "embed", "killed by SIGKILL")
    assert tasks.exit_code == 1


def test_a_task_that_failed_gives_its_exit_code(tmp_path: Path) -> None:
    tasks = Tasks(environment={})
    tasks.name("comp-gate-op")
    tasks.run_subprocess(words("raise SystemExit(2)", str(tmp_path / "out.json")))
    tasks.name("comp-report-op")
    tasks.run_subprocess(words("raise SystemExit(3)", str(tmp_path / "out.json")))
    assert (tasks.failed, tasks.reason, tasks.exit_code) == ("gate", "exit code 2", 2)


DRIVER = """
import json, sys, time
from pipelines import warm
warm.PRELOADED = []
warm.start_task(json.loads(sys.argv[1]), {"PID_FILE": sys.argv[2]})
time.sleep(60)
"""


def test_a_task_ends_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    body = "open(os.environ['PID_FILE'], 'w').write(str(os.getpid())); time.sleep(60)"
    command = json.dumps(words(body, str(tmp_path / "out.json")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, command, str(pid_file)], env=environment)
    deadline = time.monotonic() + 50
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    task = psutil.Process(int(pid_file.read_text()))
    driver.kill()
    driver.wait()
    task.wait(timeout=20)
