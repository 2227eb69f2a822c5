"""`ralm serve` as a process, and MLflow's own server with the same champion."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main

ROOT = Path(__file__).resolve().parents[2]
JSON = {"Content-Type": "application/json"}
WATCHED = """
import os, sys
seen = open(os.environ["SEEN"], "w", buffering=1)
def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, (str, bytes)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            print("wrote", os.fsdecode(path), file=seen)
    elif event in ("os.mkdir", "os.rename", "os.remove", "socket.connect", "socket.getaddrinfo"):
        print(event, *arguments, file=seen)
sys.addaudithook(watch)
from pipelines.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The command, with a record of what it writes and whom it talks to."""


class Process:
    """A server that was started."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RALM_PRECISION": "fp32"}
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, env={**inherited, **settings, **environment}, stdout=file, stderr=file, start_new_session=True
            )
        self.port = 0

    def wait_for(self, pattern: str, timeout_s: float = 120) -> re.Match[str]:
        """Wait for a line of the log."""
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.log.read_text())):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.05)
        return found

    def call(self, path: str, content: Any = None) -> tuple[int, Any]:
        """Status and content of an answer."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            method = "GET" if content is None else "POST"
            connection.request(method, path, json.dumps(content) if content is not None else None, JSON)
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text.strip() else None

    def ask(self, *questions: str, **params: int) -> Any:
        status, content = self.call("/invocations", {"inputs": list(questions), "params": params})
        assert status == 200, content
        return content["predictions"]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts `ralm serve` at a free port and waits until it is ready."""
    made: list[Process] = []

    def make(*arguments: str, watched: bool = False, until: str = "ready: ", **environment: str) -> Process:
        run = ["-c", WATCHED] if watched else ["-m", "pipelines.cli"]
        command = [sys.executable, *run, "serve", "--port", "0", *arguments]
        settings = {"RALM_HOME": str(tmp_path / "home"), "RALM_TRACKING": "off", **environment}
        server = Process(command, tmp_path / f"log-{len(made)}", settings)
        made.append(server)
        server.port = int(server.wait_for(r"listening at http://127\.0\.0\.1:(\d+)")[1])
        server.wait_for(until)
        return server

    yield make
    for server in made:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait(30)


@pytest.fixture
def given(tiny_model: str, toy_index: str, toy_passages: str) -> list[str]:
    """Flags that name a pair."""
    return ["--model", tiny_model, "--index", toy_index, "--passages", toy_passages]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a bad command ends with."""
    assert main(["serve", *arguments]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("ralm: error: ")
    return last.removeprefix("ralm: error: ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--k", "101"], "k: expected 0 to max_k (100), found 101"),
        (["--k", "-1"], "k: expected 0 to max_k (100), found -1"),
        (["--max-k", "0"], "max_k: expected at least 1, found 0"),
        (["--max-questions", "0"], "max_questions: expected at least 1, found 0"),
        (["--max-batch", "0"], "max_batch: expected at least 1, found 0"),
        (["--max-waiting", "0"], "max_waiting: expected at least 1, found 0"),
        (["--port", "65536"], "port: expected 0 to 65535, found 65536"),
        (["--follow-champion", "-1"], "follow_champion_s: expected 0 or more seconds, found -1.0"),
        (["--stop-within", "inf"], "stop_within_s: expected 0 or more seconds, found inf"),
        (["--trace", "on"], "trace: on, but RALM_TRACKING is off"),
        ([], "no trained model of recipe 'quickstart'; run `ralm quickstart`, or give --model and --index"),
        (["--model", "m"], "--model, --index and --passages go together; missing: --index, --passages"),
        (
            ["--model", "m", "--index", "i", "--passages", "p", "--follow-champion", "5"],
            "--follow-champion: expected a registered pair, found given",
        ),
    ],
)
def test_bad_settings_end_at_once(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    assert refused(capsys, *arguments) == expected


def test_where_the_libraries_of_models_are_missing() -> None:
    code = "import sys; sys.modules['torch'] = None; from pipelines.cli import main; sys.exit(main(['serve']))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "ralm: error: serve needs the package torch; install ralm-pipelines[cpu]\n"


def test_a_pair_that_is_not_there_ends_the_service(
    capsys: pytest.CaptureFixture[str], given: list[str], tmp_path: Path
) -> None:
    given[3] = str(tmp_path / "gone")
    assert refused(capsys, *given, "--port", "0").startswith(f"{tmp_path / 'gone'}: no such artifact")


def test_parts_of_different_pairs_end_the_service(
    capsys: pytest.CaptureFixture[str], given: list[str], tmp_path: Path
) -> None:
    shutil.copytree(given[3], tmp_path / "index")
    (tmp_path / "index" / "passage_ids.parquet").unlink()
    given[3] = str(tmp_path / "index")
    assert "passage_ids.parquet" in refused(capsys, *given, "--port", "0")


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], given: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused(capsys, *given, "--port", str(port))
    assert message == f"host and port: cannot listen at 127.0.0.1:{port}: address already in use"


def test_a_host_that_is_not_this_one(capsys: pytest.CaptureFixture[str], given: list[str]) -> None:
    expected = "host and port: cannot listen at 192.0.2.1:0: cannot assign requested address"
    assert refused(capsys, *given, "--host", "192.0.2.1", "--port", "0") == expected


@pytest.mark.slow
def test_a_given_pair_is_served_without_writing_or_calling_anyone(
    start: Callable[..., Process], given: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "tmp"  # what an image mounts at /tmp
    folder.mkdir()
    settings = {"SEEN": str(tmp_path / "seen"), "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    settings["TORCHINDUCTOR_CACHE_DIR"] = str(folder)  # torch hands it down where it was imported before
    server = start(*given, watched=True, **settings)
    assert server.call("/ready") == (200, {"status": "ready"})
    first, second = server.ask("what is the colour of otter", "what is the use of granite", k=2)
    assert (len(first["passages"]), second["question"]) == (2, "what is the use of granite")
    assert server.call("/version")[1]["source"] == "given"
    assert server.end() == 0
    assert "Traceback" not in server.log.read_text()
    assert "questions answered: 2, in" in server.log.read_text()
    seen = (tmp_path / "seen").read_text().splitlines()
    allowed = (
        "wrote /dev/",
        f"wrote {folder}",
        f"os.mkdir {folder}",
        f"os.remove {folder}",
        "socket.getaddrinfo 127.0",
    )
    assert [line for line in seen if not line.startswith(allowed)] == []
    assert not (tmp_path / "home").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_what_is_being_answered_is_finished(
    start: Callable[..., Process], given: list[str], number: int, code: int
) -> None:
    server = start(*given, "--max-batch", "1")
    answers: list[Any] = []
    questions = [f"what is the colour of otter {place}" for place in range(64)]
    asking = threading.Thread(target=lambda: answers.append(server.ask(*questions, k=8)))
    asking.start()
    time.sleep(0.5)
    assert asking.is_alive()
    server.process.send_signal(number)
    server.wait_for("no more requests; 1 are finished first")
    time.sleep(0.5)
    with pytest.raises(ConnectionRefusedError):
        server.call("/health")
    assert server.process.wait(60) == code
    asking.join(10)
    assert [answer["question"] for answer in answers[0]] == questions
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
def test_a_request_that_takes_too_long_does_not_hold_up_the_end(
    start: Callable[..., Process], given: list[str]
) -> None:
    server = start(*given, "--max-batch", "1", "--stop-within", "1", "--max-questions", "3000", "--max-waiting", "3000")

    def ask_in_vain() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, AssertionError, ValueError):
            server.ask(*["what is the colour of otter"] * 3000, k=8)

    asking = threading.Thread(target=ask_in_vain)
    asking.start()
    time.sleep(1)
    started_at = time.monotonic()
    assert server.end() == 0
    assert time.monotonic() - started_at < 10
    asking.join(10)


@pytest.mark.slow
def test_it_can_be_ended_while_it_loads(start: Callable[..., Process], given: list[str]) -> None:
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        server = start(*given, until="listening")
        assert server.end(number) == code, server.log.read_text()


@pytest.fixture
def home(toy_run: Any, tmp_path: Path) -> Path:
    """A copy of the toy run's database, whose registry may change; the artifacts stay where they are."""
    folder = tmp_path / "toy-home"
    folder.mkdir()
    shutil.copytree(toy_run.home / "runs", folder / "runs")
    shutil.copyfile(toy_run.home / "mlflow.db", folder / "mlflow.db")
    return folder


@pytest.mark.slow
def test_both_servers_answer_as_ask_does(
    start: Callable[..., Process], home: Path, run_ralm: Any, tmp_path: Path
) -> None:
    question, uri = "what is the colour of otter", f"sqlite:///{home / 'mlflow.db'}"
    done = run_ralm(["ask", question, "--json"], home, RALM_PRECISION="fp32")
    expected = json.loads(done.stdout)
    assert expected.pop("source") == "models:/ralm-quickstart@champion"

    ours = start("--trace", "off", RALM_HOME=str(home), RALM_TRACKING="on")
    assert ours.ask(question) == [expected]
    assert ours.call("/version")[1]["version"] == "1"

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/ralm-quickstart@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {"RALM_HOME": str(home), "RALM_TRACKING": "on", "MLFLOW_TRACKING_URI": uri}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    theirs = Process(command, tmp_path / "mlflow-log", {**environment, "PATH": path})
    try:
        theirs.port = port
        theirs.wait_for("Uvicorn running on")
        assert theirs.call("/ping")[0] == ours.call("/ping")[0] == 200
        assert theirs.ask(question) == [expected]
        assert theirs.ask(question, k=1)[0]["passages"] == ours.ask(question, k=1)[0]["passages"]
        bad = {"inputs": [" "]}
        (status, told), (our_status, ours_told) = theirs.call("/invocations", bad), ours.call("/invocations", bad)
        assert status == our_status == 400
        assert told["error_code"] == ours_told["error_code"]
        assert "Traceback" not in json.dumps(told)
        assert "stack_trace" not in told
        deadline = time.monotonic() + 60
        while len(found := traces(uri)) < 2 or any("ralm.recipe" not in each.info.trace_metadata for each in found):
            assert time.monotonic() < deadline, theirs.log.read_text()
            time.sleep(0.2)
        assert [trace.info.trace_metadata["ralm.recipe"] for trace in found] == ["quickstart"] * 2
    finally:
        os.killpg(theirs.process.pid, signal.SIGTERM)
        theirs.process.wait(30)


@pytest.mark.slow
def test_a_new_champion_is_followed_without_a_refused_request(
    start: Callable[..., Process],
    home: Path,
    given: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri, began_ms = f"sqlite:///{home / 'mlflow.db'}", time.time() * 1000
    environment = {"RALM_HOME": str(home), "RALM_TRACKING": "on", "MLFLOW_TRACKING_URI": uri}
    server = start("--follow-champion", "0.5", **environment)
    answers, ended = [], threading.Event()

    def keep_asking() -> None:
        while not ended.wait(0.1):  # a busy machine writes traces no faster
            answers.append(server.ask("what is the colour of otter")[0])

    asking = threading.Thread(target=keep_asking)
    asking.start()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    shutil.copytree(given[3], tmp_path / "index")
    promote({"model": given[1], "index": str(tmp_path / "index"), "passages": given[5]})
    server.wait_for("in service: models:/ralm-quickstart@champion version 2, .*; was version 1")
    assert server.call("/version")[1]["version"] == "2"

    shutil.copytree(given[3], tmp_path / "other")
    promote({"model": given[1], "index": str(tmp_path / "other"), "passages": given[5], "broken": "yes"})
    server.wait_for("champion 3 cannot be served, version 2 goes on; .*: .*other.*")
    assert server.call("/version")[1]["version"] == "2"
    assert server.call("/ready")[0] == 200
    ended.set()
    asking.join(60)
    assert server.end() == 0
    sections = {answer["passages"][0]["section"] for answer in answers}
    assert "" in sections, "the toy run's corpus has no sections"
    assert sections & {"Colour", "Origin", "Use"}, "the other one has"
    ours = [trace.info for trace in traces(uri) if trace.info.request_time >= began_ms]  # others share the database
    assert {info.trace_metadata["ralm.version"] for info in ours} == {"1", "2"}
    assert re.search(r"traces: \d+ written, 0 dropped", server.log.read_text())


def promote(places: dict[str, str]) -> None:
    """Register a pair as the champion; a broken one is said to be another index than it is."""
    from ralm.artifacts.manifest import open_artifact
    from ralm.registry import Verdict, register_pair
    from ralm.serving import Pair

    is_broken = places.pop("broken", "")
    prints = {kind: open_artifact(place, kind).fingerprint for kind, place in places.items()}
    prints["index"] = "0" * 64 if is_broken else prints["index"]
    pair = Pair(recipe="quickstart", fingerprints=prints, **places)
    assert register_pair(pair, tags={}, judge=lambda _: Verdict(promote=True, reason="newer")).promoted


def traces(uri: str) -> list[Any]:
    """What was traced; complete traces have the spans of a request."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("ralm")
    assert experiment is not None
    found, token = [], None
    while not found or token:
        page = client.search_traces(locations=[experiment.experiment_id], max_results=500, page_token=token)
        found, token = [*found, *page], page.token
        if not page:
            break
    kinds = {"CHAIN", "RETRIEVER", "LLM"}
    return [trace for trace in found if {span.span_type for span in trace.data.spans} == kinds]
