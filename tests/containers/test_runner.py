"""Tasks as containers: how they end is told rightly, and nothing of them is left."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler

from pipelines import local
from pipelines.containers import RUN_LABEL
from pipelines.local import PipelineError, run_pipeline
from ralm.errors import ConfigError
from tests.containers import graphs
from tests.containers.conftest import engine
from tests.pipelines.conftest import call_ralm

pytestmark = pytest.mark.containers


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("RALM_TRACKING", "off")
    monkeypatch.setenv("RALM_HOME", str(tmp_path / "home"))
    for place in (tmp_path, *tmp_path.parents[:3]):  # pytest's folders are of root alone
        place.chmod(place.stat().st_mode | 0o755)
    return tmp_path / "home"


def run(graph: Any, folder: Path, **inputs: object) -> None:
    file = folder / "graph.yaml"
    compiler.Compiler().compile(graph, str(file))
    run_pipeline(inputs, runner="container", file=file)


def left_containers() -> list[str]:
    return engine("ps", "--all", "--quiet", "--filter", f"label={RUN_LABEL}").split()


def test_a_quick_failure_is_no_success(tmp_path: Path, untracked: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """kfp 2.17's own runner calls this a success (kubeflow/pipelines issue 13332)."""
    with pytest.raises(PipelineError, match="task exit failed: exit code 3") as caught:
        run(graphs.exits, tmp_path, code=3)
    assert caught.value.exit_code == 3
    assert "about to end" in capfd.readouterr().err
    (log,) = untracked.glob("runs/*/logs/exit.log")
    assert "about to end" in log.read_text()
    assert left_containers() == []


def test_a_task_beyond_its_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RALM_CONTAINER_MEMORY", "256m")
    with pytest.raises(PipelineError, match="task fill-memory failed: killed, out of memory: more than 256m"):
        run(graphs.fills_memory, tmp_path)
    assert left_containers() == []


def test_a_task_that_is_ended_from_outside_is_named(tmp_path: Path, untracked: Path) -> None:
    marker = untracked / "runs" / "marker"
    ended: list[str] = []

    def end_it() -> None:
        wait_for(marker.exists)
        ended.append(engine("kill", "--signal", "TERM", *left_containers()))

    thread = threading.Thread(target=end_it)
    thread.start()
    with pytest.raises(PipelineError, match="task sleep failed: killed by SIGTERM"):
        run(graphs.sleeps, tmp_path, marker=str(marker))
    thread.join()
    assert ended
    assert left_containers() == []


def test_a_task_is_tried_again(tmp_path: Path, untracked: Path) -> None:
    run(graphs.tried_again, tmp_path, marker=str(untracked / "runs" / "marker"))
    assert left_containers() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_a_driver_that_is_stopped(tmp_path: Path, untracked: Path, number: signal.Signals, code: int) -> None:
    """Its containers end with it; those of a killed one by the next run."""
    file, marker = tmp_path / "graph.yaml", untracked / "runs" / "marker"
    compiler.Compiler().compile(graphs.sleeps, str(file))
    program = (
        "import sys; from pathlib import Path; from pipelines.local import run_pipeline\n"
        "try: run_pipeline({'marker': sys.argv[2]}, runner='container', file=Path(sys.argv[1]))\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    driver = subprocess.Popen([sys.executable, "-c", program, str(file), str(marker)], env=dict(os.environ))
    wait_for(marker.exists)
    driver.send_signal(number)
    assert driver.wait(timeout=60) == code
    if number == signal.SIGKILL:
        assert left_containers()
        other = tmp_path / "other"
        other.mkdir()
        run(graphs.tried_again, other, marker=str(untracked / "runs" / "other"))
    assert left_containers() == []


def test_an_image_that_is_missing_is_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "graph.yaml"
    compiler.Compiler().compile(graphs.exits, str(file))
    file.write_text(file.read_text().replace("ralm-pipelines-python-base", "ralm-pipelines-python-none"))
    with pytest.raises(ConfigError, match="ralm-pipelines-python-none:.*: no such image here"):
        run_pipeline({"code": 0}, runner="container", file=file)


def test_no_engine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(ConfigError, match="no container engine answers at unix://.*nothing.sock"):
        run(graphs.exits, tmp_path, code=0)


def test_the_patched_runner_is_kfps_that_was_tested() -> None:
    """Another kfp may have mended its runner, or renamed what is replaced."""
    import kfp
    from kfp.local import docker_task_handler

    assert kfp.__version__.startswith(local.KFP_VERSION)
    assert callable(docker_task_handler.run_docker_container)


@pytest.mark.timeout(600)
def test_the_whole_toy_graph_equals_that_of_subprocesses(tmp_path: Path, toy_arguments: list[str]) -> None:
    """Same wheels, same number of threads: the same bytes; the registry has the same pair."""
    for path in (tmp_path, *(Path(word) for word in toy_arguments if word.startswith("/"))):
        open_to_all(path)
    found: list[dict[str, Any]] = []
    for runner in ("subprocess", "container"):
        home = tmp_path / runner
        words = ["pipeline", "run", *toy_arguments, "--runner", runner, "--json"]
        done = call_ralm(words, home, RALM_TRACKING="on", OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr[-4000:]
        assert "W tracking" not in done.stderr
        found.append({kind: digests(home / "store", kind) for kind in ("passages", "embeddings", "index", "model")})
        assert '"alias": "champion"' in done.stdout
    assert found[0]["passages"] == found[1]["passages"]
    assert found[0] == found[1]
    assert left_containers() == []


def digests(store: Path, kind: str) -> set[str]:
    """Content of all data files of a kind, whatever they are called."""
    files = [path for path in store.glob(f"{kind}/*/**/*") if path.suffix in (".parquet", ".safetensors", ".faiss")]
    assert files, f"no {kind} in {store}"
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def open_to_all(path: Path) -> None:
    """Let the images' user read it; pytest's folders are of their owner alone."""
    for parent in [path, *path.parents][:4]:
        parent.chmod(parent.stat().st_mode | 0o055)
    for inner in path.rglob("*") if path.is_dir() else ():
        inner.chmod(inner.stat().st_mode | (0o055 if inner.is_dir() else 0o044))


def wait_for(condition: Callable[[], bool], limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)
