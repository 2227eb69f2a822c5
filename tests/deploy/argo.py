"""Runs deploy/argo/reindex.yaml here: the few rules of Argo Workflows that it uses, read in Argo's documentation.

Tasks run one after another, and once: no pods, retries or deadlines. A name that is not known is an error, as there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.deploy.manifests import DEPLOY, documents

Command = Callable[[list[str]], int]


@dataclass
class Node:
    """How a task ended."""

    status: str
    outputs: dict[str, str] = field(default_factory=dict)

    @property
    def lets_go_on(self) -> bool:
        """What a bare name in `depends` means."""
        return self.status in ("Succeeded", "Skipped")


def workflow_spec() -> dict[str, Any]:
    """The workflow that the clock starts."""
    (cron,) = documents(DEPLOY / "argo" / "reindex.yaml")
    spec: dict[str, Any] = cron["spec"]["workflowSpec"]
    return spec


def fill_in(text: str, scope: Mapping[str, str]) -> str:
    """Put values in for `{{NAME}}`."""
    return re.sub(r"\{\{([^{}]+)\}\}", lambda match: scope[match[1].strip()], text)


def is_true(condition: str) -> bool:
    """A `when` after values were put in: two sides, quoted or not."""
    match = re.fullmatch(r"(.*?) (==|!=) (.*)", condition, re.DOTALL)
    assert match, f"a condition that this runner does not know: {condition}"
    left, right = (side.strip().strip("'") for side in (match[1], match[3]))
    return (left == right) == (match[2] == "==")


def may_start(depends: str, nodes: Mapping[str, Node]) -> bool:
    """A `depends` of names, `NAME.STATUS`, `&&` and `||`, all its tasks having ended."""

    def value(word: str) -> bool:
        name, _, status = word.strip().partition(".")
        return nodes[name].status == status if status else nodes[name].lets_go_on

    return any(all(value(word) for word in part.split("&&")) for part in depends.split("||"))


class Run:
    """One run of the workflow."""

    def __init__(
        self, folder: Path, uid: str, command: Command, parameters: Mapping[str, str], *, home: Path | None = None
    ) -> None:
        self.spec = workflow_spec()
        self.templates = {template["name"]: template for template in self.spec["templates"]}
        self.scope = {"workflow.uid": uid}
        for parameter in self.spec["arguments"]["parameters"]:
            value = parameters.get(parameter["name"], parameter["value"])
            self.scope[f"workflow.parameters.{parameter['name']}"] = value
        unknown = set(parameters) - {parameter["name"] for parameter in self.spec["arguments"]["parameters"]}
        assert not unknown, unknown
        self.commands: list[list[str]] = []
        self._folder, self._home, self._command = folder, home or folder / "home", command

    def run(self) -> str:
        """Run it to its end, and what comes after that.

        Returns:
            The status.
        """
        status = self._run(self.spec["entrypoint"], {}).status
        self.scope["workflow.status"] = status
        assert self._run(self.spec["onExit"], {}).status == "Succeeded"
        return status

    def _run(self, name: str, arguments: Mapping[str, str]) -> Node:
        template = self.templates[name]
        scope = dict(self.scope)
        for parameter in template.get("inputs", {}).get("parameters", []):
            scope[f"inputs.parameters.{parameter['name']}"] = arguments[parameter["name"]]
        assert set(arguments) <= {parameter["name"] for parameter in template.get("inputs", {}).get("parameters", [])}
        return self._run_dag(template["dag"], scope) if "dag" in template else self._run_container(template, scope)

    def _run_container(self, template: Mapping[str, Any], scope: Mapping[str, str]) -> Node:
        container = template["container"]
        words = [fill_in(word, scope) for word in (*container["command"], *container.get("args", []))]
        self.commands.append(words)
        temporary = self._folder / "tmp" / str(len(self.commands))
        temporary.mkdir(parents=True)
        if self._command([self._placed(word, temporary) for word in words]) != 0:
            return Node("Failed")
        outputs = {}
        for parameter in template.get("outputs", {}).get("parameters", []):
            path = Path(self._placed(parameter["valueFrom"]["path"], temporary))
            outputs[parameter["name"]] = path.read_text(encoding="utf-8")
        return Node("Succeeded", outputs)

    def _placed(self, word: str, temporary: Path) -> str:
        """A word of a command with the places of the pod as places here."""
        word = re.sub(r"(?<![\w/])/ralm(?=/)", str(self._home), word)
        return re.sub(r"(?<![\w/])/tmp(?=/outputs)", str(temporary), word)

    def _run_dag(self, dag: Mapping[str, Any], scope: dict[str, str]) -> Node:
        nodes: dict[str, Node] = {}
        waiting = list(dag["tasks"])
        while waiting:
            names = {task["name"]: re.findall(r"[a-z-]+(?=\.|\b)", task.get("depends", "")) for task in waiting}
            ready = next((t for t in waiting if set(names[t["name"]]) & {w["name"] for w in waiting} == set()), None)
            assert ready is not None, f"a cycle: {names}"
            waiting.remove(ready)
            if ready.get("depends") and not may_start(ready["depends"], nodes):
                nodes[ready["name"]] = Node("Omitted")
                continue
            node = nodes[ready["name"]] = self._run_task(ready, scope)
            scope |= {f"tasks.{ready['name']}.outputs.parameters.{key}": text for key, text in node.outputs.items()}
            if node.status == "Failed":
                return Node("Failed")
        return Node("Succeeded")

    def _run_task(self, task: Mapping[str, Any], scope: Mapping[str, str]) -> Node:
        if "when" in task and not is_true(fill_in(task["when"], scope)):
            return Node("Skipped")
        items = json.loads(fill_in(task["withParam"], scope)) if "withParam" in task else [None]
        found = []
        for item in items:
            known = {**scope, "item": str(item)}
            parameters = task.get("arguments", {}).get("parameters", [])
            found.append(self._run(task["template"], {p["name"]: fill_in(p["value"], known) for p in parameters}))
        failed = [node for node in found if node.status == "Failed"]
        return failed[0] if failed else Node("Succeeded", found[0].outputs if "withParam" not in task else {})
