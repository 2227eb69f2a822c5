# ruff: noqa: F401, F811 - fixtures are imported
"""`ralm pipeline submit` and `lint`: the genuine client of kfp against a stub of the v2beta1 REST API."""

import _thread
import json
import os
import re
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import images
from pipelines import connection, pipeline_commands, remote
from pipelines.cli import main
from pipelines.package import read_package, without_caching
from tests.pipelines.kfp_stub import API, Stub, serving
from tests.pipelines.kfp_toy import CRON, TOKEN, call, compiled, schedule, stub, submit, toy

ROOT = Path(__file__).resolve().parents[2]


def test_the_first_submit_makes_experiment_pipeline_version_and_run(stub: Stub, call: Any, toy: Path) -> None:
    result = submit(call, "--experiment", "mine", "--service-account", "editor")
    (experiment,) = stub.experiments.values()
    (pipeline,) = stub.pipelines.values()
    (version,) = stub.versions.values()
    (run,) = stub.runs.values()
    assert experiment["display_name"] == "mine"
    assert pipeline["display_name"] == "toy-pipeline"
    assert pipeline["description"] == "One task with inputs of every type."
    package = read_package(toy)
    assert version["display_name"] == package.version == f"{images.VERSION}-{package.sha256[:12]}"
    assert stub.sent(f"POST {API}/pipelines/upload_version")[0].body == toy.read_bytes()
    assert run["experiment_id"] == experiment["experiment_id"]
    assert run["pipeline_version_reference"] == {
        "pipeline_id": pipeline["pipeline_id"],
        "pipeline_version_id": version["pipeline_version_id"],
    }
    assert run["service_account"] == "editor"
    assert result["run_id"] == run["run_id"]
    assert result["url"] == f"{stub.url}/#/runs/details/{run['run_id']}"
    assert (result["version"], result["is_new"]) == (package.version, True)
    assert {request.headers["authorization"] for request in stub.requests} == {f"Bearer {TOKEN}"}


def test_the_same_file_is_uploaded_once_and_a_changed_one_is_a_new_version(stub: Stub, call: Any, toy: Path) -> None:
    first, again = submit(call), submit(call)
    assert (again["is_new"], again["version_id"]) == (False, first["version_id"])
    toy.write_text(toy.read_text() + "# changed\n")
    changed = submit(call)
    assert (changed["is_new"], changed["pipeline_id"]) == (True, first["pipeline_id"])
    assert changed["version_id"] != first["version_id"]
    assert len(stub.sent(f"POST {API}/pipelines/upload_version")) == 2
    assert len(stub.sent(f"POST {API}/(pipelines|experiments)")) == 2
    assert len({run["display_name"] for run in stub.runs.values()}) == 3


def test_parameters_are_sent_with_their_types(stub: Stub, call: Any) -> None:
    words = ["steps=3", "rate=1e-4", "joint=true", "ks=[5, 10]", 'more={"train": {"seed": 1}}', "recipe=a=b"]
    call("submit", *(part for word in words for part in ("--param", word)))
    (run,) = stub.sent(f"POST {API}/runs")
    assert run.body["runtime_config"]["parameters"] == {
        "recipe": "a=b",
        "steps": 3,
        "rate": 1e-4,
        "joint": True,
        "ks": [5, 10],
        "more": {"train": {"seed": 1}},
    }
    assert type(run.body["runtime_config"]["parameters"]["steps"]) is int


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nonsense=1"], "no input 'nonsense', expected one of joint, ks, more, rate, recipe, steps"),
        (["recipe=a", "steps=1.5"], "param steps: expected a whole number, found '1.5'"),
        (["recipe=a", "rate=nan"], "param rate: expected a number, found 'nan'"),
        (["recipe=a", "joint=1"], "param joint: expected true or false, found '1'"),
        (["recipe=a", "ks={}"], "param ks: expected a JSON list, found '{}'"),
        (["recipe=a", "more=[1"], "param more: expected a JSON object, found '[1'"),
        (["recipe=a", "recipe=b"], "param recipe: given twice"),
        (["recipe"], "param: expected NAME=VALUE, found 'recipe'"),
        (["steps=1"], "toy-pipeline needs recipe"),
    ],
)
def test_wrong_parameters_are_refused_before_any_call(words: list[str], expected: str, stub: Stub, call: Any) -> None:
    error = call("submit", *(part for word in words for part in ("--param", word)), code=2)["error"]
    assert expected in error
    assert stub.requests == []


def test_a_file_with_a_flaw_is_refused_before_any_call(stub: Stub, call: Any, toy: Path) -> None:
    toy.write_text(toy.read_text().replace(images.BASE_IMAGE, "someone/else:latest"))
    assert "someone/else:latest" in submit(call, code=2)["error"]
    assert "someone/else:latest" in schedule(call, code=2)["error"]
    assert stub.requests == []


def test_lint_names_every_problem(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", "lint", str(toy)]) == 0
    assert capsys.readouterr().out == f"{toy}: nothing wrong\n"
    assert main(["pipeline", "lint", str(toy), "--cluster", "--json"]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["problems"][str(toy)]
    assert re.search(r"ralm: error: \d+ problems in 1 files", printed.err)
    as_cluster = toy.with_name("toy.cluster.yaml")
    as_cluster.write_text(toy.read_text())
    assert main(["pipeline", "lint", str(as_cluster)]) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "no compiled pipeline"),
        ("a: [", "no YAML"),
        ("- 1", "expected a compiled pipeline"),
        ("a: 1", "found no pipelineInfo.name and root"),
    ],
)
def test_other_files_are_refused(text: str | None, expected: str, stub: Stub, call: Any, toy: Path) -> None:
    toy.unlink() if text is None else toy.write_text(text)
    assert expected in submit(call, code=2)["error"]


def test_a_pipeline_that_takes_artifacts_is_refused(stub: Stub, call: Any, toy: Path) -> None:
    model = {"artifactType": {"schemaTitle": "system.Model", "schemaVersion": "0.0.1"}, "description": "a model"}
    for about, code in ((model, 2), ({**model, "isOptional": True}, 0)):
        spec = yaml.safe_load(toy.read_text())
        spec["root"]["inputDefinitions"]["artifacts"] = {"start": about}
        toy.write_text(yaml.safe_dump(spec))
        result = submit(call, code=code)
        assert code == 0 or "needs artifacts as inputs, which a server cannot be given: start" in result["error"]


def test_no_cache_uploads_a_version_without_caching(stub: Stub, call: Any, toy: Path, tmp_path: Path) -> None:
    kept = submit(call)
    once, again = submit(call, "--no-cache"), submit(call, "--no-cache")
    assert once["version_id"] == again["version_id"] != kept["version_id"]
    (task,) = stub.versions[once["version_id"]]["pipeline_spec"]["root"]["dag"]["tasks"].values()
    (cached,) = stub.versions[kept["version_id"]]["pipeline_spec"]["root"]["dag"]["tasks"].values()
    assert (task["cachingOptions"], cached["cachingOptions"]) == ({}, {"enableCache": True})
    real = ROOT / "pipelines" / "compiled" / "train_and_evaluate.local.yaml"
    on, off = (
        yaml.safe_load(real.read_text()),
        yaml.safe_load(without_caching(read_package(real), tmp_path).path.read_text()),
    )
    was, now = json.dumps(on), json.dumps(off)
    assert '"enableCache": true' in was
    assert now == was.replace('"enableCache": true', "")


def test_wait_until_the_run_has_ended(stub: Stub, call: Any, capsys: pytest.CaptureFixture[str], toy: Path) -> None:
    stub.states = ["PENDING", "RUNNING", "RUNNING", "SUCCEEDED"]
    stub.fail(f"GET {API}/runs/.*", status=503, times=4)
    assert submit(call, "--wait")["state"] == "SUCCEEDED"
    stub.states = ["RUNNING", "FAILED"]
    failed = submit(call, "--wait", code=1)
    assert "ended as FAILED: task train failed" in failed["error"]
    assert json.loads(failed["out"])["state"] == "FAILED"
    stub.states = ["CANCELED"]
    assert "ended as CANCELED" in submit(call, "--wait", code=1)["error"]
    stub.states = ["SUCCEEDED"]
    assert (
        main(["pipeline", "submit", "--file", str(toy), "--param", "recipe=a", "--wait", "--run-name", "my run"]) == 0
    )
    number = max(stub.runs, key=lambda key: int(key.split("-")[1]))
    assert capsys.readouterr().out.splitlines() == [
        f"run 'my run' ({number}): succeeded",
        f"of toy-pipeline {read_package(toy).version} (was there already)",
        f"{stub.url}/#/runs/details/{number}",
    ]


def test_ctrl_c_while_waiting_leaves_the_run(stub: Stub, call: Any) -> None:
    stub.states = ["RUNNING"]
    answer = stub.answer

    def interrupting(request: Any) -> Any:
        if len(stub.sent(f"GET {API}/runs/.*")) == 3:
            _thread.interrupt_main()
        return answer(request)

    stub.answer = interrupting  # type: ignore[method-assign]
    stopped = submit(call, "--wait", code=130)
    (number,) = stub.runs
    assert f"stopped waiting; run {number} goes on: {stub.url}/#/runs/details/{number}" in stopped["error"]
    assert stub.sent(f"(POST|DELETE) {API}/runs/.*") == []


def test_ctrl_c_while_starting_names_the_run(
    stub: Stub, toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*words: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kfp.Client.run_pipeline", interrupted)
    assert main(["pipeline", "submit", "--file", str(toy), "--param", "recipe=a", "--run-name", "mine"]) == 130
    assert "interrupted while run 'mine' was started: it may be there" in capsys.readouterr().err


def test_waiting_ends_when_the_server_stays_away(stub: Stub, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE_S", 0.0)
    stub.fail(f"GET {API}/runs/.*", status=503, times=100)
    error = submit(call, "--wait", code=1)["error"]
    assert "503" in error
    assert "goes on" in error


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"status": 403, "message": "User x may not\nlist experiments"}, ["403", "User x may not list", "--namespace"]),
        ({"status": 404, "message": "no namespace y"}, ["404", "no namespace y", "check --host and --namespace"]),
        ({"status": 400, "message": "bad filter"}, ["400", "bad filter"]),
        ({"status": 500, "times": 3}, ["500", "it broke"]),
        ({"kind": "html", "status": 200}, ["answered 200 with something that is no JSON, as a login page does"]),
        ({"kind": "html", "status": 502, "times": 3}, ["502 Bad Gateway"]),
        ({"kind": "redirect"}, ["302", "redirects to https://login.example.com/auth,", "--token-file"]),
        ({"kind": "silence", "times": 3}, ["no answer within 0.3 s"]),
        ({"kind": "drop", "times": 3}, ["the connection broke before the answer came"]),
    ],
)
def test_refusals_and_failures(fault: dict[str, Any], expected: list[str], stub: Stub, call: Any) -> None:
    stub.fail(f"GET {API}/experiments", **fault)
    error = submit(call, "--timeout-s", "0.3", code=1)["error"]
    for text in (stub.url, *expected):
        assert text in error
    assert "state=abc" not in error
    assert "<" not in error
    assert stub.runs == {}


@pytest.mark.parametrize("fault", [{"status": 502, "times": 2}, {"kind": "drop", "times": 2}, {"kind": "silence"}])
def test_reads_are_repeated(fault: dict[str, Any], stub: Stub, call: Any) -> None:
    stub.fail(f"GET {API}/experiments", **fault)
    submit(call, "--timeout-s", "0.3")
    assert len(stub.runs) == 1


def test_refusals_are_not_repeated(stub: Stub, call: Any) -> None:
    stub.fail(f"GET {API}/healthz", status=403)
    submit(call, code=1)
    assert len(stub.requests) == 1


POSTS = {
    "experiments": f"POST {API}/experiments",
    "pipelines": f"POST {API}/pipelines",
    "versions": f"POST {API}/pipelines/upload_version",
    "runs": f"POST {API}/runs",
}


@pytest.mark.parametrize("kind", POSTS)
@pytest.mark.parametrize("fault", ["silence", "drop", "status"])
def test_a_post_whose_answer_is_lost_is_not_sent_again(kind: str, fault: str, stub: Stub, call: Any) -> None:
    stub.fail(POSTS[kind], kind=fault, is_accepted=True)
    result = submit(call, "--timeout-s", "0.3")
    assert len(stub.sent(POSTS[kind])) == 1
    assert {name: len(getattr(stub, name)) for name in POSTS} == dict.fromkeys(POSTS, 1)
    assert [result["run_id"]] == list(stub.runs)


@pytest.mark.parametrize("kind", POSTS)
@pytest.mark.parametrize("fault", [{"kind": "silence"}, {"status": 500}])
def test_a_post_that_did_nothing_is_told(kind: str, fault: dict[str, Any], stub: Stub, call: Any) -> None:
    stub.fail(POSTS[kind], **fault)
    error = submit(call, "--timeout-s", "0.3", code=1)["error"]
    assert "what was asked for is not there so far; look at the server before you try again" in error
    assert len(stub.sent(POSTS[kind])) == 1
    submit(call)
    assert {name: len(getattr(stub, name)) for name in POSTS} == dict.fromkeys(POSTS, 1)


def test_a_lost_run_is_not_taken_for_an_older_one_of_its_name(stub: Stub, call: Any) -> None:
    first = submit(call, "--run-name", "nightly")
    stub.fail(POSTS["runs"], kind="drop")
    submit(call, "--run-name", "nightly", code=1)
    stub.fail(POSTS["runs"], kind="drop", is_accepted=True)
    second = submit(call, "--run-name", "nightly")
    assert second["run_id"] != first["run_id"]
    assert len(stub.runs) == 2


def test_a_name_that_someone_took_meanwhile_is_used(stub: Stub, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = stub.answer

    def late(request: Any) -> Any:
        if request.words == POSTS["pipelines"]:
            monkeypatch.setattr(stub, "answer", answer)
            answer(request)
        return answer(request)

    monkeypatch.setattr(stub, "answer", late)
    result = submit(call)
    assert [result["pipeline_id"]] == list(stub.pipelines)


def test_a_name_that_is_taken_out_of_sight_is_told(stub: Stub, call: Any) -> None:
    stub.fail(POSTS["pipelines"], status=409, message="the name toy-pipeline already exists")
    error = submit(call, code=1)["error"]
    assert "409" in error
    assert "the name toy-pipeline already exists" in error


def test_a_token_that_is_missing_or_wrong(
    stub: Stub, call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RALM_KFP_TOKEN")
    missing = submit(call, code=1)["error"]
    assert "401" in missing
    assert "no token was sent; give a token with --token-file or RALM_KFP_TOKEN" in missing
    wrong = tmp_path / "wrong"
    wrong.write_text("another-secret\n")
    error = submit(call, "--token-file", str(wrong), code=1)["error"]
    assert "not authenticated: Bearer [secret]; the token was not accepted" in error
    assert "another-secret" not in error
    stub.fail(f"GET {API}/healthz", status=403, message="x" * (connection.MAX_MESSAGE - 5) + "another-secret")
    assert "anoth" not in submit(call, "--token-file", str(wrong), code=1)["error"]


def test_where_a_token_comes_from(stub: Stub, call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "token"
    place.write_text(f"{TOKEN}\n")
    monkeypatch.setenv("RALM_KFP_TOKEN", "not-this-one")
    submit(call, "--token-file", str(place), "--verbose")
    monkeypatch.delenv("RALM_KFP_TOKEN")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(place))
    submit(call)
    assert len(stub.runs) == 2


def test_a_token_file_is_read_again(stub: Stub, call: Any, tmp_path: Path) -> None:
    place = tmp_path / "token"
    place.write_text(TOKEN)
    answer = stub.answer

    def rotate(request: Any) -> Any:
        found = answer(request)
        if request.words == POSTS["runs"]:
            stub.token = "fresh"
            place.write_text("fresh")
        return found

    stub.answer = rotate  # type: ignore[method-assign]
    assert submit(call, "--token-file", str(place), "--wait")["state"] == "SUCCEEDED"


@pytest.mark.parametrize("token", ["two words-of-secret", "zwei\nzeilen-of-secret", "schlüssel-of-secret"])
def test_what_cannot_be_a_token_is_refused_unseen(
    token: str, stub: Stub, call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / "token"
    place.write_text(token)
    monkeypatch.setenv("RALM_KFP_TOKEN", token)
    for words in ([], ["--token-file", str(place)]):
        error = submit(call, *words, code=2)["error"]
        assert "expected one line with a bearer token" in error
        assert "secret" not in error
    assert "cannot be read" in submit(call, "--token-file", str(tmp_path / "nowhere"), code=2)["error"]
    assert stub.requests == []


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost:8888", "expected http://... or https://..., found 'localhost:8888'"),
        ("http://[1", "expected http://... or https://..."),
        ("http://me:pass-word@example.com", "expected no user or password in it"),
    ],
)
def test_wrong_hosts(host: str, expected: str, stub: Stub, call: Any) -> None:
    error = submit(call, "--host", host, code=2)["error"]
    assert expected in error
    assert "pass-word" not in error


def test_no_host(stub: Stub, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_ENDPOINT")
    assert "give --host URL or set KFP_ENDPOINT" in submit(call, code=2)["error"]
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert connection.Server().find_host() == connection.IN_CLUSTER_HOST
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", f"{stub.url}/#/experiments")
    submit(call)
    assert len(stub.runs) == 1


def test_a_host_without_the_api(stub: Stub, call: Any) -> None:
    assert (
        "no Kubeflow Pipelines API (v2beta1) at this address"
        in submit(call, "--host", f"{stub.url}/pipeline", code=2)["error"]
    )


def test_nobody_listens(stub: Stub, call: Any) -> None:
    error = submit(call, "--host", "http://127.0.0.1:9", code=1)["error"]
    assert "http://127.0.0.1:9: cannot connect: " in error
    assert "refused" in error


def test_no_secure_connection(stub: Stub, call: Any, tmp_path: Path) -> None:
    plain = submit(call, "--host", stub.url.replace("http:", "https:"), code=1)["error"]
    assert "no secure connection" in plain
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        + ["-keyout", key, "-out", certificate, "-subj", "/CN=stub", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    for secure in serving(Stub(token=TOKEN), context):
        unknown = submit(call, "--host", secure.url, code=1)["error"]
        assert "no secure connection: SSLError" in unknown
        assert "--ca-file" in unknown
        submit(call, "--host", secure.url, "--ca-file", str(certificate))
        assert len(secure.runs) == 1
    assert "no such file" in submit(call, "--ca-file", str(tmp_path / "nowhere"), code=2)["error"]


def test_a_server_for_several_users(stub: Stub, call: Any, tmp_path: Path) -> None:
    stub.is_multi_user = True
    assert "is for several users; give --namespace" in submit(call, code=2)["error"]
    result = submit(call, "--namespace", "team-a")
    assert result["namespace"] == "team-a"
    assert {thing["namespace"] for thing in (*stub.experiments.values(), *stub.pipelines.values())} == {"team-a"}
    schedule(call, "--namespace", "team-a")
    schedule(call, "--namespace", "team-b")
    assert [run["namespace"] for run in stub.enabled()] == ["team-a", "team-b"]
    assert not (tmp_path / "context.json").exists()


def test_names_with_signs_that_urls_use(stub: Stub, call: Any) -> None:
    name = 'a+b & "c" 100%'
    stub.fail(POSTS["runs"], kind="drop", is_accepted=True)
    assert submit(call, "--run-name", name)["run_name"] == name
    schedule(call, "--name", name)
    assert schedule(call, "--name", name)["done"] == "kept"


def test_nothing_but_the_result_is_on_stdout_and_nothing_of_kfp_on_stderr(
    stub: Stub, toy: Path, tmp_path: Path
) -> None:
    words = ["pipeline", "submit", "--file", str(toy), "--param", "recipe=a", "--wait", "--json", "--verbose"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *words], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["run_id"] in stub.runs
    assert "Warning" not in done.stderr
    assert TOKEN not in done.stderr


def test_a_pipeline_is_chosen_by_name_and_profile(
    stub: Stub, toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def compiled_file(profile: str, folder: Path = toy.parent, pipeline: str = "") -> Path:
        asked.append((pipeline, profile))
        return toy

    monkeypatch.setattr(pipeline_commands, "PIPELINES", ("train-and-evaluate", "reindex"))
    monkeypatch.setattr(pipeline_commands, "compiled_file", compiled_file)
    monkeypatch.setattr(pipeline_commands, "PROFILES", ("local", "cluster"))
    for words in ([], ["--pipeline", "reindex", "--profile", "local"]):
        assert main(["pipeline", "submit", "--param", "recipe=a", *words]) == 0
    assert asked == [("train-and-evaluate", "cluster"), ("reindex", "local")]
    capsys.readouterr()
    for flag, expected in (("pipeline", "train-and-evaluate, reindex"), ("profile", "local, cluster")):
        assert main(["pipeline", "schedule", "--cron", CRON, f"--{flag}", "nonsense"]) == 2
        assert f"{flag}: expected one of {expected}, found 'nonsense'" in capsys.readouterr().err
