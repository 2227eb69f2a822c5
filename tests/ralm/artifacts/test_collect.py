"""Removing what nothing refers to."""

from __future__ import annotations

from pathlib import Path

import pytest

from ralm.artifacts.collect import collect_garbage, list_store
from ralm.artifacts.manifest import Manifest
from ralm.artifacts.store import Contents, produce, stored_location
from ralm.errors import ArtifactError, ConfigError


def make(tmp_path: Path, name: str, **inputs: str) -> Manifest:
    def build(folder: Path) -> Contents:
        (folder / "file").write_text(name)
        return Contents()

    return produce(
        str(tmp_path / name), kind="thing", stage=name, stage_version=1, inputs=inputs, config={}, build=build
    )


@pytest.fixture
def chain(tmp_path: Path) -> dict[str, Manifest]:
    """a -> b -> c, and a lonely d."""
    made = {"a": make(tmp_path, "a")}
    made["b"] = make(tmp_path, "b", source=made["a"].fingerprint)
    made["c"] = make(tmp_path, "c", source=made["b"].fingerprint)
    made["d"] = make(tmp_path, "d")
    return made


def names(chain: dict[str, Manifest]) -> set[str]:
    left = {artifact.uri for artifact in list_store()}
    return {name for name, manifest in chain.items() if stored_location(manifest) in left}


def test_what_a_root_was_made_from_is_kept(chain: dict[str, Manifest]) -> None:
    removed = collect_garbage(roots=[stored_location(chain["b"])], keep_days=0, is_dry_run=False)
    assert {artifact.uri for artifact in removed} == {stored_location(chain[name]) for name in "cd"}
    assert names(chain) == {"a", "b"}


def test_a_dry_run_removes_nothing(chain: dict[str, Manifest]) -> None:
    assert len(collect_garbage(roots=[], keep_days=0, is_dry_run=True)) == 4
    assert names(chain) == set("abcd")


def test_young_artifacts_stay(chain: dict[str, Manifest]) -> None:
    assert collect_garbage(roots=[], keep_days=1, is_dry_run=False) == []
    assert names(chain) == set("abcd")


def test_an_unknown_root_stops_it(chain: dict[str, Manifest]) -> None:
    with pytest.raises(ArtifactError, match="in use, but not in the store; nothing was removed"):
        collect_garbage(roots=["/elsewhere/x"], keep_days=0, is_dry_run=False)
    assert names(chain) == set("abcd")


def test_hard_linked_outputs_survive(tmp_path: Path, chain: dict[str, Manifest]) -> None:
    collect_garbage(roots=[], keep_days=0, is_dry_run=False)
    assert (tmp_path / "a" / "file").read_text() == "a"


def test_remote_stores_and_negative_ages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="keep_days"):
        collect_garbage(roots=[], keep_days=-1, is_dry_run=True)
    monkeypatch.setenv("RALM_STORE_URI", "s3://bucket/store")
    with pytest.raises(ConfigError, match="only a local store"):
        list_store()
