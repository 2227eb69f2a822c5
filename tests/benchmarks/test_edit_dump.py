"""The editor of dumps, and with it: how many passages of real text an edited sentence changes."""

from __future__ import annotations

import bz2
import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.edit_dump import EDIT_KINDS, DumpEdits, edit_dump, main
from components.download.config import DownloadConfig
from components.download.stage import download
from ralm.artifacts.manifest import open_artifact
from ralm.corpus.changes import compare_corpora, read_corpus
from ralm.corpus.dump import RawPage, read_dump
from ralm.corpus.sentences import sentence_ends
from ralm.corpus.site import Site
from ralm.corpus.wikitext import parse_article
from ralm.errors import DataError

HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.3/" version="0.3" xml:lang="en">\n'
SIGHTS = ("an old mill", "a stone bridge", "[[market (place)|a market]]", "a small harbour", "two quiet parks")


def page_text(number: int) -> str:
    lines = [f"The town number {number} has {sight} near the river." for sight in SIGHTS]
    prose = " ".join(lines[:3]) + "\n\n" + " ".join(lines[3:])
    box = f"{{{{Infobox town\n| name = Town {number}\n}}}}"
    return f"{box}\n{prose}\n\n== Lists ==\n* It lists what is not a sentence of prose.\n"


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """40 articles, a redirect, and a page of another namespace."""
    pages = {
        **{f"Town {number} &amp; more": page_text(number) for number in range(40)},
        "Old town": "#REDIRECT [[Town 1 & more]]",
        "Talk:Town": "I like the old mill near the river.",
    }
    texts = [
        f"  <page>\n    <title>{title}</title>\n    <id>{10 + number}</id>\n    <revision>\n"
        f"      <id>{500 + number}</id>\n      <contributor><id>3</id></contributor>\n"
        f"      <text>{text.replace('&', '&amp;')}</text>\n"
        "    </revision>\n  </page>\n"
        for number, (title, text) in enumerate(pages.items())
    ]
    path = tmp_path / "dump.xml.bz2"
    path.write_bytes(bz2.compress((HEAD + "".join(texts) + "</mediawiki>\n").encode()))
    return path


def pages_of(path: Path) -> dict[int, RawPage]:
    return {page.page_id: page for _, page in read_dump(path, Counter()) if isinstance(page, RawPage)}


def sentences_of(page: RawPage) -> Counter[str]:
    found: Counter[str] = Counter()
    for section in parse_article(page.wikitext, Site()).sections:
        ends = list(sentence_ends(section.text))
        found.update(section.text[start:end].strip() for start, end in zip([0, *ends], ends, strict=False))
    return found


def test_a_copy_without_edits(dump: Path, tmp_path: Path) -> None:
    edits = edit_dump(dump, tmp_path / "new.xml.bz2")
    assert edits == DumpEdits(40, [], {}, [], [], {})
    assert bz2.decompress((tmp_path / "new.xml.bz2").read_bytes()) == bz2.decompress(dump.read_bytes())


@pytest.mark.parametrize("seed", [0, 1])
def test_each_edit_changes_one_sentence_of_one_page(dump: Path, tmp_path: Path, seed: int) -> None:
    edits = edit_dump(dump, tmp_path / "new.xml.bz2", percent=50, seed=seed)
    before, after = pages_of(dump), pages_of(tmp_path / "new.xml.bz2")
    by_page = {edit.page_id: edit for edit in edits.sentences}
    assert len(by_page) == len(edits.sentences) == 20
    assert {edit.kind for edit in edits.sentences} == set(EDIT_KINDS)
    assert list(after) == list(before)
    for page_id, page in before.items():
        new = after[page_id]
        if page_id not in by_page:
            assert new == page
            continue
        edit = by_page[page_id]
        assert new.title == page.title
        assert new.revision_id is not None
        assert new.revision_id > 541
        gone, come = sentences_of(page) - sentences_of(new), sentences_of(new) - sentences_of(page)
        assert (gone.total(), come.total()) == {"insert": (0, 1), "change": (1, 1), "delete": (1, 0)}[edit.kind]
        assert (edit.before in page.wikitext, edit.after in new.wikitext) == (True, True)
        assert (edit.before == "", edit.after == "") == (edit.kind == "insert", edit.kind == "delete")
    assert len({after[page_id].revision_id for page_id in by_page}) == 20


def test_pages_are_renamed_deleted_added_and_moved(dump: Path, tmp_path: Path) -> None:
    edits = edit_dump(dump, tmp_path / "new.xml.bz2", percent=10, rename=2, delete=3, add=4, move=5, seed=3)
    before, after = pages_of(dump), pages_of(tmp_path / "new.xml.bz2")
    assert len(after) == 40 - 3 + 4
    assert list(after) == sorted(after)
    for page_id, title in edits.renamed.items():
        assert after[page_id] == dataclasses.replace(before[page_id], title=title)
        assert title != before[page_id].title
    assert not set(edits.deleted) & set(after)
    assert sorted(set(after) - set(before)) == sorted([*edits.added, *edits.moved.values()])
    for old, new in edits.moved.items():
        assert old not in after
        assert (after[new].title, after[new].wikitext) == (before[old].title, before[old].wikitext)
    assert len({after[page_id].title for page_id in edits.added} | {page.title for page in before.values()}) == 44
    touched = [edit.page_id for edit in edits.sentences]
    touched += [*edits.renamed, *edits.deleted, *edits.moved]
    assert len(touched) == len(set(touched)) == 4 + 2 + 3 + 5
    assert all(after[page_id] == page for page_id, page in before.items() if page_id not in touched)


def test_equal_calls_write_equal_bytes(dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [edit_dump(dump, tmp_path / f"{seed}.bz2", percent=20, move=2, seed=seed) for seed in (1, 2)]
    main([str(dump), str(tmp_path / "again.bz2"), "--percent", "20", "--move", "2", "--seed", "1"])
    assert (tmp_path / "again.bz2").read_bytes() == (tmp_path / "1.bz2").read_bytes()
    printed = json.loads(capsys.readouterr().out)
    assert printed["sentences"] == [dataclasses.asdict(edit) for edit in found[0].sentences]
    assert found[0].sentences != found[1].sentences


def test_what_cannot_be_edited(dump: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="40 articles are too few"):
        edit_dump(dump, tmp_path / "new.bz2", percent=50, delete=21)
    raw = bz2.decompress(dump.read_bytes()).decode()
    (tmp_path / "history.xml").write_text(raw.replace("<revision>", "<revision><id>1</id></revision><revision>", 1))
    with pytest.raises(DataError, match="expected each page once with one revision"):
        edit_dump(tmp_path / "history.xml", tmp_path / "new.bz2")
    (tmp_path / "lists.xml").write_text(raw.replace("The town", "* The town").replace("river. * The", "river,"))
    with pytest.raises(DataError, match=r"too few|have a sentence"):
        edit_dump(tmp_path / "lists.xml", tmp_path / "new.bz2", percent=50)
    assert not (tmp_path / "new.bz2").exists()


@pytest.mark.slow
def test_an_edited_sentence_of_real_text_changes_at_most_two_passages(shared_data: Path, tmp_path: Path) -> None:
    """On average; and no passage of another page changes."""
    dump = shared_data / "wiki" / "enwiki-20060303-part.xml.bz2"
    if not dump.is_file():
        pytest.skip("needs the part of the dump of 2006-03-03 in the shared real data")
    config = DownloadConfig(workers=1)
    download(source=str(dump), passages=str(tmp_path / "before"), config=config)
    before = read_corpus(open_artifact(str(tmp_path / "before"), "passages"))
    for percent in (1, 5, 20):
        source, place = tmp_path / f"{percent}.xml.bz2", str(tmp_path / str(percent))
        edits = edit_dump(dump, source, percent=percent, seed=percent).sentences
        assert len(edits) == round(2213 * percent / 100)
        download(source=str(source), passages=place, previous=str(tmp_path / "before"), config=config)
        timings = json.loads((Path(place) / "timings.json").read_text())
        assert timings["pages_taken_over"] == before.pages.num_rows - len(edits)
        table, totals = compare_corpora(before, read_corpus(open_artifact(place, "passages")))
        assert set(table.column("source_id").to_pylist()) <= {str(edit.page_id) for edit in edits}
        assert totals["passages"]["retitled"] == totals["passages"]["moved"] == 0
        assert 0.5 <= totals["passages"]["encoded"] / len(edits) <= 2.0
        assert totals["passages"]["removed"] / len(edits) <= 2.0
