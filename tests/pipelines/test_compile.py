from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipelines.compile import PROFILES, Profile, compile_pipeline, compiled_file


@pytest.fixture(scope="module")
def graph() -> dict:
    return next(yaml.safe_load_all(compiled_file("local").read_text(encoding="utf-8")))


@pytest.mark.parametrize("profile", PROFILES)
def test_committed_file_equals_a_fresh_compile(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RALM_WIKI_BASE_URL", "http://127.0.0.1:1")  # a machine's setting must not get into the file
    fresh = compile_pipeline(profile, tmp_path).read_text(encoding="utf-8")
    assert compiled_file(profile).read_text(encoding="utf-8") == fresh, "run `make compile`"


def test_inputs_are_described(graph: dict) -> None:
    inputs = graph["root"]["inputDefinitions"]["parameters"]
    assert 10 <= len(inputs) <= 14
    assert all(spec["description"].strip() for spec in inputs.values())


def test_no_task_installs_packages(graph: dict) -> None:
    for name, executor in graph["deploymentSpec"]["executors"].items():
        assert "pip install" not in " ".join(executor["container"]["command"]), name


def test_plan_track_and_register_are_not_cached(graph: dict) -> None:
    (body,) = [part for name, part in graph["components"].items() if name.startswith("comp-exit-handler")]
    for task in ("plan-op", "start-op", "register-op"):
        assert not body["dag"]["tasks"][task].get("cachingOptions", {}).get("enableCache", False), task
    assert not graph["root"]["dag"]["tasks"]["finish-op"].get("cachingOptions", {}).get("enableCache", False)
