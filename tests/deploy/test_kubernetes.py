"""deploy/kubernetes and deploy/argo: valid for the API, locked down, complete, and free of secrets."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from components.images import BASE_IMAGE, CPU_IMAGE, GPU_IMAGE, VERSION
from pipelines.commands import build_parser
from pipelines.profiles import Cluster, read_cluster
from tests.deploy.manifests import (
    BUILDS,
    COMPONENTS,
    DEPLOY,
    KUBERNETES,
    Document,
    build,
    build_with_all,
    containers,
    documents,
    pods,
    references,
)

OURS = {BASE_IMAGE, CPU_IMAGE, GPU_IMAGE, f"ralm-pipelines-python-mlflow:{VERSION}"}
OTHERS = {"docker.io/library/postgres:17.10", "ghcr.io/versity/versitygw:v1.8.0"}
NOT_OF_THE_API = ("kustomize.config.k8s.io", "argoproj.io", "trainer.kubeflow.org")
KUSTOMIZATIONS = sorted(DEPLOY.rglob("kustomization.yaml"))
SECRETS = {
    "mlflow-database": {"password"},
    "mlflow-login": {"basic_auth.ini", "flask-secret"},
    "ralm-store": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "ralm-mlflow": {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"},
    "ralm-webhook": {"RALM_WEBHOOK_URL"},
}
"""Made by hand, as docs/deploy.md says."""


def name_of(path: Path) -> str:
    return path.relative_to(DEPLOY).as_posix()


def check(entry: Document) -> None:
    kubernetes_validate.validate(entry, "1.37", strict=True)


def own_files() -> Iterator[tuple[Path, int]]:
    """Every object of Kubernetes' own API in a file that is no patch."""
    for path in sorted(DEPLOY.rglob("*.yaml")):
        entries = documents(path)
        is_patch = path.name in ("mlflow-files.yaml", "serve-gpu.yaml", "login.yaml")
        if is_patch or not all("apiVersion" in entry for entry in entries):
            continue
        for number, entry in enumerate(entries):
            if not entry["apiVersion"].startswith(NOT_OF_THE_API):
                yield path, number


OBJECTS = list(own_files())


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """The overlay of an object store with all components, and Argo's objects."""
    return build_with_all(tmp_path_factory.mktemp("deploy")) + documents(DEPLOY / "argo" / "reindex.yaml")


@pytest.fixture(scope="module")
def written() -> list[Document]:
    """The same from the files, without kustomize: where kubectl is missing, what patches change is not seen."""
    return [documents(path)[number] for path, number in OBJECTS] + documents(DEPLOY / "argo" / "reindex.yaml")


# ---- valid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "number"), OBJECTS, ids=lambda value: name_of(value) if isinstance(value, Path) else ""
)
def test_an_object_is_valid(path: Path, number: int) -> None:
    check(documents(path)[number])


@pytest.mark.parametrize("folder", BUILDS, ids=name_of)
def test_an_overlay_is_valid(folder: Path) -> None:
    entries = build(folder)
    identities = [(entry["kind"], entry["metadata"]["name"]) for entry in entries]
    assert len(identities) == len(set(identities)) > 2
    for entry in entries:
        if not entry["apiVersion"].startswith(NOT_OF_THE_API):
            check(entry)


def test_all_components_together_are_valid(everything: list[Document]) -> None:
    for entry in everything:
        if not entry["apiVersion"].startswith(NOT_OF_THE_API):
            check(entry)
    kinds = [entry["kind"] for entry in everything]
    assert (kinds.count("Deployment"), kinds.count("StatefulSet"), kinds.count("Job")) == (3, 1, 2)


def test_pods_of_the_workflow_are_valid() -> None:
    for name, pod in pods(documents(DEPLOY / "argo" / "reindex.yaml")):
        check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name.split("/")[-1]}, "spec": pod})


def test_a_misspelt_field_is_refused() -> None:
    (entry,) = [entry for entry in documents(KUBERNETES / "base" / "mlflow.yaml") if entry["kind"] == "Deployment"]
    pod = entry["spec"]["template"]["spec"]
    pod["containers"][0]["readinesProbe"] = pod["containers"][0].pop("readinessProbe")
    with pytest.raises(kubernetes_validate.ValidationError):
        check(entry)


# ---- complete -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: name_of(path.parent))
def test_a_kustomization_has_all_files_of_its_folder(path: Path) -> None:
    (entry,) = documents(path)
    named = [*entry.get("resources", []), *entry.get("configurations", [])]
    named += [patch["path"] for patch in entry.get("patches", []) if "path" in patch]
    named += [file for generator in entry.get("configMapGenerator", []) for file in generator.get("files", [])]
    for place in named:
        assert (path.parent / place).exists(), place
    apart = {"kustomization.yaml", "cluster.yaml", "train-job.yaml", "README.md"}
    assert {file.name for file in path.parent.iterdir() if file.is_file()} - apart == {
        place for place in named if not place.startswith("..")
    }


def test_what_is_referred_to_is_there_or_documented(everything: list[Document]) -> None:
    volume = build(KUBERNETES / "overlays" / "volume")
    page = (DEPLOY.parent / "docs" / "deploy.md").read_text(encoding="utf-8")
    for entries, there in ((everything, everything), (volume, volume)):
        known = {(entry["kind"], entry["metadata"]["name"]) for entry in there}
        for kind, name, key in references(entries):
            if kind == "Secret":
                assert f"`{name}`" in page
                assert not key or key in SECRETS[name], f"{name}: {key}"
            else:
                assert (kind, name) in known, f"{kind} {name} is nowhere"


def test_every_documented_key_of_a_secret_is_on_the_page() -> None:
    page = (DEPLOY.parent / "docs" / "deploy.md").read_text(encoding="utf-8")
    for name, keys in SECRETS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert all(f"`{key}`" in row for key in keys), row


def test_services_and_policies_select_pods_that_are_there(everything: list[Document]) -> None:
    labels, ports = {}, {}
    for entry in everything:
        if entry["kind"] in ("Deployment", "StatefulSet", "Job"):
            template = entry["spec"]["template"]
            name = template["metadata"]["labels"]["app.kubernetes.io/name"]
            labels[name] = template["spec"]
            ports[name] = {port["name"] for c in template["spec"]["containers"] for port in c.get("ports", [])}
    labels["mlflow-backup"] = {}
    for entry in everything:
        if entry["kind"] == "Service":
            name = entry["spec"]["selector"]["app.kubernetes.io/name"]
            assert {port["targetPort"] for port in entry["spec"]["ports"]} <= ports[name]
        if entry["kind"] == "NetworkPolicy":
            name = entry["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/name"]
            for rule in entry["spec"]["ingress"]:
                assert {port["port"] for port in rule["ports"]} <= ports[name]
                for source in rule["from"]:
                    for expression in source["podSelector"].get("matchExpressions", []):
                        assert set(expression["values"]) <= set(labels)


@pytest.mark.parametrize("overlay", ["volume", "object-store"])
def test_the_cluster_file_says_what_the_overlay_makes(overlay: str) -> None:
    folder = KUBERNETES / "overlays" / overlay
    cluster = read_cluster(str(folder / "cluster.yaml"))
    entries = build(folder)
    (settings,) = [entry["data"] for entry in entries if entry["kind"] == "ConfigMap"]
    assert cluster.store_uri == settings["RALM_STORE_URI"]
    assert cluster.mlflow_uri == settings["MLFLOW_TRACKING_URI"]
    assert cluster.precision == settings["RALM_PRECISION"]
    assert cluster.environment.get("AWS_ENDPOINT_URL") == settings.get("AWS_ENDPOINT_URL")
    assert ("PersistentVolumeClaim", cluster.claim) in {(e["kind"], e["metadata"]["name"]) for e in entries}
    templates = documents(DEPLOY / "argo" / "reindex.yaml")[0]["spec"]["workflowSpec"]["templates"]
    assert {tuple(t["nodeSelector"].items()) for t in templates if "nodeSelector" in t} == {
        tuple(cluster.gpu_labels.items())
    }
    defaults = Cluster()
    secrets = {defaults.store_secret, defaults.mlflow_secret, defaults.webhook_secret}
    assert secrets == {"ralm-store", "ralm-mlflow", "ralm-webhook"} <= set(SECRETS)


def test_a_registry_can_be_named_in_an_overlay(tmp_path: Path) -> None:
    """Also for Argo's objects, whose images kustomize does not know of itself."""
    images = [{"name": image.split(":")[0], "newName": f"registry.example.org/{image.split(':')[0]}"} for image in OURS]
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    for folder in ("argo", "kubernetes"):
        (tmp_path / folder).symlink_to(DEPLOY / folder)
    for base in ("../argo", "../kubernetes/overlays/volume"):
        kustomization = {"resources": [base], "images": images}
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
        found = {container["image"] for _, container, _ in containers(build(overlay))}
        assert all(image.startswith("registry.example.org/ralm-") or image in OTHERS for image in found), found


# ---- locked down --------------------------------------------------------------------------------------------------


def problems(name: str, container: Document, pod: Document) -> list[str]:
    """What is wrong with a container, by the restricted pod security standard and our own habits."""
    own, shared = container.get("securityContext", {}), pod.get("securityContext", {})
    resources = container.get("resources", {})
    asked, most = resources.get("requests", {}), resources.get("limits", {})
    found = {
        "runs as root": not shared.get("runAsNonRoot") or not shared.get("runAsUser"),
        "no seccomp profile": shared.get("seccompProfile") != {"type": "RuntimeDefault"},
        "may gain rights": own.get("allowPrivilegeEscalation") is not False,
        "writable root": own.get("readOnlyRootFilesystem") is not True,
        "keeps capabilities": own.get("capabilities") != {"drop": ["ALL"]},
        "privileged": bool(own.get("privileged")),
        "shares the host": any(pod.get(field) for field in ("hostNetwork", "hostPID", "hostIPC")),
        "mounts the host": any("hostPath" in volume for volume in pod.get("volumes", [])),
        "no requests": not {"cpu", "memory"} <= set(asked),
        "no limits": not {"cpu", "memory"} <= set(most),
        "promised other memory than its limit": asked.get("memory") != most.get("memory"),
        "image not pinned": container["image"] not in OURS | OTHERS,
        "no writable /tmp": "/tmp" not in {mount["mountPath"] for mount in container["volumeMounts"]},
        "token of an account without rights": not name.startswith("CronWorkflow")
        and pod.get("automountServiceAccountToken") is not False,
    }
    return [problem for problem, is_so in found.items() if is_so]


def test_every_container_is_locked_down(written: list[Document]) -> None:
    found = {name: wrong for name, *rest in containers(written) if (wrong := problems(name, *rest))}
    assert found == {}


def test_so_they_are_with_all_patches(everything: list[Document]) -> None:
    found = {name: wrong for name, *rest in containers(everything) if (wrong := problems(name, *rest))}
    assert found == {}


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        (("pod", "securityContext", "runAsNonRoot"), "runs as root"),
        (("container", "securityContext", "readOnlyRootFilesystem"), "writable root"),
        (("container", "securityContext", "capabilities"), "keeps capabilities"),
        (("container", "resources", "limits"), "no limits"),
    ],
)
def test_a_container_that_is_not_is_found(path: tuple[str, ...], problem: str) -> None:
    name, container, pod = next(iter(containers(documents(KUBERNETES / "base" / "postgres.yaml"))))
    sides: dict[str, Any] = {"container": copy.deepcopy(container), "pod": copy.deepcopy(pod)}
    parent = sides
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    assert problem in problems(name, sides["container"], sides["pod"])


def test_gpu_tasks_ask_for_gpu_nodes(everything: list[Document]) -> None:
    with_gpu = {}
    for name, container, pod in containers(everything):
        asks = "nvidia.com/gpu" in container["resources"]["limits"]
        assert asks == (container["image"] == GPU_IMAGE), name
        if asks:
            assert {"key": "nvidia.com/gpu", "operator": "Exists"} in pod["tolerations"], name
            with_gpu[name] = pod["nodeSelector"]
    assert len(with_gpu) == 3
    assert {tuple(selector.items()) for selector in with_gpu.values()} == {(("nvidia.com/gpu.present", "true"),)}


# ---- secrets ------------------------------------------------------------------------------------------------------


COMMITTED = [path for path in sorted(DEPLOY.rglob("*")) if path.is_file() and path.name != "compose.env"]


@pytest.mark.parametrize("path", COMMITTED, ids=name_of)
def test_no_file_holds_a_secret(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        assert all(entry.get("kind") != "Secret" for entry in documents(path))
        assert "secretGenerator" not in text
    assert re.findall(r"(?i)\b(?:password|secret_access_key|token)\b\s*[:=]\s*[\"']?[a-z0-9/+]{6,}", text) == []
    assert re.findall(r"://[^\s/:@]+:[^\s/:@]+@", text) == [], "a password in an address"


def test_components_are_what_the_tests_know() -> None:
    assert {path.name for path in COMPONENTS} == {"mlflow-login", "object-store", "serving", "serving-gpu"}


def test_the_cleaning_up_is_a_command_that_there_is_and_is_switched_off() -> None:
    (job,) = [entry for entry in documents(KUBERNETES / "base" / "home.yaml") if entry["kind"] == "CronJob"]
    assert job["spec"]["suspend"] is True
    ((_, container, _),) = containers([job])
    assert container["command"][0] == "ralm"
    arguments = build_parser().parse_args([*container["command"][1:], *container["args"]])
    assert (arguments.keep_days, arguments.keep_versions, arguments.dry_run) == (14, 4, False)
