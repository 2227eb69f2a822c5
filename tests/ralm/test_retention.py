from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cli import main
from ralm import serving
from ralm.artifacts.collect import list_store
from ralm.artifacts.store import Contents, produce, stored_location
from ralm.errors import ConfigError
from ralm.registry import Verdict, register_pair
from ralm.retention import surplus_versions
from ralm.serving import Pair, versions
from tests.evaluations import open_registry


@pytest.fixture(autouse=True)
def database(ralm_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return open_registry(ralm_home, monkeypatch)


def register(tmp_path: Path, name: str, *, promote: bool = True) -> None:
    """A version whose three artifacts are in the store, and the embeddings that its index was made from."""

    def make(kind: str, **inputs: str) -> tuple[str, str]:
        def build(folder: Path) -> Contents:
            (folder / "file").write_text(f"{kind} {name}")
            return Contents(details={"passage_encoder": "e", "fingerprints": {"passage_encoder": "e"}})

        where = {"stage": f"{kind} {name}", "stage_version": 1, "config": {}, "inputs": inputs}
        manifest = produce(str(tmp_path / kind / name), kind=kind, build=build, **where)
        return stored_location(manifest), manifest.fingerprint

    embeddings = make("embeddings")
    made = {"model": make("model"), "index": make("index", embeddings=embeddings[1]), "passages": make("passages")}
    pair = Pair(
        recipe="toy",
        fingerprints={kind: fingerprint for kind, (_, fingerprint) in made.items()},
        **{kind: place for kind, (place, _) in made.items()},
    )
    register_pair(pair, tags={}, judge=lambda _: Verdict(promote=promote, reason="as told"))


def kept(kind: str) -> set[str]:
    return {
        (Path(artifact.uri) / "file").read_text().partition(" ")[2]
        for artifact in list_store()
        if artifact.kind == kind
    }


def test_versions_beyond_the_newest_are_retired_with_their_artifacts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abcd":
        register(tmp_path, name)
    register(tmp_path, "e", promote=False)  # 4 (d) stays champion, 5 (e) is the challenger
    assert main(["store", "gc", "--keep-days", "0", "--keep-versions", "1", "--dry-run"]) == 0
    assert kept("index") == set("abcde")
    assert main(["store", "gc", "--keep-days", "0", "--keep-versions", "1"]) == 0
    assert "ralm-toy 1 retired" in capsys.readouterr().out
    assert kept("index") == kept("model") == kept("passages") == set("cde")  # c is where a rollback goes to
    assert kept("embeddings") == set()
    retired = {version.version for version in versions("toy") if version.tags.get(serving.RETIRED_TAG)}
    assert retired == {"1", "2"}
    assert main(["store", "gc", "--keep-days", "0"]) == 0, "retired versions are no broken references"
    assert main(["registry", "rollback", "--recipe", "toy"]) == 0
    assert main(["registry", "rollback", "--recipe", "toy", "--to", "1"]) == 2
    assert "no such artifact" in capsys.readouterr().err
    assert next(version.version for version in versions("toy") if version.alias == "champion") == "3"


def test_nothing_is_retired_unless_asked(tmp_path: Path) -> None:
    for name in "abc":
        register(tmp_path, name)
    assert main(["store", "gc", "--keep-days", "0"]) == 0
    assert kept("index") == set("abc")
    assert surplus_versions(3) == []
    with pytest.raises(ConfigError, match="keep_versions: expected at least 1, found -1"):
        surplus_versions(-1)
