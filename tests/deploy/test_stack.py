"""The commands of the stack, run here: a real PostgreSQL, a real MLflow server, an S3 server, nothing in containers."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.compose import read_compose
from tests.deploy.manifests import KUBERNETES, documents

PASSWORD = "5f0c2a"
BIN = Path(sys.executable).parent
START_S = 120
pytestmark = pytest.mark.services


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def wait_until(is_there: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_S
    while not is_there():
        assert time.monotonic() < deadline, f"{what} did not start"
        time.sleep(0.3)


def answers(url: str, host: str = "") -> int:
    """The status; 0 where nothing listens."""
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@contextlib.contextmanager
def running(words: list[str], log: Path, environment: dict[str, str], user: str | None = None) -> Iterator[None]:
    """A server in a session of its own, ended with all that it started."""
    with log.open("ab") as file:
        server = subprocess.Popen(words, env=environment, stdout=file, stderr=file, start_new_session=True, user=user)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGINT if "postgres" in words[0] else signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(10)


@dataclass(frozen=True)
class Stack:
    """The services' addresses here, and the folder of their logs."""

    folder: Path
    postgres: int
    store: int
    mlflow: int
    bin: Path
    """PostgreSQL's programs."""

    def words(self, service: str) -> list[str]:
        """A command of deploy/compose.yaml with addresses of this machine."""
        command = read_compose()["services"][service]["command"]
        return [str(BIN / command[0]), *(self._placed(word) for word in command[1:])]

    def environment(self, service: str) -> dict[str, str]:
        values = read_compose(MLFLOW_DATABASE_PASSWORD=PASSWORD)["services"][service]["environment"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
        return {**inherited, **{name: self._placed(value) for name, value in values.items()}}

    def _placed(self, word: str) -> str:
        for name, port, ours in (
            ("postgres", 5432, self.postgres),
            ("object-store", 7070, self.store),
            ("127.0.0.1", 5000, self.mlflow),
        ):
            word = word.replace(f"{name}:{port}", f"127.0.0.1:{ours}")
        scripts = str(KUBERNETES / "components" / "object-store")
        word = word.replace("--host=0.0.0.0", "--host=127.0.0.1").replace("/scripts", scripts)
        return word.replace("--port=5000", f"--port={self.mlflow}")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Database, store with buckets, migrated tables, and the server, in the order that the compose file says."""
    programs = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    if not programs:
        pytest.skip("needs PostgreSQL's server (Debian's package postgresql)")
    folder = tmp_path_factory.mktemp("stack")
    stack = Stack(folder, free_port(), free_port(), free_port(), Path(programs[-1]).parent)
    with contextlib.ExitStack() as servers:
        servers.enter_context(_database(stack))
        environment = stack.environment("buckets")
        moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(stack.store)]
        servers.enter_context(running(moto, folder / "store.log", environment))
        wait_until(lambda: answers(f"http://127.0.0.1:{stack.store}/moto-api/") == 200, "the store")
        for service in ("buckets", "migrate", "migrate"):  # to migrate again changes nothing
            done = subprocess.run(stack.words(service), env=stack.environment(service), capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        servers.enter_context(running(stack.words("mlflow"), folder / "mlflow.log", stack.environment("mlflow")))
        wait_until(lambda: answers(f"http://127.0.0.1:{stack.mlflow}/health") == 200, "MLflow")
        yield stack


@contextlib.contextmanager
def _database(stack: Stack) -> Iterator[None]:
    data = stack.folder / "database"
    data.mkdir()
    user = "nobody" if os.getuid() == 0 else None  # PostgreSQL does not run as root
    if user:
        subprocess.run(["chown", user, str(data)], check=True)
        for parent in (stack.folder, *stack.folder.parents):
            if parent.stat().st_uid == 0 and parent != Path("/tmp") and len(parent.parts) > 1:
                parent.chmod(parent.stat().st_mode | 0o011)
    (secret := data.parent / "password").write_text(PASSWORD)
    secret.chmod(0o644)
    environment = {**os.environ, "LC_ALL": "C"}
    initdb = [str(stack.bin / "initdb"), f"--pgdata={data}/17", "--username=mlflow", f"--pwfile={secret}"]
    subprocess.run([*initdb, "--auth=scram-sha-256"], check=True, user=user, env=environment, capture_output=True)
    words = [str(stack.bin / "postgres"), "-D", f"{data}/17", "-h", "127.0.0.1", "-p", str(stack.postgres), "-k", ""]
    with running(words, stack.folder / "postgres.log", environment, user):
        ready = [str(stack.bin / "pg_isready"), "--host=127.0.0.1", f"--port={stack.postgres}"]
        wait_until(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, "PostgreSQL")
        login = {**environment, "PGPASSWORD": PASSWORD}
        createdb = [str(stack.bin / "createdb"), "-h", "127.0.0.1", "-p", str(stack.postgres), "-U", "mlflow", "mlflow"]
        subprocess.run(createdb, check=True, env=login)
        yield


def test_health_checks_of_containers_and_pods_pass(stack: Stack) -> None:
    (test,) = [
        service["healthcheck"]["test"] for name, service in read_compose()["services"].items() if name == "mlflow"
    ]
    words = [sys.executable, *(word.replace("127.0.0.1:5000", f"127.0.0.1:{stack.mlflow}") for word in test[2:])]
    subprocess.run(words, check=True)
    assert answers(f"http://127.0.0.1:{stack.mlflow}/health", host="10.1.2.3:5000") == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("mlflow:5000", 200),
        ("localhost:5000", 200),
        ("127.0.0.1:5000", 200),
        ("evil.example.org", 403),
        ("mlflow", 403),
    ],
)
def test_only_names_that_are_allowed_are_answered(host: str, status: int, stack: Stack) -> None:
    url = f"http://127.0.0.1:{stack.mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
    assert answers(url, host=host) == status


def test_a_stage_is_tracked_and_its_files_go_to_the_bucket(
    stack: Stack, toy_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**stack.environment("ralm"), "RALM_HOME": str(tmp_path), "RALM_TRACKING": "on"}
    environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{stack.mlflow}"
    words = ["-m", "pipelines.cli", "download", "--source", str(toy_corpus), "--passages", str(tmp_path / "passages")]
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tracking:" not in done.stderr
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, environment[name])
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{stack.store}", region_name="us-east-1")
    stored = [entry["Key"] for entry in client.list_objects_v2(Bucket="ralm").get("Contents", [])]
    assert any(key.startswith("store/passages/") and key.endswith("manifest.json") for key in stored), stored
    files = [entry["Key"] for entry in client.list_objects_v2(Bucket="mlflow").get("Contents", [])]
    assert any(key.endswith("artifacts/manifest.json") for key in files), files


def test_a_whole_pipeline_runs_on_it(stack: Stack, toy_arguments: list[str], tmp_path: Path) -> None:
    """As on a team's laptops: tasks here, the store in the bucket, runs and registry on the server."""
    environment = {**stack.environment("ralm"), "RALM_HOME": str(tmp_path), "RALM_TRACKING": "on"}
    environment |= {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{stack.mlflow}", "OMP_NUM_THREADS": "1"}

    def ralm(*words: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "pipelines.cli", *words, "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
        assert done.returncode == 0, done.stderr[-4000:]
        return dict(json.loads(done.stdout))

    assert ralm("pipeline", "run", *toy_arguments)["model"].startswith("s3://ralm/store/model/")
    (version,) = ralm("registry", "list")["versions"]
    assert version["alias"] == "champion"
    answer = ralm("ask", "what is the colour of Violin", "--recipe", "quickstart")
    assert answer["source"] == "models:/ralm-quickstart@champion"
    assert len(answer["passages"]) > 0


def test_the_backup_can_be_restored(stack: Stack, tmp_path: Path) -> None:
    (job,) = [entry for entry in documents(KUBERNETES / "base" / "backup.yaml") if entry["kind"] == "CronJob"]
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    script = container["args"][0].replace("/backup", str(tmp_path)).replace("--host=postgres", "--host=127.0.0.1")
    environment = {**os.environ, "PGPASSWORD": PASSWORD, "PGPORT": str(stack.postgres), "PGHOST": "127.0.0.1"}
    environment["PATH"] = f"{stack.bin}:{environment['PATH']}"
    old = tmp_path / "mlflow-old.dump"
    old.touch()
    os.utime(old, (0, 0))
    subprocess.run([*container["command"], script], env=environment, check=True)
    (dump,) = tmp_path.glob("mlflow-*")
    restore = f"createdb -U mlflow restored && pg_restore -U mlflow --dbname=restored {dump}"
    subprocess.run(["sh", "-ec", restore], env=environment, check=True)
    count = "psql -U mlflow --dbname=restored -Atc 'select count(*) from experiments'"
    done = subprocess.run(["sh", "-ec", count], env=environment, check=True, capture_output=True, text=True)
    assert int(done.stdout) >= 1


def test_mlflow_asks_for_a_name_with_the_component(stack: Stack, tmp_path: Path) -> None:
    page = (KUBERNETES.parents[1] / "docs" / "deploy.md").read_text(encoding="utf-8")
    ini = page.split("```ini\n")[1].split("```")[0]
    settings = tmp_path / "basic_auth.ini"
    settings.write_text(
        ini.replace("postgres:5432", f"127.0.0.1:{stack.postgres}").replace("CHANGE-ME", "4cf1d7e5b2a9")
    )
    port = free_port()
    words = [word.replace(str(stack.mlflow), str(port)) for word in stack.words("mlflow")]
    environment = stack.environment("mlflow") | {"MLFLOW_AUTH_CONFIG_PATH": str(settings)}
    environment["MLFLOW_FLASK_SERVER_SECRET_KEY"] = "0d1b"
    url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
    with running([*words, "--app-name=basic-auth"], tmp_path / "mlflow.log", environment):
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health") == 200, "MLflow with login")
        assert answers(url) == 401
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        passwords.add_password(None, url, "admin", "4cf1d7e5b2a9")
        opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
        assert opener.open(url, timeout=20).status == 200
