"""An object store that misbehaves: retried to success, or one clear error and nothing half-published."""

from __future__ import annotations

import _thread
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ralm.artifacts import remote
from ralm.artifacts.files import exists, join, local_copy, read_file
from ralm.artifacts.manifest import Manifest, open_artifact
from ralm.artifacts.store import Contents, files_location, produce, store_uri, stored_location
from ralm.cli import exit_code
from ralm.errors import ArtifactError, DataError, RalmError, StorageDownError, StorageError
from ralm.fetch import http
from ralm.sources import fetch_file
from tests.s3_proxy import BUCKET, S3Proxy, client

ROOT = Path(__file__).resolve().parents[3]
SMALLEST_PART_BYTES = 5 << 20
"""That S3 takes."""
PART_BYTES = 100_000
"""That the server of these tests takes."""
BIG = os.urandom(1 << 16) * 4
"""Three parts."""


class Maker:
    """Makes an artifact of a small and a big file, and counts how often."""

    def __init__(self, output: Path, big: bytes = b"big") -> None:
        self.output, self.big, self.num_built = output, big, 0

    def __call__(self) -> Manifest:
        return produce(
            str(self.output), kind="thing", stage="s", stage_version=1, inputs={}, config={}, build=self._build
        )

    def _build(self, work: Path) -> Contents:
        self.num_built += 1
        (work / "a small.txt").write_text("small")
        (work / "big.bin").write_bytes(self.big)
        return Contents()


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "out")


@pytest.fixture
def big(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """One whose big file is sent in three parts."""
    monkeypatch.setattr(remote, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", PART_BYTES)
    maker.big = BIG
    return maker


def keys(s3: S3Proxy) -> list[str]:
    """All objects of the test's store, by name inside it."""
    prefix = store_uri().removeprefix(f"s3://{BUCKET}/") + "/"
    found = client(s3.url).list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return [entry["Key"].removeprefix(prefix) for entry in found]


def uploads(s3: S3Proxy) -> list[Any]:
    """Uploads in parts that were begun and neither completed nor aborted."""
    prefix = store_uri().removeprefix(f"s3://{BUCKET}/")
    found = client(s3.url).list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    return [upload for upload in found if upload["Key"].startswith(prefix)]


def verify(manifest: Manifest) -> None:
    """What a reader finds in the store is what the manifest says."""
    artifact = open_artifact(stored_location(manifest), manifest.kind)
    assert artifact.fingerprint == manifest.fingerprint
    for entry in artifact.manifest.files:
        assert hashlib.sha256(read_file(artifact.file(entry.path))).hexdigest() == entry.sha256


def outcome_of(call: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and message, as the command line has them."""
    with exit_code() as outcome:
        call()
    return outcome.code, capsys.readouterr().err


def test_big_files_are_sent_in_parts(monkeypatch: pytest.MonkeyPatch, s3: S3Proxy, tmp_path: Path) -> None:
    monkeypatch.setattr(remote, "PART_BYTES", SMALLEST_PART_BYTES)
    content = os.urandom(2 * SMALLEST_PART_BYTES + 1)
    for size, num_parts in ((0, 0), (SMALLEST_PART_BYTES, 0), (SMALLEST_PART_BYTES + 1, 2), (len(content), 3)):
        url = f"{store_uri()}/{size}"
        (tmp_path / "file").write_bytes(content[:size])
        s3.requests.clear()
        remote.upload(tmp_path / "file", url)
        assert len([seen for seen in s3.puts() if "partNumber" in seen.query]) == num_parts
        assert read_file(url) == content[:size]
    assert not uploads(s3)


FAULTS = {
    "busy": {"status": 503, "code": "ServiceUnavailable", "times": 2},
    "slow down": {"status": 503, "code": "SlowDown", "times": 1},
    "internal error": {"status": 500, "times": 2},
    "no connection": {"refuse": True, "times": 2},
    "no answer": {"drop_after": -1, "times": 1},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_faults_that_pass_are_survived(s3: S3Proxy, big: Maker, fault: dict[str, Any]) -> None:
    struck = [s3.fail(method, **fault) for method in ("HEAD", "GET", "PUT", "POST")]
    made = big()
    local_copy(join(files_location(made), "a small.txt"))
    verify(made)
    assert [of_method.times for of_method in struck] == [0, 0, 0, 0]
    assert big.num_built == 1


def test_the_lost_answer_to_the_end_of_an_upload(s3: S3Proxy, big: Maker) -> None:
    s3.fail("POST", "uploadId", drop_after=-1, times=1)
    verify(big())
    assert not uploads(s3)


@pytest.mark.parametrize("after", [0, 1, 70_000])
def test_answers_that_break_off_are_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, s3: S3Proxy, maker: Maker, after: int
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 100_000)
    maker.big = os.urandom(500_000)
    made = maker()
    s3.requests.clear()
    s3.fail("GET", "big.bin", drop_after=after, times=3)
    verify(made)
    assert len(s3.gets("big.bin")) == 5 + 3  # only what broke off


def test_a_download_goes_on_from_where_it_broke_off(
    monkeypatch: pytest.MonkeyPatch, s3: S3Proxy, maker: Maker, ralm_home: Path
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 100_000)
    monkeypatch.setattr(remote, "AT_ONCE", 2)
    monkeypatch.setattr(http, "READ_AHEAD_BYTES", 200_000)
    monkeypatch.setattr(http, "BLOCK_BYTES", 100_000)
    maker.big = os.urandom(1_000_000)
    artifact = open_artifact(stored_location(maker()), "thing")
    for fetch in (lambda: artifact.local("big.bin"), artifact.local, lambda: fetch_file(artifact.file("big.bin"))):
        s3.requests.clear()
        s3.faults = []
        fault = s3.fail("GET", "big.bin", drop_after=10)
        fault.when = lambda request: "bytes=6" in request.headers.get("range", "")
        with pytest.raises(StorageDownError, match="big.bin: the object store at http://127"):
            fetch()
        s3.faults = []
        s3.requests.clear()
        path = fetch()
        assert (path / "big.bin" if path.is_dir() else path).read_bytes() == maker.big
        assert s3.got_bytes("big.bin") < 1_000_000


def test_a_damaged_object_is_told(s3: S3Proxy, maker: Maker) -> None:
    artifact = open_artifact(stored_location(maker()), "thing")
    remote.write_file(artifact.file("big.bin"), b"bag")
    with pytest.raises(DataError, match=r"big.bin: expected sha256 \w+, found \w+; the file in the store is damaged"):
        artifact.local("big.bin")
    with pytest.raises(DataError, match="damaged"):
        artifact.local()
    remote.write_file(artifact.file("big.bin"), b"longer")
    made = maker()
    assert (maker.num_built, made.reused) == (2, False)
    verify(made)


LASTING = {
    "busy": ("big.bin", {"status": 503, "code": "ServiceUnavailable"}, "ServiceUnavailable"),
    "busy at last": ("manifest.json", {"status": 503, "code": "SlowDown"}, "SlowDown"),
    "no answer": ("big.bin", {"drop_after": -1}, "Could not connect|Connection was closed"),
    "no connection": ("big.bin", {"refuse": True}, "Could not connect|Connection was closed"),
    "silence": ("big.bin", {"stall_s": 0.6}, "[Tt]imeout|timed out"),
}


@pytest.mark.parametrize(("contains", "how", "reason"), LASTING.values(), ids=LASTING)
def test_a_failed_upload_publishes_nothing_and_is_made_up_for(
    monkeypatch: pytest.MonkeyPatch,
    s3: S3Proxy,
    big: Maker,
    capsys: pytest.CaptureFixture[str],
    contains: str,
    how: dict[str, Any],
    reason: str,
) -> None:
    if "stall_s" in how:
        monkeypatch.setenv("RALM_HTTP_TIMEOUT_S", "0.3")
    s3.fail("PUT", contains, **how)
    code, message = outcome_of(big, capsys)
    assert code == 1
    assert message.count("\n") == 1
    assert contains in message
    assert f"the object store at {s3.url} gave no good answer" in message
    assert "check the network and AWS_ENDPOINT_URL" in message
    assert "keeps what was made, and the same command uploads it" in message
    assert re.search(reason, message)
    assert not any(key.count("/") == 2 for key in keys(s3))
    assert not (big.output / "manifest.json").exists()
    assert not uploads(s3)
    s3.faults = []
    s3.requests.clear()
    verify(big())
    assert big.num_built == 1
    assert not s3.puts("small")  # was there already


def test_an_interrupted_upload_leaves_no_parts(s3: S3Proxy, big: Maker) -> None:
    s3.fail("PUT", "partNumber", then=_thread.interrupt_main, stall_s=0.2, times=1)
    with pytest.raises(KeyboardInterrupt):
        big()
    assert not uploads(s3)
    verify(big())
    assert big.num_built == 1


REFUSED = ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"]


@pytest.mark.parametrize("code", REFUSED)
def test_refused_credentials_are_told_before_any_work(
    s3: S3Proxy, maker: Maker, capsys: pytest.CaptureFixture[str], code: str
) -> None:
    s3.fail("*", status=403, code=code)
    assert outcome_of(maker, capsys)[0] == 2
    assert maker.num_built == 0
    with pytest.raises(StorageError, match=f"{store_uri()}/x: the object store at {s3.url} refuses access") as error:
        remote.write_file(f"{store_uri()}/x", b"")
    assert code in str(error.value)
    assert "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)" in str(error.value)
    assert len(s3.requests) == 2  # no other attempts


def test_a_key_that_may_only_read(s3: S3Proxy, maker: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    s3.fail("PUT", status=403, code="AccessDenied")
    code, message = outcome_of(maker, capsys)
    assert code == 2
    assert "refuses access (AccessDenied for a test); check AWS_ACCESS_KEY_ID" in message
    assert "keeps what was made" in message
    assert keys(s3) == []
    s3.faults = []
    verify(maker())
    assert maker.num_built == 1


@pytest.fixture
def with_accounts(s3: S3Proxy, s3_address: tuple[str, int]) -> Iterator[None]:
    """The server looks at signatures, and knows nobody."""
    url, headers = "http://{}:{}/moto-api/reset-auth".format(*s3_address), {"Content-Type": "text/plain"}

    def look_from(count: str) -> str:
        request = urllib.request.Request(url, count.encode(), headers, method="POST")
        with urllib.request.urlopen(request) as answer:
            return str(json.loads(answer.read())["PREVIOUS_INITIAL_NO_AUTH_ACTION_COUNT"])

    before = look_from("0")
    yield
    look_from(before)


def test_a_server_that_looks_at_signatures(
    with_accounts: None, maker: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = outcome_of(maker, capsys)
    assert (code, maker.num_built) == (2, 0)
    assert "refuses access" in message


def test_no_credentials_at_all(
    monkeypatch: pytest.MonkeyPatch, s3: S3Proxy, maker: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    code, message = outcome_of(maker, capsys)
    assert (code, maker.num_built) == (2, 0)
    assert "refuses access (Unable to locate credentials)" in message


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        ("s3://no-such-bucket/store", "has no bucket 'no-such-bucket'; make it, or check the address and AWS_ENDPOINT"),
        ("s3://No_Bucket!/store", "has no bucket 'No_Bucket!'"),
        ("nofs://bucket/store", "Protocol not known: nofs"),
    ],
)
def test_a_bucket_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
    s3: S3Proxy,
    maker: Maker,
    capsys: pytest.CaptureFixture[str],
    store: str,
    expected: str,
) -> None:
    monkeypatch.setenv("RALM_STORE_URI", store)
    code, message = outcome_of(maker, capsys)
    assert (code, maker.num_built) == (2, 0)
    assert expected in message
    with pytest.raises(RalmError):
        fetch_file(f"{store}/file")


@pytest.mark.parametrize(
    ("address", "code", "expected"),
    [
        ("http://127.0.0.1:9", 1, "Could not connect to the endpoint URL"),
        ("http://me:s3cr3t@127.0.0.1:9", 1, "at http://127.0.0.1:9 gave no good answer"),
        ("nonsense", 2, "Invalid endpoint: nonsense; check AWS_ENDPOINT_URL"),
    ],
)
def test_an_address_where_nobody_answers(
    monkeypatch: pytest.MonkeyPatch,
    s3: S3Proxy,
    maker: Maker,
    capsys: pytest.CaptureFixture[str],
    address: str,
    code: int,
    expected: str,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    found, message = outcome_of(maker, capsys)
    assert (found, maker.num_built) == (code, 0)
    assert expected in message
    assert "s3cr3t" not in message


def test_a_store_without_conditional_writes(s3: S3Proxy, maker: Maker) -> None:
    fault = s3.fail("PUT", status=501, code="NotImplemented")
    fault.when = lambda request: "if-none-match" in request.headers
    verify(maker())
    assert fault.times < 1 << 30


PUBLISH = """
import sys, time
from pathlib import Path
from ralm.artifacts.store import Contents, produce
go, output, text = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def build(work):
    for number in range(5):
        (work / f"{number}.txt").write_text(f"{text} {number}")
    Path(f"{output}.built").touch()
    while not go.exists():
        time.sleep(0.001)
    return Contents()
made = produce(output, kind="thing", stage="s", stage_version=1, inputs={}, config={}, build=build)
print(made.fingerprint)
"""


def test_a_process_that_is_killed_while_it_uploads(s3: S3Proxy, tmp_path: Path) -> None:
    go, output = tmp_path / "go", tmp_path / "out"
    go.touch()
    command = [sys.executable, "-c", PUBLISH, str(go), str(output), "text"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    s3.fail("PUT", "3.txt", then=process.kill, times=1)
    assert process.wait(60) == -signal.SIGKILL
    assert not any(key.count("/") == 2 for key in keys(s3))
    Path(f"{output}.built").unlink()
    s3.requests.clear()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, timeout=60)
    verify(open_artifact(str(output), "thing").manifest)
    assert not Path(f"{output}.built").exists()
    assert not s3.puts("1.txt")  # was there already


@pytest.mark.parametrize("texts", [("same", "same"), ("one", "two")], ids=["same bytes", "other bytes"])
def test_two_machines_publish_the_same_artifact_at_once(s3: S3Proxy, tmp_path: Path, texts: tuple[str, str]) -> None:
    go, outputs = tmp_path / "go", [tmp_path / "a", tmp_path / "b"]
    s3.fail("PUT", stall_s=0.02)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISH, str(go), str(output), text],
            env={**os.environ, "RALM_HOME": str(tmp_path / f"home {output.name}"), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for output, text in zip(outputs, texts, strict=True)
    ]
    deadline = time.monotonic() + 60
    while not all(Path(f"{output}.built").exists() for output in outputs) and time.monotonic() < deadline:
        time.sleep(0.01)
    go.touch()
    prints = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(prints) == 1  # both got what was published first
    artifacts = [open_artifact(str(output), "thing") for output in outputs]
    for artifact in artifacts:
        verify(artifact.manifest)
    assert artifacts[0].base == artifacts[1].base
    assert not list(tmp_path.glob("home */work/*"))


def test_an_earlier_index_that_cannot_be_reached_is_no_missing_one(s3: S3Proxy, maker: Maker) -> None:
    """Whoever goes on without what is missing must not take a broken connection for that."""
    made = maker()
    s3.fail("*", status=503, code="ServiceUnavailable")
    for ask in (
        lambda: open_artifact(stored_location(made), "thing"),
        lambda: exists(stored_location(made)),
        lambda: fetch_file(f"{files_location(made)}/big.bin"),
    ):
        with pytest.raises(StorageDownError) as error:
            ask()
        assert not isinstance(error.value, ArtifactError | DataError)
