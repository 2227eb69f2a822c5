"""Every component: thin body, and one signature for command line, stage and KFP."""

from __future__ import annotations

import ast
import importlib
import inspect
import typing
from pathlib import Path

import pytest

from ralm.cli import build_parser, config_type

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("download", "embed", "index", "train", "evaluate", "report", "compare", "gate", "register")
COMPONENT_FILES = sorted((ROOT / "components").glob("*/component.py"))
MAX_BODY_LINES = 12
ALLOWED = (ast.ImportFrom, ast.Assign, ast.Expr, ast.Return)


def operations(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]


def stage_function(name: str) -> typing.Any:
    return getattr(importlib.import_module(f"components.{name}.stage"), name)


@pytest.mark.parametrize("path", COMPONENT_FILES, ids=lambda path: path.parent.name)
def test_bodies_are_thin(path: Path) -> None:
    found = operations(path)
    assert found
    for function in found:
        body = function.body[1:]  # without the docstring
        assert isinstance(function.body[0], ast.Expr)
        assert body[-1].end_lineno - body[0].lineno + 1 <= MAX_BODY_LINES, function.name
        assert all(isinstance(node, ALLOWED) for node in body), f"{function.name}: logic in a component's body"
        assert not any(isinstance(node, ast.FunctionDef | ast.Lambda) for node in ast.walk(ast.Module(body, [])))


@pytest.mark.parametrize("path", COMPONENT_FILES, ids=lambda path: path.parent.name)
def test_components_name_their_image_and_install_nothing(path: Path) -> None:
    for function in operations(path):
        (decorator,) = function.decorator_list
        assert isinstance(decorator, ast.Call)
        options = {word.arg: word.value for word in decorator.keywords}
        assert isinstance(options["base_image"], ast.Name)
        assert options["base_image"].id.endswith("_IMAGE")
        assert ast.literal_eval(options["install_kfp_package"]) is False
        assert "packages_to_install" not in options


@pytest.mark.parametrize("name", STAGES)
def test_operation_has_the_stages_signature(name: str) -> None:
    parameters = set(inspect.signature(stage_function(name)).parameters)
    found: set[str] = set()
    for function in operations(ROOT / "components" / name / "component.py"):
        views = ("dsl.Output[dsl.Metrics]", "dsl.Output[dsl.Markdown]", "dsl.Output[dsl.HTML]")
        names = {item.arg for item in function.args.args if ast.unparse(item.annotation) not in views}
        assert {"config", "parent_run_id"} <= names
        assert names - {"parent_run_id"} <= parameters
        found |= names
    assert found - {"parent_run_id"} == parameters


@pytest.mark.parametrize("name", STAGES)
def test_command_line_has_the_stages_signature(name: str) -> None:
    stage = stage_function(name)
    flags = {action.dest for action in build_parser(stage)._actions}
    assert set(inspect.signature(stage).parameters) <= flags
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in inspect.signature(stage).parameters.values())


@pytest.mark.parametrize("name", STAGES)
def test_config_is_frozen_and_described(name: str) -> None:
    kind = config_type(stage_function(name))
    assert kind.__dataclass_params__.frozen
    tree = ast.parse((ROOT / "components" / name / "config.py").read_text())
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__]
    for place, node in enumerate(body):
        if isinstance(node, ast.AnnAssign):
            described = body[place + 1]
            assert isinstance(described, ast.Expr), f"{kind.__name__}.{ast.unparse(node.target)} has no docstring"
            assert isinstance(described.value, ast.Constant)


@pytest.mark.parametrize("name", STAGES)
def test_every_component_has_its_four_files(name: str) -> None:
    files = {path.name for path in (ROOT / "components" / name).glob("*.py")}
    assert {"config.py", "stage.py", "__main__.py", "component.py"} <= files
    assert len((ROOT / "components" / name / "__main__.py").read_text().splitlines()) <= 15


def test_only_one_module_talks_to_kubernetes() -> None:
    users = set()
    for folder in ("ralm", "components", "pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name.split(".")[0] == "kubernetes" for name in names):
                    users.add(path.relative_to(ROOT).as_posix())
    assert users == {"components/train/job.py"}
