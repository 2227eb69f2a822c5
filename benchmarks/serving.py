"""Requests a second and waiting times of `ralm serve` and of `mlflow models serve`, with the same pair on this machine.

    python -m benchmarks.serving --work DIR [--recipe quickstart | --model DIR --index DIR --passages DIR]

The pair is found as by `ralm ask` and registered in a registry of its own below `--work`. Both servers run all the
time, on 127.0.0.1; only one is asked. Clients ask one question after the other, each as soon as it has its answer.
Before that every question is asked alone: all later answers have to be equal, in fp32: the same text and passages,
numbers but for rounding. With `--traces` there is a third server, `ralm serve` that writes traces to a database.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import runs
from ralm.artifacts.manifest import open_artifact
from ralm.corpus.records import read_json_lines
from ralm.log import set_up_logging

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = ROOT / "examples" / "quickstart" / "questions" / "test.jsonl"
TOLERANCE = 2e-3
"""Of scores and log-probabilities, relative to their size where that is above 1."""
START_S = 300.0
RECIPE = "serving-benchmark"


@dataclass
class Server:
    """A server that was started."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    connections: threading.local = field(default_factory=threading.local)

    def ask(self, question: str, k: int) -> dict[str, Any]:
        """Ask one question over this thread's connection."""
        if not hasattr(self.connections, "open"):
            self.connections.open = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        body = json.dumps({"inputs": [question], "params": {"k": k}})
        self.connections.open.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        response = self.connections.open.getresponse()
        content = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"{self.name}: {response.status}: {content}")
        (answer,) = content["predictions"]
        return dict(answer)

    def wait(self, path: str) -> None:
        """Until it answers with 200."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.2)
        raise RuntimeError(f"{self.name} did not start")


@contextlib.contextmanager
def started(name: str, command: Sequence[str], work: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """Run a server; `{port}` in its command is replaced by a free one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    words = [sys.executable, "-m", *(word.replace("{port}", str(port)) for word in command)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow starts `uvicorn` by name
    with (work / f"{name.replace(' ', '-')}.log").open("w") as log:
        settings = {**os.environ, "PATH": path, **environment}
        process = subprocess.Popen(words, env=settings, stdout=log, stderr=log, start_new_session=True)
    try:
        yield Server(name, port, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def register(places: Mapping[str, str], home: Path) -> str:
    """Register the pair in a database of its own; its address."""
    os.environ |= {
        "RALM_HOME": str(home),
        "RALM_TRACKING": "on",
        "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}",
    }
    from ralm.registry import Verdict, register_pair
    from ralm.serving import Pair

    prints = {kind: open_artifact(place, kind).fingerprint for kind, place in places.items()}
    pair = Pair(recipe=RECIPE, fingerprints=prints, **places)
    register_pair(pair, tags={}, judge=lambda _: Verdict(promote=True, reason="benchmark"))
    return os.environ["MLFLOW_TRACKING_URI"]


def differences(answer: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """In what an answer differs from the one that was given to the question alone."""
    found = [name for name in ("question", "answer") if answer[name] != expected[name]]
    ours, theirs = ([hit["passage_id"] for hit in one["passages"]] for one in (answer, expected))
    if ours != theirs:
        return [*found, "passages"]
    numbers = [(answer["log_probability"], expected["log_probability"])]
    numbers += [
        (one["score"], other["score"]) for one, other in zip(answer["passages"], expected["passages"], strict=True)
    ]
    is_close = all(abs(one - other) <= TOLERANCE * max(1.0, abs(other)) for one, other in numbers)
    return found if is_close else [*found, "numbers"]


@dataclass(frozen=True)
class Load:
    """What clients saw."""

    latencies_s: list[float]
    elapsed_s: float
    different: int

    def row(self) -> dict[str, float]:
        """Figures of the table."""
        p50, p95 = np.percentile(self.latencies_s, [50, 95])
        return {
            "requests": len(self.latencies_s),
            "requests_per_s": len(self.latencies_s) / self.elapsed_s,
            "p50_ms": 1000 * float(p50),
            "p95_ms": 1000 * float(p95),
            "different": self.different,
        }


def load(server: Server, expected: Mapping[str, dict[str, Any]], k: int, clients: int, seconds: float) -> Load:
    """Let clients ask for a while."""
    questions, lock = iter(list(expected) * 10_000), threading.Lock()
    latencies, different, errors = [], [], []
    started_at = time.monotonic()

    def keep_asking() -> None:
        try:
            while time.monotonic() < started_at + seconds:
                with lock:
                    question = next(questions)
                asked_at = time.monotonic()
                answer = server.ask(question, k)
                latencies.append(time.monotonic() - asked_at)
                if differences(answer, expected[question]):
                    different.append(question)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=keep_asking) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return Load(latencies, time.monotonic() - started_at, len(different))


def measure(servers: Sequence[Server], questions: Sequence[str], given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each number of clients and server; rounds take turns."""
    expected = {question: servers[0].ask(question, given.k) for question in questions}
    for server in servers[1:]:
        for question in questions:
            found = differences(server.ask(question, given.k), expected[question])
            if found:
                raise RuntimeError(f"{server.name} answers {question!r} otherwise: {', '.join(found)}")
    rows = []
    for clients in given.clients:
        loads: dict[str, list[Load]] = {server.name: [] for server in servers}
        for _ in range(given.rounds):
            for server in servers:
                loads[server.name].append(load(server, expected, given.k, clients, given.seconds))
        for name, parts in loads.items():
            latencies = [latency for part in parts for latency in part.latencies_s]
            whole = Load(latencies, sum(part.elapsed_s for part in parts), sum(part.different for part in parts))
            rows.append({"clients": clients, "server": name, **whole.row()})
            print_row(rows[-1], rows)
    return rows


def print_row(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """A line of the table, with the ratio to the first server."""
    base = next(other["requests_per_s"] for other in rows if other["clients"] == row["clients"])
    figures = f"{row['requests']} | {row['requests_per_s']:.2f} | {row['p50_ms']:.0f} | {row['p95_ms']:.0f}"
    ratio = row["requests_per_s"] / base
    print(f"| {row['clients']} | {row['server']} | {figures} | {ratio:.2f} | {row['different']} |", flush=True)


def run(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Start the servers, measure, stop them."""
    found = runs.resolve_pair(model=given.model, index=given.index, passages=given.passages, recipe=given.recipe)
    places = {"model": found.model, "index": found.index, "passages": found.passages}
    home = (given.work / "home").absolute()
    home.mkdir(parents=True, exist_ok=True)
    uri = register(places, home)
    rows = [row for _, row in read_json_lines(given.questions)]
    questions = [str(row["question"]) for row in rows[: given.num_questions]]
    environment = {
        "RALM_HOME": str(home),
        "MLFLOW_TRACKING_URI": uri,
        "RALM_PRECISION": "fp32",
        "PYTHONPATH": str(ROOT),
    }
    model = ["-m", f"models:/ralm-{RECIPE}@champion", "--env-manager", "local", "--workers", "1"]
    mlflow = ["mlflow", "models", "serve", "--host", "127.0.0.1", "--port", "{port}", *model]
    ralm = ["pipelines.cli", "serve", "--recipe", RECIPE, "--port", "{port}", "--max-batch", str(given.max_batch)]
    print(f"{found.source}; {len(questions)} questions, k {given.k}; load average before: {os.getloadavg()[0]:.1f}")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with contextlib.ExitStack() as stack:
        silent = {**environment, "RALM_TRACKING": "off"}
        servers = [stack.enter_context(started("mlflow models serve", mlflow, given.work, silent))]
        arms = [("ralm serve", "off")] + ([("ralm serve with traces", "on")] if given.traces else [])
        for name, trace in arms:
            servers.append(stack.enter_context(started(name, [*ralm, "--trace", trace], given.work, environment)))
        for server in servers:
            server.wait("/ready" if server.name.startswith("ralm") else "/ping")
        print("| clients | server | requests | requests/s | p50 ms | p95 ms | ratio | different |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        measured = measure(servers, questions, given)
    print(f"load average after: {os.getloadavg()[0]:.1f}")
    return measured


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for a registry and logs")
    parser.add_argument("--recipe", default="", help="whose champion; by default the last run's")
    for name in ("model", "index", "passages"):
        parser.add_argument(f"--{name}", default="", help=f"{name} artifact")
    parser.add_argument("--questions", type=Path, default=QUESTIONS, help="jsonl with `question`")
    parser.add_argument("--num-questions", type=int, default=32, help="of them")
    parser.add_argument("--k", type=int, default=5, help="passages for each question")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="at once")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3, help="for each server and number of clients, in turn")
    parser.add_argument("--max-batch", type=int, default=16, help="questions that `ralm serve` answers together")
    parser.add_argument("--traces", action="store_true", help="measure `ralm serve` with traces, too")
    given = parser.parse_args()
    set_up_logging("WARNING")
    rows = run(given)
    (given.work / "serving.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
