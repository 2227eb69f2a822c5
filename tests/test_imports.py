"""The import rule: pipelines -> components -> ralm; kfp and mlflow only where they belong; compiling needs no torch."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for name in ("ralm", "components", "pipelines") for path in (ROOT / name).rglob("*.py"))
MLFLOW_HOMES = {"ralm/tracking.py", "ralm/serving.py", "ralm/registry.py", "ralm/lease.py"}


def imported(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(path: Path) -> list[str]:
    place = path.relative_to(ROOT).as_posix()
    layer, *rest = place.split("/")
    found = []
    for name in imported(path):
        top = name.split(".")[0]
        if layer == "ralm" and top in ("components", "pipelines"):
            found.append(f"{place} imports {name}: ralm stands alone")
        if layer == "components" and top == "pipelines":
            found.append(f"{place} imports {name}: components know no graph")
        if layer == "components" and top == "components" and len(rest) > 1:
            other = name.split(".")[1] if "." in name else ""
            if other not in ("", rest[0], "images"):
                found.append(f"{place} imports {name}: a component imports no other one")
        if top == "kfp" and layer != "pipelines" and path.name != "component.py":
            found.append(f"{place} imports kfp")
        if top == "mlflow" and place not in MLFLOW_HOMES:
            found.append(f"{place} imports mlflow")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_import_rule(path: Path) -> None:
    assert violations(path) == []


@pytest.mark.parametrize("path", sorted((ROOT / "components").glob("*/config.py")), ids=lambda path: path.parent.name)
def test_component_configs_import_only_the_standard_library_and_other_configs(path: Path) -> None:
    allowed = {"ralm", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imported(path)} <= allowed


def test_package_init_files_are_empty_but_for_how_threads_wait() -> None:
    """docs/decisions/0014."""
    filled = {path for path in FILES if path.name == "__init__.py" and path.read_text().strip()}
    assert filled == {ROOT / name / "__init__.py" for name in ("ralm", "components", "pipelines")}
    assert {name for path in filled for name in imported(path)} <= {"os", "ralm"}


def test_no_init_file_hides_the_docker_library() -> None:
    assert not (ROOT / "docker" / "__init__.py").exists()


def test_compiling_needs_no_model_library(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'faiss', 'mlflow', 'pyarrow'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from pipelines.compile import compile_pipeline\n"
        f"compile_pipeline('local', Path({str(tmp_path)!r}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
