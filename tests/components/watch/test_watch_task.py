"""Both operations as pipeline tasks: what they hand over, and what an error looks like."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.select.component import select_pair_op
from components.watch.component import watch_op
from ralm.artifacts.manifest import open_artifact
from ralm.fetch import http
from tests.dump_site import DumpSite, export


def artifact(place: object) -> Any:
    """What KFP gives a task for an artifact."""
    return SimpleNamespace(path=str(place))


@pytest.fixture(autouse=True)
def _logging_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task sets logging up for its process; here that is the one of all tests."""
    monkeypatch.setattr("ralm.cli.set_up_logging", lambda: None)


@pytest.fixture
def selected(tmp_path: Path) -> dict[str, Any]:
    return {f"selected_{kind}": artifact(tmp_path / kind) for kind in ("model", "index", "passages")}


def test_what_one_selects_the_other_watches(
    selected: dict[str, Any], toy_passages: str, tiny_model: str, toy_index: str
) -> None:
    places = {"model": tiny_model, "index": toy_index, "passages": toy_passages}
    name, version, wiki, date, *_ = select_pair_op.python_func(recipe="toy", **places, **selected)
    assert (name, version, wiki, date) == ("ralm-toy", "", "", "")
    passages, model = selected["selected_passages"], selected["selected_model"]
    assert open_artifact(passages.path, "passages").base == toy_passages
    with DumpSite() as site:
        site.add_dump("enwiki", "20261001", [export([(1, "Otter", "The otter swims.")])])
        found = watch_op.python_func("toy", "wiki:enwiki/latest", passages, model, mirrors=site.url)
    assert found[:3] == (True, "wiki:enwiki/20261001", "20261001")
    assert type(found) is tuple  # taken by place: the outputs have other names


def test_the_condition_of_a_graph_is_named_as_the_local_runner_wants_it() -> None:
    assert set(watch_op.component_spec.outputs or {}) == {"Output", "source", "date", "reason"}


def test_an_error_is_one_line(
    selected: dict[str, Any],
    toy_passages: str,
    tiny_model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "FIRST_WAIT_S", 0.001)
    with pytest.raises(SystemExit, match="2"):
        select_pair_op.python_func(recipe="toy", **selected)
    assert "ralm: error: select: RALM_TRACKING=off, so there is no registry" in capsys.readouterr().err
    given = {"passages": artifact(toy_passages), "model": artifact(tiny_model), "mirrors": "http://127.0.0.1:1"}
    with pytest.raises(SystemExit, match="2"):
        watch_op.python_func("toy", "wiki:enwiki/latest", **given)
    assert "ralm: error: http://127.0.0.1:1/enwiki/: no answer from the server" in capsys.readouterr().err
