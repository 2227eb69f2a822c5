"""The pair a run starts from: out of the registry, or by its places; whole, and belonging together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from components.plan.stage import Changes, plan
from components.select.stage import Selection, select
from pipelines.recipes import recipes_json
from ralm.artifacts.manifest import MANIFEST, open_artifact, read_artifact
from ralm.artifacts.store import Contents, produce
from ralm.errors import ArtifactError, ConfigError, RalmError

KINDS = ("model", "index", "passages")


@pytest.fixture
def places(tiny_model: str, toy_index: str, toy_passages: str) -> dict[str, str]:
    return {"model": tiny_model, "index": toy_index, "passages": toy_passages}


def outputs(folder: Path) -> dict[str, str]:
    return {f"selected_{kind}": str(folder / kind) for kind in KINDS}


def run(folder: Path, **arguments: Any) -> Selection:
    return select(**{"recipe": "toy", **outputs(folder), **arguments})


def make_passages(folder: Path, name: str, details: dict[str, str]) -> str:
    def build(work: Path) -> Contents:
        (work / "part-00000.parquet").write_bytes(name.encode())
        return Contents(details=details)

    produce(
        str(folder / name),
        kind="passages",
        stage="toy",
        stage_version=1,
        inputs={},
        config={"name": name},
        build=build,
    )
    return str(folder / name)


def register(places: dict[str, str], *, recipe: str = "toy", alias: str = "champion") -> str:
    """Put a pair into the registry as it is; returns its number."""
    import dataclasses
    import tempfile

    import mlflow

    from ralm import serving, tracking
    from ralm.artifacts.files import write_json

    client = tracking.connect()
    fingerprints = {kind: read_artifact(place).fingerprint for kind, place in places.items()}
    pair = serving.Pair(recipe=recipe, fingerprints=fingerprints, **places)
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "pair.json", dataclasses.asdict(pair))
        with mlflow.start_run():
            info = mlflow.pyfunc.log_model(
                name="ralm",
                python_model=str(Path(serving.__file__).resolve()),
                artifacts={"pair": str(Path(folder) / "pair.json")},
                pip_requirements=[],
                registered_model_name=pair.name,
            )
    if alias:
        client.set_registered_model_alias(pair.name, alias, str(info.registered_model_version))
    return str(info.registered_model_version)


def test_given_places_are_handed_over_by_reference(tmp_path: Path, places: dict[str, str]) -> None:
    chosen = run(tmp_path / "out", **places)
    assert chosen[:5] == Selection("ralm-toy", version="", wiki="", dump_date="", recipe="toy", made_with="")[:5]
    for kind in KINDS:
        assert [path.name for path in (tmp_path / "out" / kind).iterdir()] == [MANIFEST]
        found, given = open_artifact(str(tmp_path / "out" / kind), kind), open_artifact(places[kind], kind)
        assert found.fingerprint == given.fingerprint
        assert found.base == given.base


def test_it_tells_how_the_pair_was_made(tmp_path: Path, places: dict[str, str]) -> None:
    made = json.loads(run(tmp_path / "out", **places).made_with)
    config = open_artifact(places["index"], "index").manifest.config
    assert made["index"] == config
    assert made["embed"]["dtype"] == config["storage"]
    assert made["embed"]["precision"] in ("bf16", "fp32")
    assert made["download"] == {}, "these passages were not made by the download stage"
    planned = plan(recipes=recipes_json(), recipe="quickstart", changes=Changes(made_with=json.dumps(made)))
    assert json.loads(planned.index).items() >= config.items()


def test_another_name_than_that_of_the_recipe(tmp_path: Path, places: dict[str, str]) -> None:
    assert run(tmp_path / "out", registered_as="mine", **places)[0] == "ralm-mine"


def test_references_are_followed_and_relative_places_become_absolute(
    tmp_path: Path, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "first", **places)
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "second", **{kind: f"first/{kind}" for kind in KINDS})
    assert open_artifact(str(tmp_path / "second" / "index"), "index").base == places["index"]
    shutil.copytree(places["passages"], tmp_path / "own")
    run(tmp_path / "third", **{**places, "passages": "own"})
    assert open_artifact(str(tmp_path / "third" / "passages"), "passages").base == str(tmp_path / "own")


def test_running_it_again_gives_the_same(tmp_path: Path, places: dict[str, str]) -> None:
    first = run(tmp_path, **places)
    before = {kind: (tmp_path / kind / MANIFEST).read_bytes() for kind in KINDS}
    assert run(tmp_path, **places) == first
    assert {kind: (tmp_path / kind / MANIFEST).read_bytes() for kind in KINDS} == before


def test_the_champion_or_a_version_by_its_number(
    tmp_path: Path, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RALM_TRACKING", "on")
    assert register(places, alias="") == "1"
    with pytest.raises(ConfigError, match="no champion of ralm-toy; train a pair first: ralm pipeline run"):
        run(tmp_path)
    assert register(places) == "2"
    assert run(tmp_path).version == "2"
    assert open_artifact(str(tmp_path / "model"), "model").base == places["model"]
    assert run(tmp_path, alias="1").version == "1"
    with pytest.raises(ConfigError, match="the registry has no 7 of ralm-toy"):
        run(tmp_path, alias="7")
    with pytest.raises(ConfigError, match="the registry has no champion of ralm-other"):
        run(tmp_path, recipe="other")


def test_the_dump_of_the_passages_is_told(
    tmp_path: Path, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = make_passages(tmp_path, "dumped", {"wiki": "enwiki", "date": "20261001"})

    def build(work: Path) -> Contents:
        (work / "index.bin").write_bytes(b"x")
        details = {**open_artifact(places["index"], "index").manifest.details}
        return Contents(details={**details, "passages": read_artifact(passages).fingerprint})

    index = str(tmp_path / "dumped-index")
    produce(index, kind="index", stage="toy", stage_version=1, inputs={}, config={}, build=build)
    chosen = run(tmp_path / "out", model=places["model"], index=index, passages=passages)
    assert (chosen.wiki, chosen.dump_date) == ("enwiki", "20261001")


def test_without_a_registry_places_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="RALM_TRACKING=off, so there is no registry; give model, index and passages"):
        run(tmp_path)
    with pytest.raises(ConfigError, match="expected model, index and passages, or none of them, found model and index"):
        run(tmp_path, model="m", index="i")


def test_a_registry_that_cannot_be_reached_is_no_missing_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RALM_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RalmError, match=r"MLflow at http://127.0.0.1:1: ") as caught:
        run(tmp_path)
    assert not isinstance(caught.value, ConfigError)


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, places: dict[str, str]) -> None:
    other = make_passages(tmp_path, "other", {})
    with pytest.raises(ArtifactError, match=f"made from passages .*, but {other} is"):
        run(tmp_path / "out", **{**places, "passages": other})

    def build(work: Path) -> Contents:
        (work / "index.bin").write_bytes(b"x")
        details = dict(open_artifact(places["index"], "index").manifest.details)
        return Contents(details={**details, "passage_encoder": "e" * 64})

    index = str(tmp_path / "foreign")
    produce(index, kind="index", stage="toy", stage_version=1, inputs={}, config={}, build=build)
    with pytest.raises(ArtifactError, match=f"{index}: made by passage encoder eee.*, but .* has"):
        run(tmp_path / "out", **{**places, "index": index})
    assert not (tmp_path / "out").exists()  # nothing is handed over before all is checked


def test_a_missing_or_swapped_part_is_told(
    tmp_path: Path, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArtifactError, match=f"{tmp_path}/nothing: no such artifact"):
        run(tmp_path / "out", **{**places, "model": str(tmp_path / "nothing")})
    with pytest.raises(ArtifactError, match="expected a index artifact, found a model artifact"):
        run(tmp_path / "out", **{**places, "index": places["model"]})
    monkeypatch.setenv("RALM_TRACKING", "on")
    own = {kind: str(tmp_path / "own" / kind) for kind in KINDS}
    for kind in KINDS:
        shutil.copytree(places[kind], own[kind])
    register(own)
    changed = make_passages(tmp_path, "changed", {})
    shutil.rmtree(own["passages"])
    shutil.copytree(changed, own["passages"])
    with pytest.raises(ArtifactError, match=r"passages is .*, registered was"):
        run(tmp_path / "out")


def test_no_bytes_of_the_artifacts_are_copied(tmp_path: Path, places: dict[str, str]) -> None:
    run(tmp_path, **places)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert written < 20_000
    assert json.loads((tmp_path / "index" / MANIFEST).read_text())["data_uri"] == places["index"]
