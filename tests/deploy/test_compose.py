"""deploy/compose.yaml: valid by the specification, locked down, its secrets outside, its commands those of ours."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.images import CPU_IMAGE, GPU_IMAGE, VERSION
from pipelines.commands import build_parser
from tests.deploy.compose import EXAMPLE, example_names, needed_names, read_compose
from tests.deploy.manifests import DEPLOY, KUBERNETES, documents

specification = pytest.importorskip("compose_spec", reason="needs compose-spec, which has no wheel for this machine")
FILES = ("compose.yaml", "compose.gpu.yaml")
OURS = {CPU_IMAGE, GPU_IMAGE, f"ralm-pipelines-python-mlflow:{VERSION}"}
ONCE = {"owner", "buckets", "migrate"}
ON_DEMAND = {"ralm", "serve"}


def check(content: dict[str, Any]) -> None:
    specification.PyCompose.from_yaml(yaml.safe_dump(content))


def services() -> dict[str, dict[str, Any]]:
    return dict(read_compose()["services"])


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_valid(name: str) -> None:
    check(read_compose(name))


@pytest.mark.parametrize(
    ("service", "field", "value"),
    [
        ("mlflow", "portz", []),
        ("mlflow", "read_only", "perhaps"),
        ("mlflow", "mem_limit", "2 apples"),
        ("mlflow", "depends_on", {"buckets": {"condition": "service_done"}}),
        ("postgres", "healthcheck", {"tests": ["CMD", "true"]}),
    ],
)
def test_a_wrong_field_is_refused(service: str, field: str, value: Any) -> None:
    content = read_compose()
    content["services"][service][field] = value
    with pytest.raises(ValueError):  # noqa: PT011 - the only kind it has
        check(content)


def test_every_container_is_locked_down() -> None:
    for name, service in services().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        user, group = service["user"].split(":")
        assert int(user) > 0 < int(group), name
        assert not {"privileged", "cap_add", "devices", "pid", "ipc"} & set(service), name
        assert service.get("network_mode", "none") == "none", name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_images_are_ours_or_pinned_as_on_a_cluster() -> None:
    on_cluster = set()
    for path in KUBERNETES.rglob("*.yaml"):
        on_cluster |= {line.split("image:")[1].strip() for line in path.read_text().splitlines() if "image:" in line}
    found = {service["image"] for service in services().values()}
    assert found <= OURS | on_cluster
    assert found & OURS
    assert all(":" in image.rpartition("/")[2] for image in found)


def test_services_wait_for_what_they_need() -> None:
    known = services()
    for name, service in known.items():
        for other, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert how == {"condition": expected}, f"{name}: {other}"
        is_once = name in ONCE | {"ralm"}
        assert service["restart"] == ("no" if is_once else "unless-stopped"), name
        assert ("healthcheck" in service) == (not is_once), name
        assert ("profiles" in service) == (name in ON_DEMAND), name
    needs = {name: set(service.get("depends_on", {})) for name, service in known.items()}
    assert needs["mlflow"] == {"migrate", "buckets"}
    assert needs["object-store"] == {"owner"}


def test_volumes_are_declared_and_mounts_are_there() -> None:
    content = read_compose()
    for name, service in content["services"].items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), f"{name}: {source}"
                assert mount.endswith(":ro")
            else:
                assert source in content["volumes"], f"{name}: {source}"


def test_the_gpu_file_only_changes_services_that_are_there() -> None:
    assert set(read_compose("compose.gpu.yaml")["services"]) <= ON_DEMAND
    for service in read_compose("compose.gpu.yaml")["services"].values():
        assert service["image"] == GPU_IMAGE


# ---- secrets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", needed_names())
def test_a_secret_that_is_not_given_is_an_error(name: str) -> None:
    with pytest.raises(KeyError, match=f"{name}: run the command at the top of compose.env.example"):
        read_compose(**{name: ""})


def test_secrets_come_from_a_file_that_git_ignores() -> None:
    assert needed_names() == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_DATABASE_PASSWORD"]
    assert (DEPLOY / ".gitignore").read_text(encoding="utf-8").split() == ["compose.env"]
    assert not (DEPLOY / "compose.env.example").stat().st_mode & 0o111
    read_compose()  # names of the example are all that is needed
    used = {name for path in FILES for name in example_names() if f"${{{name}" in (DEPLOY / path).read_text()}
    assert used == set(example_names())


def test_the_command_in_the_example_makes_the_file(tmp_path: Path) -> None:
    (line,) = [line for line in EXAMPLE.read_text(encoding="utf-8").splitlines() if line.startswith("#   (umask")]
    (tmp_path / "deploy").mkdir()
    subprocess.run(["sh", "-ec", line.removeprefix("#   ")], cwd=tmp_path, check=True)
    made = tmp_path / "deploy" / "compose.env"
    assert made.stat().st_mode & 0o077 == 0
    values = dict(line.split("=", 1) for line in made.read_text().splitlines())
    assert list(values) == needed_names()
    assert len(set(values.values())) == 3
    assert all(len(value) == 40 for value in values.values())


# ---- commands -----------------------------------------------------------------------------------------------------


def serve_of_the_cluster() -> list[str]:
    entries = documents(KUBERNETES / "components" / "serving" / "serve.yaml")
    (deployment,) = [entry for entry in entries if entry["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return [*container["command"], *container["args"]]


@pytest.mark.parametrize(
    "words", [["ralm", *services()["serve"]["command"]], serve_of_the_cluster()], ids=["here", "k8s"]
)
def test_the_service_is_started_as_it_can_be(words: list[str]) -> None:
    assert words[:2] == ["ralm", "serve"]
    arguments = build_parser().parse_args(words[1:])
    assert (arguments.host, arguments.port, arguments.follow_champion) == ("0.0.0.0", 8080, 60)


@pytest.mark.parametrize("words", [s["command"] for s in services().values() if s.get("command", [""])[0] == "mlflow"])
def test_commands_of_mlflow_have_flags_that_are_there(words: list[str]) -> None:
    import click
    from mlflow.cli import cli

    group: Any = cli
    rest = words[1:]
    while isinstance(group, click.Group):
        group = group.commands[rest.pop(0)]
    known = {flag for parameter in group.params for flag in parameter.opts}
    assert {word.split("=")[0] for word in rest if word.startswith("--")} <= known


def test_mlflow_is_started_as_on_the_cluster() -> None:
    entries = documents(KUBERNETES / "base" / "mlflow.yaml")
    (pod,) = [entry["spec"]["template"]["spec"] for entry in entries if entry["kind"] == "Deployment"]
    (server,), (migration,) = pod["containers"], pod["initContainers"]
    here = services()
    assert migration["command"] == here["migrate"]["command"]
    words = [*server["command"], *server["args"]]
    assert [w for w in here["mlflow"]["command"] if not w.startswith(("--artifacts", "--allowed"))] == words
    assert {entry["name"] for entry in server["env"]} >= {"MLFLOW_ARTIFACTS_DESTINATION", "MLFLOW_SERVER_ALLOWED_HOSTS"}
