"""The rows of text in tiny sizes: they measure, and a wrong result shows in their figures."""

from __future__ import annotations

import bz2
from pathlib import Path

import pytest

from benchmarks.goals import goals_of
from benchmarks.made_dump import write_made_dump
from benchmarks.rows import dump, wikitext
from benchmarks.suite import Bench
from ralm.artifacts.manifest import open_artifact
from ralm.corpus.multistream import decompress_segments

BENCH = {"small": True, "repeats": 1}


def test_wikitext_row(tmp_path: Path) -> None:
    pytest.importorskip("wikiextractor")
    pytest.importorskip("wikitextparser")
    found = wikitext.measure(Bench(work=tmp_path, **BENCH))
    assert {goal.figure for goal in goals_of("P1")} <= found.figures.keys()
    assert found.figures["left_markup"] == 0
    assert found.figures["word_recall"] == found.figures["word_precision"] == 1


def test_words_that_are_lost_or_added_show(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wikiextractor")
    site, pages = wikitext.made_pages()
    parse = wikitext.parse_article

    def without_lead(text: str, site: object) -> object:
        article = parse(text, site)
        return article._replace(sections=article.sections[1:])

    monkeypatch.setattr(wikitext, "parse_article", without_lead)
    precision, recall = wikitext.compare_words(pages[:3], site)
    assert precision == 1
    assert recall < 0.97

    def with_heading(text: str, site: object) -> object:
        article = parse(text, site)
        return article._replace(sections=[*article.sections, article.sections[0]])

    monkeypatch.setattr(wikitext, "parse_article", with_heading)
    precision, recall = wikitext.compare_words(pages[:3], site)
    assert recall == 1
    assert precision < 0.97


def test_left_markup_is_counted() -> None:
    assert wikitext.count_left_markup(["plain text", "a [[link", "x &nbsp; y", "== H ==", "1 - 2 | 3"]) == 3


def test_dump_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RALM_HOME", str(tmp_path / "home"))
    found = dump.measure(Bench(work=tmp_path, **BENCH))
    assert {goal.figure for goal in goals_of("P2")} <= found.figures.keys()
    assert found.figures["share_of_bz2"] > 0
    passages = open_artifact(str(tmp_path / "dump-passages"), "passages")
    assert passages.manifest.counts["articles"] == 300


def test_a_multistream_dump_is_the_same_dump(tmp_path: Path) -> None:
    source = write_made_dump(tmp_path / "one.xml.bz2", 250)
    path = dump.write_multistream(source, tmp_path / "many.xml.bz2")
    assert bz2.decompress(path.read_bytes()) == bz2.decompress(source.read_bytes())
    assert path.read_bytes().count(b"BZh91AY&SY") == 4  # head, 100, 100 and 50 pages
    assert b"".join(data for _, data in decompress_segments(path)) == bz2.decompress(source.read_bytes())
