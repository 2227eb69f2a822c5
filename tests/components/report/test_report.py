from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from components.report.config import ReportConfig
from components.report.stage import report
from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.tables import read_table
from ralm.errors import ArtifactError, ConfigError

Inputs = Callable[..., dict[str, str]]
VOID = {"meta", "input", "img", "br", "link", "hr", "path", "circle", "rect"}


class Page(HTMLParser):
    """Collects the elements of a page and checks that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.marks: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "mark":
            self.marks.append(data)

    def of(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and all(wanted[key] in (attributes.get(key.strip("_")) or "").split() for key in wanted)
        ]


def make(inputs: dict[str, str], folder: Path, **config: object) -> tuple[str, Page]:
    report(**inputs, report=str(folder), config=ReportConfig(**config))
    text = (folder / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_page_is_complete_in_itself_and_well_formed(inputs: Inputs, tmp_path: Path) -> None:
    text, page = make(inputs(), tmp_path / "report")
    assert page.open == [], "every element is closed"
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "img"}
        assert not attributes.get("src")
        assert (attributes.get("href") or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")], "no inline handlers"
    assert not re.search(r"url\(|@import|https?://", text)
    assert "prefers-color-scheme: dark" in text
    assert len(page.of("details", class_="question")) == 12
    assert len(page.of("svg")) == 4, "scores, recall, reader loss, retriever loss"
    assert all(svg["aria-label"] for svg in page.of("svg"))
    assert len(page.of("h1")) == 1


def test_text_of_users_never_becomes_markup(inputs: Inputs, tmp_path: Path) -> None:
    text, page = make(inputs(), tmp_path / "report")
    assert len(page.of("script")) == 1, "the page's own"
    assert "document.title = 'owned'" not in text
    assert "&lt;script&gt;" in text
    assert "script-src 'sha256-" in text
    assert "Founder0 Smith &amp; sons" in re.sub("</?mark>", "", text)


def test_answers_are_marked_in_the_passages(inputs: Inputs, tmp_path: Path) -> None:
    _, page = make(inputs(), tmp_path / "report")
    assert page.marks
    assert {mark.split()[-1] for mark in page.marks} == {"Smith"}
    assert len(page.of("li", class_="has-answer")) >= 5


def test_filters_count_what_the_rows_say(inputs: Inputs, tmp_path: Path) -> None:
    text, page = make(inputs(num_questions=40), tmp_path / "report")
    rows = page.of("details", class_="question")
    counts = dict(re.findall(r'data-filter="([\w-]+)"[^>]*>[^<]*<span>(\d+)</span>', text))
    assert int(counts["all"]) == 40
    for outcome in ("newly-right", "newly-wrong"):
        assert int(counts[outcome]) == sum(row["data-outcome"] == outcome for row in rows)
    assert int(counts["right"]) + int(counts["wrong"]) == 40
    assert int(counts["miss"]) == sum(row["data-miss"] == "true" for row in rows) > 0


def test_a_large_table_is_cut_and_the_page_says_so(inputs: Inputs, tmp_path: Path) -> None:
    text, page = make(inputs(num_questions=30), tmp_path / "report", max_rows=7)
    assert len(page.of("details", class_="question")) == 7
    assert "The first 7 of 30 questions" in text
    table = open_artifact(str(tmp_path / "report"), "report").file("per_question.parquet")
    assert read_table(table, "per_question/1").num_rows == 30


def test_metrics_are_merged_with_intervals(inputs: Inputs, tmp_path: Path) -> None:
    places = inputs(num_questions=60)
    make(places, tmp_path / "report")
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    after = json.loads((Path(places["after"]) / "metrics.json").read_text())
    assert {name: metrics[name] for name in after} == after, (
        "the metrics under their own names are those after training"
    )
    gain = metrics["difference"]["exact_match"]
    assert gain["value"] == pytest.approx(metrics["exact_match"] - metrics["before"]["exact_match"])
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    assert metrics["difference_closed_book"]["f1"]["value"] > 0
    rows = read_table(str(tmp_path / "report" / "per_question.parquet"), "per_question/1").to_pylist()
    assert sum(row["exact_match_after"] for row in rows) / 60 == pytest.approx(metrics["exact_match"])
    summary = (tmp_path / "report" / "report.md").read_text()
    assert summary.index("| recall_at_5 |") < summary.index("| recall_at_10 |")
    assert all(line.count("|") == 5 for line in summary.splitlines() if line.startswith("|"))


def test_optional_inputs_may_be_missing(inputs: Inputs, tmp_path: Path) -> None:
    places = inputs()
    del places["closed_book"], places["trained"]
    text, page = make(places, tmp_path / "report")
    assert len(page.of("svg")) == 2
    assert "losed book" not in text
    assert "closed_book" not in json.loads((tmp_path / "report" / "metrics.json").read_text())


def test_equal_runs_give_equal_bytes(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = inputs()
    contents = []
    for home in ("one", "two"):
        monkeypatch.setenv("RALM_HOME", str(tmp_path / home))
        make(places, tmp_path / home / "report")
        names = ("report.html", "report.md", "metrics.json", "per_question.parquet", "manifest.json")
        contents.append([(tmp_path / home / "report" / name).read_bytes() for name in names])
    assert contents[0] == contents[1]


def test_other_questions_are_refused(inputs: Inputs, tmp_path: Path) -> None:
    places = inputs(num_questions=5)
    first = places["before"]
    other = tmp_path / "other"
    other.mkdir()
    (Path(first).rename(other / "before"), Path(places["after"]).rename(other / "after"))
    again = inputs(num_questions=6)
    with pytest.raises(ArtifactError, match="expected the same questions, found .* and .* questions"):
        report(**{**again, "before": str(other / "before")}, report=str(tmp_path / "report"))
    assert not (tmp_path / "report").exists()


def test_other_passages_are_refused(inputs: Inputs, tmp_path: Path, toy_passages: str) -> None:
    with pytest.raises(ArtifactError, match="answered from passages [0-9a-f]{64}, but .* is [0-9a-f]{64}"):
        report(**{**inputs(), "passages": toy_passages}, report=str(tmp_path / "report"))


def test_config_is_checked() -> None:
    with pytest.raises(ConfigError, match="max_rows: expected at least 1, found 0"):
        ReportConfig(max_rows=0)
