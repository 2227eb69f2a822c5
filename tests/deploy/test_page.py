"""docs/deploy.md stays true: its commands exist, its messages are those of the code, its files are there."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipelines.commands import build_parser
from tests.deploy.compose import EXAMPLE
from tests.deploy.manifests import COMPONENTS, DEPLOY, KUBERNETES, build, containers

ROOT = DEPLOY.parent
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")


def literals() -> Iterator[str]:
    """Every text in the code; `{}` stands for what is put in."""
    for folder in ("ralm", "components", "pipelines"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def section(heading: str) -> str:
    return re.split(rf"^## {heading}$", PAGE, flags=re.MULTILINE)[1].split("\n## ")[0]


def own_messages() -> list[str]:
    """Messages in the first table of the last section."""
    table = section("When it goes wrong").split("What others say:")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell) if message != "ralm plan"]


def test_the_code_says_what_the_page_says_it_does() -> None:
    said = "\n".join(literals())
    assert len(own_messages()) > 15
    assert [message for message in own_messages() if message not in said] == []


def commands() -> Iterator[list[str]]:
    """Words of each `ralm` command in the code blocks."""
    for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines() if not language else ():
            if match := re.search(r"(?:^ *|^\.venv/bin/|run --rm |-- )ralm (.*)", line):
                yield shlex.split(match[1])


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_a_command_on_the_page_is_one(words: list[str]) -> None:
    build_parser().parse_args(words)


def test_the_command_for_secrets_is_that_of_the_example() -> None:
    (line,) = [line for line in PAGE.splitlines() if line.startswith("(umask 077;")]
    assert line in EXAMPLE.read_text(encoding="utf-8")


def test_files_and_folders_that_it_names_are_there() -> None:
    for place in re.findall(r"`((?:deploy|overlays|components|base|docker)/[\w./-]+)`", PAGE):
        assert (ROOT / place).exists() or (KUBERNETES / place).exists(), place
    for path in COMPONENTS:
        assert path.name in PAGE


def test_the_kustomization_on_the_page_can_be_built(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    entry = yaml.safe_load(block)
    (tmp_path / "my-cluster").mkdir()
    (tmp_path / "my-cluster" / "kustomization.yaml").write_text(yaml.safe_dump(entry), encoding="utf-8")
    (tmp_path / "deploy").symlink_to(DEPLOY)
    for place in (*entry["resources"], *entry["components"]):
        assert (ROOT / Path(place.removeprefix("../"))).is_dir(), place
    names = {image["name"] for image in entry["images"]}
    assert names == {f"ralm-pipelines-python-{kind}" for kind in ("base", "cpu", "gpu", "mlflow")}
    entries = build(tmp_path / "my-cluster")
    assert {entry["metadata"]["namespace"] for entry in entries} == {"ralm"}
    used = {container["image"].partition("/ralm-")[0] for _, container, _ in containers(entries)}
    assert used == {"registry.example.org/ralm", "docker.io/library/postgres:17.10"}
