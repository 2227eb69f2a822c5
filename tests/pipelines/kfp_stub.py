"""A Kubeflow Pipelines server of a few hundred lines: the v2beta1 REST API on 127.0.0.1, with state and with faults.

It answers as the backend's source (2.14 to 2.17) does: unique names of experiments, pipelines and versions, filters
that are decoded twice, errors as `error`/`message` from the gateway and `error_message` from the upload page.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, unquote_plus, urlsplit

import yaml

API = "/apis/v2beta1"


class Refused(Exception):  # noqa: N818
    """An error that the API answers with."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Fault:
    """What goes wrong with the next requests of a kind."""

    request: str
    """`METHOD /path` as a regular expression."""
    kind: Literal["status", "silence", "drop", "html", "redirect"] = "status"
    status: int = 500
    message: str = "it broke"
    is_accepted: bool = False
    """The request is carried out, and only then does it go wrong."""
    times: int = 1


@dataclass
class Request:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]

    @property
    def words(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Stub:
    """The state of the server."""

    token: str = ""
    """Asked for as a bearer token; empty: nothing is."""
    is_multi_user: bool = False
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurring_runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: list[str] = field(default_factory=lambda: ["SUCCEEDED"])
    """Of runs, one for each time one is asked for; the last one stays."""
    url: str = ""
    is_closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    count: int = 0
    most_enabled: int = 0
    """Recurring runs that were enabled at once, after any switch."""

    def sent(self, request: str) -> list[Request]:
        """The requests of a kind that came."""
        return [each for each in self.requests if re.fullmatch(request, each.words)]

    def fail(self, request: str, **fault: Any) -> None:
        """Let a request go wrong."""
        self.faults.append(Fault(request, **fault))

    def enabled(self) -> list[dict[str, Any]]:
        return [run for run in self.recurring_runs.values() if run["mode"] == "ENABLE"]

    def take_fault(self, words: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and re.fullmatch(fault.request, words):
                fault.times -= 1
                return fault
        return None

    def answer(self, request: Request) -> dict[str, Any]:
        """Carry a request out."""
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            raise Refused(401, f"not authenticated: {request.headers.get('authorization')}")
        for pattern, name in ROUTES.items():
            match = re.fullmatch(pattern, request.words)
            if match:
                return getattr(self, name)(request, *map(unquote, match.groups()))
        raise Refused(404, "Not Found")

    def new_id(self, kind: str) -> str:
        self.count += 1
        return f"{kind}-{self.count}"

    def get_health(self, request: Request) -> dict[str, Any]:
        return {"multi_user": self.is_multi_user}

    def list_experiments(self, request: Request) -> dict[str, Any]:
        return {"experiments": list(chosen(self.experiments, request))}

    def create_experiment(self, request: Request) -> dict[str, Any]:
        check_names(self.experiments.values(), **request.body)
        made = {**request.body, "experiment_id": self.new_id("experiment")}
        return self.experiments.setdefault(made["experiment_id"], made)

    def list_pipelines(self, request: Request) -> dict[str, Any]:
        return {"pipelines": list(chosen(self.pipelines, request))}

    def create_pipeline(self, request: Request) -> dict[str, Any]:
        check_names(self.pipelines.values(), **request.body)
        made = {**request.body, "pipeline_id": self.new_id("pipeline")}
        return self.pipelines.setdefault(made["pipeline_id"], made)

    def list_versions(self, request: Request, pipeline_id: str) -> dict[str, Any]:
        of_pipeline = {key: each for key, each in self.versions.items() if each["pipeline_id"] == pipeline_id}
        return {"pipeline_versions": list(chosen(of_pipeline, request))}

    def upload_version(self, request: Request) -> dict[str, Any]:
        pipeline_id, name = request.query["pipelineid"], request.query["name"]
        if pipeline_id not in self.pipelines:
            raise Refused(400, "Failed to create a pipeline version")
        check_names([each for each in self.versions.values() if each["pipeline_id"] == pipeline_id], name)
        spec = next(yaml.safe_load_all(request.body))
        if not spec["pipelineInfo"]["name"]:
            raise Refused(400, "invalid pipeline spec")
        made = {
            "pipeline_id": pipeline_id,
            "pipeline_version_id": self.new_id("version"),
            "display_name": name,
            "description": request.query.get("description", ""),
            "pipeline_spec": spec,
        }
        return self.versions.setdefault(made["pipeline_version_id"], made)

    def list_runs(self, request: Request) -> dict[str, Any]:
        wanted = request.query.get("experiment_id")
        return {"runs": [run for run in chosen(self.runs, request) if run["experiment_id"] == wanted]}

    def create_run(self, request: Request) -> dict[str, Any]:
        self.check_references(request.body)
        made = {**request.body, "run_id": self.new_id("run"), "state": "PENDING"}
        return self.runs.setdefault(made["run_id"], made)

    def get_run(self, request: Request, run_id: str) -> dict[str, Any]:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        error = {"error": {"code": 2, "message": "task train failed"}} if state == "FAILED" else {}
        return {**self.runs[run_id], "state": state, **error}

    def list_recurring_runs(self, request: Request) -> dict[str, Any]:
        return {"recurringRuns": list(chosen(self.recurring_runs, request))}

    def create_recurring_run(self, request: Request) -> dict[str, Any]:
        body = request.body
        self.check_references(body)
        if len(body["trigger"]["cron_schedule"]["cron"].split()) != 6 or not 1 <= int(body["max_concurrency"]) <= 10:
            raise Refused(400, "Schedule cron is not a supported format")
        made = {
            **body,
            "recurring_run_id": self.new_id("recurring"),
            "service_account": body.get("service_account", "pipeline-runner"),  # what was not given is filled in
        }
        return self.recurring_runs.setdefault(made["recurring_run_id"], made)

    def get_recurring_run(self, request: Request, number: str) -> dict[str, Any]:
        if number not in self.recurring_runs:
            raise Refused(404, "no such recurring run")
        return self.recurring_runs[number]

    def switch_recurring_run(self, request: Request, number: str, word: str) -> dict[str, Any]:
        self.get_recurring_run(request, number)["mode"] = word.upper()
        self.most_enabled = max(self.most_enabled, len(self.enabled()))
        return {}

    def delete_recurring_run(self, request: Request, number: str) -> dict[str, Any]:
        self.get_recurring_run(request, number)
        del self.recurring_runs[number]
        return {}

    def check_references(self, body: dict[str, Any]) -> None:
        """A run names an experiment and a pipeline that exist, and inputs that the pipeline has."""
        reference = body["pipeline_version_reference"]
        if body["experiment_id"] not in self.experiments or reference["pipeline_id"] not in self.pipelines:
            raise Refused(404, "experiment or pipeline not found")
        if "pipeline_version_id" in reference:
            version = self.versions[reference["pipeline_version_id"]]
            inputs = version["pipeline_spec"]["root"].get("inputDefinitions", {}).get("parameters", {})
            for name in body["runtime_config"].get("parameters", {}):
                if name not in inputs:
                    raise Refused(400, f"unknown input {name}")


ROUTES = {
    rf"GET {API}/healthz": "get_health",
    rf"GET {API}/experiments": "list_experiments",
    rf"POST {API}/experiments": "create_experiment",
    rf"GET {API}/pipelines": "list_pipelines",
    rf"POST {API}/pipelines": "create_pipeline",
    rf"GET {API}/pipelines/([^/]+)/versions": "list_versions",
    rf"POST {API}/pipelines/upload_version": "upload_version",
    rf"GET {API}/runs": "list_runs",
    rf"POST {API}/runs": "create_run",
    rf"GET {API}/runs/([^/:]+)": "get_run",
    rf"GET {API}/recurringruns": "list_recurring_runs",
    rf"POST {API}/recurringruns": "create_recurring_run",
    rf"GET {API}/recurringruns/([^/:]+)": "get_recurring_run",
    rf"POST {API}/recurringruns/([^/:]+):(enable|disable)": "switch_recurring_run",
    rf"DELETE {API}/recurringruns/([^/:]+)": "delete_recurring_run",
}


def chosen(things: dict[str, dict[str, Any]], request: Request) -> Iterator[dict[str, Any]]:
    """What the filter and the namespace of a request let through; names are compared without case, as MySQL does."""
    predicates = json.loads(unquote_plus(request.query.get("filter", "{}"))).get("predicates", [])
    wanted = [each["stringValue"].lower() for each in predicates if each["key"] == "display_name"]
    namespace = request.query.get("namespace", "")
    for thing in things.values():
        is_here = not namespace or thing.get("namespace", "") == namespace
        if is_here and all(thing["display_name"].lower() == name for name in wanted):
            yield thing


def check_names(things: Any, display_name: str, namespace: str = "", **others: Any) -> None:
    if (display_name, namespace) in [(thing["display_name"], thing.get("namespace", "")) for thing in things]:
        raise Refused(409, f"the name {display_name} already exists")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    stub: Stub

    def do_GET(self) -> None:  # noqa: N802
        self.serve()

    def do_POST(self) -> None:  # noqa: N802
        self.serve()

    def do_DELETE(self) -> None:  # noqa: N802
        self.serve()

    def log_message(self, *words: Any) -> None:
        pass

    def read_request(self) -> Request:
        parts = urlsplit(self.path)
        content = self.rfile.read(int(self.headers.get("content-length") or 0))
        body: Any = content
        if "multipart" in self.headers.get("content-type", ""):
            head = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
            files: Any = message_from_bytes(head + content).get_payload()
            (file,) = files
            assert file.get_param("name", header="content-disposition") == "uploadfile"
            body = file.get_payload(decode=True)
        elif content:
            body = json.loads(content)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(self.command, parts.path, query, body, headers)

    def serve(self) -> None:
        request = self.read_request()
        with self.stub.lock:
            self.stub.requests.append(request)
            fault = self.stub.take_fault(request.words)
            status, answer = 200, {}
            if fault is None or fault.is_accepted:
                try:
                    answer = self.stub.answer(request)
                except Refused as error:
                    status, answer = error.status, {"error": str(error), "code": 16, "message": str(error)}
        if fault is None:
            self.reply(status, json.dumps(answer))
        else:
            self.go_wrong(fault, request)

    def go_wrong(self, fault: Fault, request: Request) -> None:
        if fault.kind == "silence":
            self.stub.is_closing.wait(20)
            self.close_connection = True
        elif fault.kind == "drop":
            self.close_connection = True
        elif fault.kind == "html":
            self.reply(fault.status, "<html><form>Log in</form></html>", kind="text/html")
        elif fault.kind == "redirect":
            self.reply(302, "", location="https://login.example.com/auth?state=abc")
        else:
            key = "error_message" if "upload" in request.path else "message"
            self.reply(fault.status, json.dumps({key: fault.message}))

    def reply(self, status: int, text: str, *, kind: str = "application/json", location: str = "") -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        if location:
            self.send_header("location", location)
        self.end_headers()
        self.wfile.write(content)


def serving(stub: Stub, secure: ssl.SSLContext | None = None) -> Iterator[Stub]:
    """Serve until the generator is closed."""
    handler = type("StubHandler", (Handler,), {"stub": stub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        stub.url = f"http{'s' if secure else ''}://127.0.0.1:{server.server_port}"
        if secure:
            server.socket = secure.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield stub
        stub.is_closing.set()
        server.shutdown()
