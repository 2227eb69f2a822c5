"""A stand-in for the Kubernetes API on the loopback interface: TLS, a token, train jobs, their pods and logs.

It checks what it is sent as the real one does with `fieldValidation=Strict`: against the API models that Kubeflow
Trainer publishes. A job lives through the states in `story`, one each time it is looked at.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob

TOKEN = "token-of-the-task"
MAX_REQUESTS = 300
JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs"
PODS = "/api/v1/namespaces/team/pods"

Act = Callable[[dict[str, Any]], None]


def check_trainjob(manifest: Mapping[str, Any]) -> None:
    """Raise for a field that is unknown, missing or of another type. The models drop what they do not know."""
    model = TrainerV1alpha1TrainJob.from_dict(dict(manifest))
    assert model is not None
    known = model.to_dict()
    if known != manifest:
        raise ValueError(f"strict decoding error: unknown field in {json.dumps(manifest)}")


def condition(kind: str, reason: str = "", message: str = "") -> Act:
    """A step of a story: a condition becomes true."""

    def act(job: dict[str, Any]) -> None:
        found = job.setdefault("status", {}).setdefault("conditions", [])
        found.append({"type": kind, "status": "True", "reason": reason, "message": message})

    return act


def nothing(job: dict[str, Any]) -> None:
    """A step of a story in which nothing happens."""


def status(code: int, reason: str, message: str) -> tuple[int, bytes]:
    """An answer that is no success, as the API writes it."""
    plain = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message}
    return code, json.dumps({**plain, "code": code}).encode()


def pod(name: str, phase: str, **details: Any) -> dict[str, Any]:
    """A pod of the job."""
    labels = {"jobset.sigs.k8s.io/replicatedjob-name": "node"}
    return {"metadata": {"name": name, "labels": labels}, "status": {"phase": phase, **details}}


def ended(exit_code: int, finished_at: str, *, is_last: bool = False) -> dict[str, Any]:
    """The state of a container that ended; of its last run, if it was started again."""
    terminated = {"exitCode": exit_code, "reason": "Error", "finishedAt": finished_at}
    states = {"state": {"running": {}}, "lastState": {"terminated": terminated}} if is_last else {}
    state = states or {"state": {"terminated": terminated}}
    base = {"name": "node", "ready": False, "restartCount": 0, "image": "i", "imageID": "i"}
    return {"containerStatuses": [{**base, **state}]}


@dataclass
class ClusterStub:
    """State and behaviour of the stand-in; tests set them and look at `requests`."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    story: list[Act] = field(default_factory=list)
    """What happens to a job before it is shown, one step each time."""
    pods: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    answers: dict[str, list[tuple[int, bytes] | float | None]] = field(default_factory=dict)
    """By method: what it answers first, instead; a number: seconds of silence, None: a closed connection."""
    lingers: int = 2
    """A job that is deleted can be seen this often before it is gone, as its pods end first."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, bytes]:
        self.requests.append((method, path, query))
        name = path.rpartition("/")[2]
        if path == PODS:
            return 200, json.dumps({"kind": "PodList", "items": self.pods}).encode()
        if path.startswith(PODS):
            return 200, self.logs[path.split("/")[-2]].encode()
        if method == "POST":
            return self._create(json.loads(body), query)
        if name not in self.jobs:
            return status(404, "NotFound", f'trainjobs.trainer.kubeflow.org "{name}" not found')
        job = self.jobs[name]
        if method == "DELETE":
            job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        elif "deletionTimestamp" not in job["metadata"]:
            act = self.story.pop(0) if self.story else nothing
            act(job)
            if len(self.requests) > MAX_REQUESTS:
                condition("Failed", "EndOfStory")(job)
        elif self.lingers > 0:
            self.lingers -= 1
        else:
            del self.jobs[name]
        return 200, json.dumps(job).encode()

    def _create(self, manifest: dict[str, Any], query: dict[str, str]) -> tuple[int, bytes]:
        assert query["fieldValidation"] == "Strict"
        try:
            check_trainjob(manifest)
        except ValueError as error:
            return status(400, "BadRequest", str(error))
        name = manifest["metadata"]["name"]
        if name in self.jobs:
            return status(409, "AlreadyExists", f'trainjobs.trainer.kubeflow.org "{name}" already exists')
        self.created.append(manifest)
        self.jobs[name] = json.loads(json.dumps(manifest))
        return 201, json.dumps(manifest).encode()


def serve(stub: ClusterStub, folder: Path) -> ThreadingHTTPServer:
    """Start the stand-in; its certificate authority is `folder`/ca.crt. The caller shuts it down."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            if first := stub.answers.get(self.command):
                wanted = first.pop(0)
                if wanted is None:
                    self.connection.close()
                    return
                if isinstance(wanted, float):
                    time.sleep(wanted)
                    return
                code, content = wanted
            elif self.headers["Authorization"] != f"bearer {TOKEN}":
                code, content = status(401, "Unauthorized", "Unauthorized")
            else:
                code, content = stub.answer(self.command, parts.path, query, body)
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if parts.path.endswith("/log") else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    write_certificate(folder)
    context.load_cert_chain(folder / "ca.crt", folder / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


def write_certificate(folder: Path) -> None:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cluster")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(certificate.public_bytes(encoding))
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(encoding, *plain))
