"""The watcher: what is new, what is not, and what it cannot know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.download.config import DownloadConfig
from components.download.stage import download
from components.watch.stage import Watch, watch
from ralm.artifacts.manifest import read_artifact
from ralm.artifacts.store import Contents, produce
from ralm.errors import ArtifactError, ConfigError, DataError
from ralm.fetch import http
from ralm.fetch.http import UnreachableError
from tests.dump_site import ARTICLES, DumpSite, Fault, export

ROOT = Path(__file__).parents[3]
LATEST = "wiki:enwiki/latest"
Look = Callable[..., Watch]


def pages(month: int) -> bytes:
    return export([(1, "Otter", f"The otter swims in month {month}.")])


def make_artifact(folder: Path, kind: str, name: str, details: dict[str, str] | None = None) -> str:
    def build(work: Path) -> Contents:
        (work / "content").write_text(name)
        return Contents(details=details or {})

    output = str(folder / name)
    produce(output, kind=kind, stage="toy", stage_version=1, inputs={}, config={"name": name}, build=build)
    return output


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[DumpSite]:
    """With the dumps of September and October."""
    monkeypatch.setattr(http, "FIRST_WAIT_S", 0.001)
    with DumpSite() as site:
        for month in (9, 10):
            site.add_dump("enwiki", f"2026{month:02}01", [pages(month)])
        yield site


@pytest.fixture
def model(tmp_path: Path) -> str:
    return make_artifact(tmp_path, "model", "model")


@pytest.fixture
def passages_of(tmp_path: Path, site: DumpSite) -> Callable[[str], str]:
    """Passages of a source, by the download stage."""

    def make(source: str) -> str:
        output = str(tmp_path / f"passages-{abs(hash(source))}")
        download(source=source, passages=output, config=DownloadConfig(wiki_base_url=site.url, workers=1))
        return output

    return make


@pytest.fixture
def look(site: DumpSite, model: str, passages_of: Callable[[str], str]) -> Look:
    """Watch with a champion of the dump of October."""
    champion = passages_of("wiki:enwiki/20261001")
    site.requests.clear()

    def run(source: str = LATEST, **changes: Any) -> Watch:
        given = {"recipe": "toy", "passages": champion, "model": model, "mirrors": site.url}
        return watch(source=source, **{**given, **changes})

    return run


def test_the_champions_own_dump_is_nothing_new(look: Look, site: DumpSite) -> None:
    found = look()
    assert found == Watch(
        False,
        "wiki:enwiki/20261001",
        "20261001",
        "the champion is of enwiki 20261001, the finished dump is of 20261001",
    )
    assert [path for _, path, _ in site.requests] == ["/enwiki/", "/enwiki/20261001/dumpstatus.json"]


def test_a_later_dump_is_new_and_pinned(look: Look, site: DumpSite, passages_of: Callable[[str], str]) -> None:
    site.add_dump("enwiki", "20261101", [pages(11)])
    found = look()
    assert found[:3] == (True, "wiki:enwiki/20261101", "20261101")
    assert look() == found  # looking changes nothing
    site.add_dump("enwiki", "20261201", [pages(12)])
    assert look(found.source)[:3] == found[:3]
    assert site.gets(".bz2") == []
    promoted = passages_of(found.source)
    assert not look(found.source, passages=promoted).is_new
    assert look(passages=promoted).source == "wiki:enwiki/20261201"


def test_after_missed_runs_the_newest_is_taken(look: Look, site: DumpSite) -> None:
    for date in ("20261101", "20261201", "20270101"):
        site.add_dump("enwiki", date, [pages(1)])
    assert look().source == "wiki:enwiki/20270101"


@pytest.mark.parametrize("state", ["waiting", "in-progress"])
def test_a_dump_in_the_making_is_passed_over_and_told(look: Look, site: DumpSite, state: str) -> None:
    site.add_dump("enwiki", "20261201", [pages(12)], status=state)
    found = look()
    assert (found.is_new, found.date) == (False, "20261001")
    assert f"passed over: {site.url}/enwiki/20261201/dumpstatus.json: the article dump is not done" in found.reason
    assert state in found.reason
    site.add_dump("enwiki", "20261101", [pages(11)])
    found = look()
    assert found[:3] == (True, "wiki:enwiki/20261101", "20261101")
    assert "20261201" in found.reason


def test_a_malformed_status_is_told_too(look: Look, site: DumpSite) -> None:
    site.files["/enwiki/20261101/dumpstatus.json"] = b"{"
    assert "20261101/dumpstatus.json: no JSON" in look().reason


def test_without_any_finished_dump_there_is_nothing_new(look: Look, site: DumpSite) -> None:
    for date in ("20260901", "20261001"):
        site.set_status("enwiki", date, {ARTICLES: {"status": "in-progress"}})
    found = look(force=True)
    assert (found.is_new, found.source, found.date) == (False, LATEST, "")
    assert "in-progress" in found.reason
    assert not look("wiki:enwiki/20261001").is_new


def test_a_pinned_dump_that_is_older_or_later(look: Look, site: DumpSite) -> None:
    assert not look("wiki:enwiki/20260901").is_new
    site.add_dump("enwiki", "20261101", [pages(11)])
    site.add_dump("enwiki", "20261201", [pages(12)])
    assert look("wiki:enwiki/20261101")[:2] == (True, "wiki:enwiki/20261101")


def test_a_site_that_is_down_is_no_empty_site(look: Look, site: DumpSite) -> None:
    """Also not after it was asked before: an old answer says nothing about new dumps."""
    assert not look().is_new
    site.is_down = True
    with pytest.raises(UnreachableError, match="no answer from the server"):
        look()
    site.is_down = False
    site.faults["/enwiki/20261001/dumpstatus.json"] = [Fault(status=500)]
    with pytest.raises(UnreachableError, match="500"):
        look()
    with pytest.raises(DataError, match="404"):
        look("wiki:nowiki/latest")
    with pytest.raises(DataError, match="404"):
        look("wiki:enwiki/20261231")
    with pytest.raises(ConfigError, match="wiki_base_url: expected URLs"):
        look(mirrors="nowhere")


def test_a_mirror_helps_out(look: Look, site: DumpSite) -> None:
    with DumpSite() as mirror:
        mirror.add_dump("enwiki", "20261101", [pages(11)])
        site.is_down = True
        assert look(mirrors=f"{site.url},{mirror.url}").source == "wiki:enwiki/20261101"


def test_mirrors_come_from_the_environment(look: Look, site: DumpSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RALM_WIKI_BASE_URL", site.url)
    assert look(mirrors="").date == "20261001"


@pytest.mark.parametrize(
    "details", [{}, {"wiki": "dewiki", "date": "20270101"}, {"wiki": "enwiki", "date": "dec2021"}, {"wiki": "enwiki"}]
)
def test_a_champion_of_no_dump_of_this_wiki_is_older(look: Look, tmp_path: Path, details: dict[str, str]) -> None:
    found = look(passages=make_artifact(tmp_path, "passages", "other", details))
    assert found[:2] == (True, "wiki:enwiki/20261001")
    assert "of no dump of enwiki" in found.reason


def test_force_goes_on_with_what_is_there(look: Look) -> None:
    found = look(force=True)
    assert found[:2] == (True, "wiki:enwiki/20261001")
    assert found.reason.endswith("; forced")


def test_a_table_is_new_if_its_content_is(look: Look, passages_of: Callable[[str], str], tmp_path: Path) -> None:
    table = tmp_path / "corpus.csv"
    table.write_text("id,title,text\n1,Otter,The otter swims.\n")
    champion = passages_of(str(table))
    assert look(str(table), passages=champion)[:3] == (False, str(table), "")
    assert look(LATEST, passages=champion).is_new
    table.write_text("id,title,text\n1,Otter,The otter dives.\n")
    found = look(str(table), passages=champion)
    assert found == (True, str(table), "", f"the content of {table} is not that of the champion's passages")
    table.unlink()
    with pytest.raises(DataError, match=r"corpus.csv: expected a file, found nothing"):
        look(str(table), passages=champion)


def test_a_folder_of_texts_is_new_if_a_file_changed(
    look: Look, passages_of: Callable[[str], str], tmp_path: Path
) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "otter.txt").write_text("The otter swims.")
    champion = passages_of(str(tmp_path / "texts"))
    assert not look(str(tmp_path / "texts"), passages=champion).is_new
    (tmp_path / "texts" / "willow.txt").write_text("The willow grows.")
    assert look(str(tmp_path / "texts"), passages=champion).is_new


@pytest.mark.parametrize("has_versions", [True, False])
def test_a_url_is_new_if_its_content_is(
    look: Look, site: DumpSite, passages_of: Callable[[str], str], has_versions: bool
) -> None:
    site.has_versions = has_versions
    site.files["/corpus.csv"] = b"id,title,text\n1,Otter,The otter swims.\n"
    url = f"{site.url}/corpus.csv"
    champion = passages_of(url)
    assert not look(url, passages=champion).is_new
    site.files["/corpus.csv"] = b"id,title,text\n1,Otter,The otter dives.\n"  # as long as before
    assert look(url, passages=champion).is_new
    site.is_down = True
    with pytest.raises(UnreachableError, match="corpus.csv: no answer from the server"):
        look(url, passages=champion)


@pytest.fixture
def add_version(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a version into the registry, with the tags that registering a pair leaves."""
    monkeypatch.setenv("RALM_TRACKING", "on")
    from ralm import tracking
    from ralm.serving import CHALLENGER, MODEL_TAG, PLACES_TAG, REASON_TAG

    client = tracking.connect()
    client.create_registered_model("ralm-toy")

    def add(model: str, passages: str, *, is_challenger: bool = False, **more: str) -> None:
        places = json.dumps([model, "index", passages])
        tags = {MODEL_TAG: read_artifact(model).fingerprint, PLACES_TAG: places, REASON_TAG: "0.40 is less than 0.50"}
        tags |= {f"ralm.{name}": text for name, text in more.items()}
        version = client.create_model_version("ralm-toy", "ralm:/pair", tags=tags).version
        if is_challenger:
            client.set_registered_model_alias("ralm-toy", CHALLENGER, version)

    return add


@pytest.fixture
def november(site: DumpSite, passages_of: Callable[[str], str]) -> str:
    """Passages of a later dump than the champion's."""
    site.add_dump("enwiki", "20261101", [pages(11)])
    return passages_of("wiki:enwiki/20261101")


def test_a_dump_that_was_weighed_before_is_not_weighed_again(
    look: Look, site: DumpSite, november: str, add_version: Callable[..., None], model: str, tmp_path: Path
) -> None:
    add_version(make_artifact(tmp_path, "model", "other-model"), november)
    add_version(model, str(tmp_path / "gone"))
    assert look().is_new
    add_version(model, november, is_challenger=True)
    found = look()
    assert (found.is_new, found.source) == (False, "wiki:enwiki/20261101")
    assert "version 3 of ralm-toy is of it too and was weighed already" in found.reason
    assert look(force=True).is_new
    assert look(recipe="another").is_new
    site.add_dump("enwiki", "20261201", [pages(12)])
    assert look().source == "wiki:enwiki/20261201"


@pytest.mark.parametrize(
    ("tags", "later", "is_new"),
    [
        ({"reason": ""}, {}, True),  # the run broke off before the decision was known
        ({}, {}, True),  # refused, but the run broke off before it was the challenger
        ({}, {"replaced": "1"}, False),  # refused; a later one was more successful
        ({"replaced": "1"}, {}, True),  # to be promoted, but the run broke off before it was
        ({"replaced": "1"}, {"replaced": "2"}, False),  # promoted, and then another one took its place
        ({"replaced": "1", "rolled_back": "by hand"}, {}, False),
        ({"replaced": "1", "rolled_back": ""}, {}, True),
    ],
)
def test_what_a_broken_run_left_is_gone_on_with(
    look: Look,
    november: str,
    add_version: Callable[..., None],
    model: str,
    passages_of: Callable[[str], str],
    tags: dict[str, str],
    later: dict[str, str],
    is_new: bool,
) -> None:
    add_version(model, passages_of("wiki:enwiki/20261001"))
    add_version(model, november, **tags)
    if later:
        add_version(model, passages_of("wiki:enwiki/20261001"), **later)
    assert look().is_new is is_new


def test_refused_and_rolled_back_dumps_of_a_real_registry(
    look: Look,
    site: DumpSite,
    november: str,
    model: str,
    passages_of: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RALM_TRACKING", "on")
    from ralm.registry import Verdict, register_pair
    from ralm.serving import CHAMPION, MODEL_TAG, Pair, open_pair, versions

    index = make_artifact(tmp_path, "index", "index")

    def register(passages: str, *, promote: bool) -> None:
        places = {"model": model, "index": index, "passages": passages}
        fingerprints = {"passages": read_artifact(passages).fingerprint}
        verdict = Verdict(promote=promote, reason="weighed")
        tags = {MODEL_TAG: read_artifact(model).fingerprint}
        register_pair(Pair(recipe="toy", fingerprints=fingerprints, **places), tags=tags, judge=lambda _: verdict)

    def champion() -> str:
        pair = open_pair("toy", CHAMPION)
        assert pair is not None
        return pair.passages

    register(passages_of("wiki:enwiki/20261001"), promote=True)
    assert look(passages=champion()).is_new
    register(november, promote=False)
    assert "version 2 of ralm-toy" in look(passages=champion()).reason
    assert not look(passages=champion()).is_new
    site.add_dump("enwiki", "20261201", [pages(12)])
    assert look(passages=champion()).source == "wiki:enwiki/20261201"
    register(passages_of("wiki:enwiki/20261201"), promote=True)
    assert not look(passages=champion()).is_new

    from ralm.rollback import rollback

    rollback("toy", because="wrong answers")
    assert [version.alias for version in versions("toy")] == ["champion", "challenger", ""]
    found = look(passages=champion())
    assert (found.is_new, found.date) == (False, "20261201")
    assert "version 3 of ralm-toy" in found.reason


def test_a_table_that_was_weighed_before_is_not_weighed_again(
    look: Look, passages_of: Callable[[str], str], add_version: Callable[..., None], model: str, tmp_path: Path
) -> None:
    table = tmp_path / "corpus.csv"
    table.write_text("id,title,text\n1,Otter,The otter swims.\n")
    assert look(str(table)).is_new
    add_version(model, passages_of(str(table)), is_challenger=True)
    assert not look(str(table)).is_new
    table.write_text("id,title,text\n1,Otter,The otter dives.\n")
    assert look(str(table)).is_new


def test_missing_artifacts_are_named(look: Look, tmp_path: Path, model: str) -> None:
    with pytest.raises(ArtifactError, match="nothing: no such artifact"):
        look(passages=str(tmp_path / "nothing"))
    with pytest.raises(ArtifactError, match="expected a passages artifact, found a model artifact"):
        look(passages=model)
    with pytest.raises(ArtifactError, match="nothing: no such artifact"):
        look(model=str(tmp_path / "nothing"))


LOOK = """
import sys, time
started_at = time.monotonic()
from components.watch.stage import watch
passages, model, mirrors = sys.argv[1:]
found = watch(recipe="toy", source="wiki:enwiki/latest", passages=passages, model=model, mirrors=mirrors)
heavy = [name for name in ("torch", "transformers", "faiss", "mlflow") if name in sys.modules]
print(found.is_new, heavy, time.monotonic() - started_at)
"""


def test_looking_is_cheap(site: DumpSite, passages_of: Callable[[str], str], model: str, ralm_home: Path) -> None:
    """Nothing new, the usual case: no model library, no MLflow, and a moment's work, imports included."""
    arguments = [passages_of("wiki:enwiki/20261001"), model, site.url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RALM_TRACKING": "on"}
    (ralm_home / "mlflow.db").touch()  # there is a registry to ask
    best_s = 60.0
    for _ in range(3):  # a busy machine may disturb one
        command = [sys.executable, "-c", LOOK, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        is_new, heavy, elapsed_s = done.stdout.split(maxsplit=2)
        assert (is_new, heavy) == ("False", "[]")
        best_s = min(best_s, float(elapsed_s))
    assert best_s < 2


def test_a_look_during_other_work_of_the_site_ends(look: Look, site: DumpSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RALM_HTTP_TIMEOUT_S", "0.1")
    site.faults["/enwiki/"] = [Fault(stall_after=5)]
    started_at = time.monotonic()
    with pytest.raises(UnreachableError, match=r"nothing came for 0.1 s, see RALM_HTTP_TIMEOUT_S"):
        look()
    assert time.monotonic() - started_at < 5
