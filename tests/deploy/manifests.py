"""Reads the files in deploy/: documents, pods and containers, and what they refer to."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
BUILDS = [DEPLOY / "argo", KUBERNETES / "overlays" / "volume", KUBERNETES / "overlays" / "object-store"]
COMPONENTS = sorted(path.parent for path in (KUBERNETES / "components").glob("*/kustomization.yaml"))

Document = dict[str, Any]


def documents(path: Path) -> list[Document]:
    """What a file holds."""
    return [entry for entry in yaml.safe_load_all(path.read_text(encoding="utf-8")) if entry]


def build(folder: Path) -> list[Document]:
    """A kustomization as the cluster gets it; skips where kubectl is missing or too old for components."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl, for `kubectl kustomize`")
    client = json.loads(subprocess.run([kubectl, "version", "--client", "-o", "json"], capture_output=True).stdout)
    if int(re.match(r"\d+", client["clientVersion"]["minor"])[0]) < 21:
        pytest.skip("needs a kubectl of 1.21 or newer, whose kustomize knows components")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [entry for entry in yaml.safe_load_all(done.stdout) if entry]


def build_with_all(tmp_path: Path) -> list[Document]:
    """The overlay of an object store with every component switched on."""
    copy = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, copy)
    kustomization = copy / "overlays" / "object-store" / "kustomization.yaml"
    switched_on = ", ".join(f"../../components/{path.name}" for path in COMPONENTS)
    text = kustomization.read_text(encoding="utf-8")
    assert text.count("components: []") == 1
    kustomization.write_text(text.replace("components: []", f"components: [{switched_on}]"), encoding="utf-8")
    return build(kustomization.parent)


def pods(entries: list[Document]) -> Iterator[tuple[str, Document]]:
    """Name and pod of everything that runs; Argo's templates as the pods that Argo makes of them."""
    for entry in entries:
        name = f"{entry['kind']}/{entry['metadata']['name']}"
        if entry["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield name, entry["spec"]["template"]["spec"]
        elif entry["kind"] == "CronJob":
            yield name, entry["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        elif entry["kind"] == "CronWorkflow":
            workflow = entry["spec"]["workflowSpec"]
            for template in workflow["templates"]:
                if "container" in template:
                    yield f"{name}/{template['name']}", _pod_of(workflow, template)


def _pod_of(workflow: Document, template: Document) -> Document:
    """As Argo merges the defaults into a template: lists of mounts and variables by their keys."""
    defaults, own = workflow["templateDefaults"]["container"], template["container"]
    mounts = [*defaults["volumeMounts"], *own.get("volumeMounts", [])]
    container = {"name": "main", **defaults, **own, "volumeMounts": mounts}
    pod = {
        "containers": [container],
        "restartPolicy": "Never",
        "serviceAccountName": workflow["serviceAccountName"],
        "securityContext": workflow["securityContext"],
        "volumes": workflow["volumes"],
    }
    return {**pod, **{name: template[name] for name in ("nodeSelector", "tolerations") if name in template}}


def containers(entries: list[Document]) -> Iterator[tuple[str, Document, Document]]:
    """Name, container and pod of everything that runs."""
    for name, pod in pods(entries):
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            yield f"{name}/{container['name']}", container, pod


def references(entries: list[Document]) -> set[tuple[str, str, str]]:
    """Kind, name and key (empty: the whole object) of every secret, settings map, claim and account that is used."""
    found = set()
    for _, pod in pods(entries):
        found.add(("ServiceAccount", pod["serviceAccountName"], ""))
        for volume in pod.get("volumes", []):
            found |= {
                ("PersistentVolumeClaim", v["claimName"], "") for k, v in volume.items() if k[:10] == "persistent"
            }
            if "configMap" in volume:
                found.add(("ConfigMap", volume["configMap"]["name"], ""))
            if "secret" in volume:
                keys = {item["key"] for item in volume["secret"].get("items", [])} or {""}
                found |= {("Secret", volume["secret"]["secretName"], key) for key in keys}
    for _, container, _ in containers(entries):
        for source in container.get("envFrom", []):
            found |= {("ConfigMap", ref["name"], "") for kind, ref in source.items() if kind == "configMapRef"}
            found |= {("Secret", ref["name"], "") for kind, ref in source.items() if kind == "secretRef"}
        for variable in container.get("env", []):
            kinds = {"configMapKeyRef": "ConfigMap", "secretKeyRef": "Secret"}
            for kind, reference in variable.get("valueFrom", {}).items():
                found.add((kinds[kind], reference["name"], reference["key"]))
    return found
