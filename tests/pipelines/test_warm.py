from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
def nothing_preloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(warm, "PRELOADED", [])
    monkeypatch.setattr(warm, "WITH_TORCH", ["wave", "a_module_that_is_not_there"])
    monkeypatch.setattr(warm, "_torch_server", None)
    yield
    if warm._torch_server is not None:
        warm._torch_server.close()


def words(body: str, output: str) -> list[str]:
    """The command of a task as the compiler writes it."""
    given = json.dumps({"inputs": {}, "outputs": {"outputFile": output}})
    source = SOURCE.format(body=body)
    return ["sh", "-c", SCRIPT, source, "--executor_input", given, "--function_to_execute", "work"]


def end(child: Child) -> tuple[int | None, str]:
    text = child.stdout.read()
    return child.wait(20), text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
@pytest.mark.parametrize("with_torch", [False, True])
def test_a_full_disk_is_told_in_one_line(ralm_home: Path, with_torch: bool) -> None:
    code, text = end(start_task(words("pass", "/dev/full"), {"RALM_HOME": str(ralm_home)}, with_torch=with_torch))
    assert code == 1
    assert "Traceback" not in text
    assert text.splitlines()[-1] == f"ralm: error: {ralm_home}: no space left on device"


@pytest.mark.parametrize("with_torch", [False, True])
def test_other_errors_keep_their_traceback(tmp_path: Path, with_torch: bool) -> None:
    code, text = end(
        start_task(words("raise ValueError('broken')", str(tmp_path / "o.json")), {}, with_torch=with_torch)
    )
    assert code == 1
    assert "Traceback" in text
    assert "ValueError: broken" in text


@pytest.mark.parametrize("with_torch", [False, True])
def test_a_task_that_was_killed_is_told_by_its_signal(tmp_path: Path, with_torch: bool) -> None:
    tasks = Tasks(environment={}, with_torch={"embed-op"} if with_torch else set())
    tasks.name("comp-embed-op")
    code = tasks.run_subprocess(words("os.kill(os.getpid(), 9)", str(tmp_path / "out.json")))
    assert (code, tasks.failed, tasks.reason) == (-9, "embed", "killed by SIGKILL")
    assert tasks.exit_code == 1


@pytest.mark.parametrize("with_torch", [set(), {"gate-op", "report-op"}], ids=["without", "with"])
def test_a_task_that_failed_gives_its_exit_code(tmp_path: Path, with_torch: set[str]) -> None:
    tasks = Tasks(environment={}, with_torch=with_torch)
    tasks.name("comp-gate-op")
    tasks.run_subprocess(words("raise SystemExit(2)", str(tmp_path / "out.json")))
    tasks.name("comp-report-op")
    tasks.run_subprocess(words("raise SystemExit(3)", str(tmp_path / "out.json")))
    assert (tasks.failed, tasks.reason, tasks.exit_code) == ("gate", "exit code 2", 2)


TELL = "import sys; print('wave' in sys.modules, 'torch' in sys.modules, os.environ['TOLD'])"


def test_only_tasks_with_torch_carry_its_modules(tmp_path: Path) -> None:
    found = []
    for with_torch in (False, True, False):
        command = words(TELL, str(tmp_path / "out.json"))
        code, text = end(start_task(command, {"TOLD": f"told {with_torch}"}, with_torch=with_torch))
        assert code == 0
        found += [line for line in text.splitlines() if "told" in line]
    assert found == ["False False told False", "True False told True", "False False told False"]


def test_tasks_with_torch_run_side_by_side(tmp_path: Path) -> None:
    """A task that goes on does not keep the output or the exit code of another one back."""
    long = start_task(words("time.sleep(30)", str(tmp_path / "long.json")), {}, with_torch=True)
    for number in range(3):
        short = start_task(words(f"print('short', {number})", str(tmp_path / "o.json")), {}, with_torch=True)
        code, text = end(short)
        assert (code, f"short {number}" in text) == (0, True)
        short.close()
    assert long.wait(0.01) is None
    long.signal(signal.SIGTERM)
    assert long.wait(20) == -signal.SIGTERM
    assert long.wait(20) == -signal.SIGTERM
    long.signal(signal.SIGTERM)  # does nothing


@pytest.mark.parametrize("with_torch", [False, True])
def test_many_may_wait_for_a_task(tmp_path: Path, with_torch: bool) -> None:
    """The thread that follows it and the one that gets a signal do."""
    for number in range(5):
        child = start_task(words("time.sleep(0.2)", str(tmp_path / f"{number}.json")), {}, with_torch=with_torch)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(child.wait, [20] * 8)) == [0] * 8
        child.close()


def test_a_task_that_leaves_a_child_behind_has_ended_all_the_same(tmp_path: Path) -> None:
    body = "print('left', os.fork() == 0 and (os.close(1), os.close(2), time.sleep(20), os._exit(0)))"
    child = start_task(words(body, str(tmp_path / "out.json")), {}, with_torch=True)
    assert child.wait(10) == 0
    child.signal(signal.SIGKILL)


def test_without_its_server_a_task_runs_all_the_same(tmp_path: Path) -> None:
    warm.warm_up(with_torch=True)
    server = warm._torch_server
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)
    code, text = end(start_task(words(TELL, str(tmp_path / "out.json")), {"TOLD": "told"}, with_torch=True))
    assert code == 0
    assert "False False told" in text
    code, text = end(start_task(words(TELL, str(tmp_path / "out.json")), {"TOLD": "told"}, with_torch=True))
    assert code == 0
    assert "True False told" in text  # by another server


DRIVER = """
import json, sys, time
from pipelines import warm
warm.PRELOADED, warm.WITH_TORCH = [], []
warm.start_task(json.loads(sys.argv[1]), {"PID_FILE": sys.argv[2]}, with_torch=sys.argv[3] == "True")
time.sleep(60)
"""


@pytest.mark.parametrize("with_torch", [False, True])
def test_a_task_ends_with_a_driver_that_is_killed(tmp_path: Path, with_torch: bool) -> None:
    pid_file = tmp_path / "pid"
    body = "open(os.environ['PID_FILE'], 'w').write(str(os.getpid())); time.sleep(60)"
    command = json.dumps(words(body, str(tmp_path / "out.json")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, command, str(pid_file), str(with_torch)], env=environment)
    deadline = time.monotonic() + 50
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    task = psutil.Process(int(pid_file.read_text()))
    server = task.parent()
    assert server is not None
    driver.kill()
    driver.wait()
    task.wait(timeout=20)
    server.wait(timeout=20)
