"""The report on what changed between two dumps."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from components.compare.config import CompareConfig
from components.compare.stage import compare
from components.download.config import DownloadConfig
from components.download.stage import download
from ralm.artifacts.manifest import Manifest, open_artifact
from ralm.artifacts.tables import read_table
from ralm.cli import run_stage
from ralm.errors import ArtifactError, ConfigError
from tests.corpora import Row, passage, write_passages

FILES = {"pages.parquet", "changes.json", "metrics.json", "changes.md"}
BEFORE = [passage(str(page), f"Text {number} of {page}.") for page in range(1, 7) for number in range(3)]
AFTER = [
    *BEFORE[:2],  # page 1 is one passage shorter
    *BEFORE[3:6],
    *(passage("3", row["text"], title="A new name") for row in BEFORE[6:9]),
    *BEFORE[9:15],
    passage("4", "More."),
    passage("4", "And more."),
    *(passage("8", row["text"], title=row["title"]) for row in BEFORE[15:]),
    passage("9", "All of it is new."),
]


def run(folder: Path, before: Sequence[Row], after: Sequence[Row], **settings: Any) -> Manifest:
    write_passages(folder / "before", before)
    write_passages(folder / "after", after)
    places = {"previous": str(folder / "before"), "passages": str(folder / "after")}
    return compare(**places, changes=str(folder / "changes"), config=CompareConfig(**settings))


def page_of(folder: Path) -> str:
    return (folder / "changes" / "changes.md").read_text(encoding="utf-8")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def table_of(text: str, first: str) -> list[list[str]]:
    """Cells of the rows of the table whose heading begins with this."""
    lines = text.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith(first))
    end = next(number for number in range(start, len(lines) + 1) if not lines[number].startswith("|"))
    return [cells(line) for line in lines[start + 2 : end]]


def test_the_report_holds_pages_and_totals(tmp_path: Path) -> None:
    manifest = run(tmp_path, BEFORE, AFTER)
    artifact = open_artifact(str(tmp_path / "changes"), "changes")
    assert {entry.path for entry in artifact.manifest.files} == FILES
    passages = {"before": 18, "after": 20, "unchanged": 11, "retitled": 3, "moved": 3, "added": 3, "removed": 4}
    passages |= {"taken_over": 11 + 3, "encoded": 3 + 3}
    pages = {"before": 6, "after": 7, "unchanged": 2, "renamed": 1, "changed": 2, "added": 2, "removed": 1}
    pages["changed_and_renamed"] = 0
    totals = json.loads((tmp_path / "changes" / "changes.json").read_text())
    assert totals == {"pages": pages, "passages": passages}
    assert dict(manifest.counts) == passages
    metrics = json.loads((tmp_path / "changes" / "metrics.json").read_text())
    assert metrics == {f"{kind}_{name}": number for kind, part in totals.items() for name, number in part.items()}
    rows = read_table(artifact.file("pages.parquet"), "page_changes/1").to_pylist()
    assert [(row["source_id"], row["state"]) for row in rows] == [
        ("1", "changed"),
        ("3", "renamed"),
        ("4", "changed"),
        ("8", "added"),
        ("9", "added"),
        ("6", "removed"),
    ]
    for name in ("retitled", "moved", "added", "removed"):
        assert sum(row[f"passages_{name}"] for row in rows) == passages[name]


def test_the_page_says_the_same(tmp_path: Path) -> None:
    run(tmp_path, BEFORE, AFTER)
    text = page_of(tmp_path)
    assert "14 of 20 passages were encoded before, 6 are new to the encoder." in text
    names = [entry["fingerprint"][:12] for entry in (manifest_of(tmp_path / side) for side in ("before", "after"))]
    assert text.startswith(f"# Changes from corpus {names[0]} to corpus {names[1]}\n")
    heading = cells(next(line for line in text.split("\n") if line.startswith("| | before")))[1:]
    totals = json.loads((tmp_path / "changes" / "changes.json").read_text())
    for kind, *values in table_of(text, "| | before"):
        shown = {name: int(value) for name, value in zip(heading, values, strict=True) if value}
        assert shown.items() <= totals[kind].items()
        assert len(shown) == 7
    assert table_of(text, "| page |") == [
        ["Page 4", "changed", "3", "5", "2", "0"],
        ["Page 9", "added", "0", "1", "1", "0"],
        ["Page 6", "removed", "3", "0", "0", "3"],
        ["Page 1", "changed", "3", "2", "0", "1"],
        ["Page 3 → A new name", "renamed", "3", "3", "0", "0"],
        ["Page 6", "added", "0", "3", "0", "0"],
    ]


def manifest_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text()))


@pytest.mark.parametrize("shown", [0, 2, 6, 100])
def test_the_page_lists_so_many_pages(tmp_path: Path, shown: int) -> None:
    run(tmp_path, BEFORE, AFTER, max_pages=shown)
    text = page_of(tmp_path)
    if not shown:
        assert "| page |" not in text
        return
    assert [row[0] for row in table_of(text, "| page |")][:2] == ["Page 4", "Page 9"]
    assert len(table_of(text, "| page |")) == min(shown, 6)
    assert f"The {min(shown, 6)} pages with the most new passages, of 6 that changed:" in text


def test_no_change_is_a_report_without_pages(tmp_path: Path) -> None:
    manifest = run(tmp_path, BEFORE, BEFORE)
    assert (manifest.counts["encoded"], manifest.counts["taken_over"]) == (0, 18)
    assert open_artifact(str(tmp_path / "changes"), "changes").tables()[0][1] == 0
    assert "| page |" not in page_of(tmp_path)
    assert "18 of 18 passages were encoded before, 0 are new to the encoder." in page_of(tmp_path)


def test_equal_runs_give_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        monkeypatch.setenv("RALM_HOME", str(tmp_path / f"home{number}"))
        assert not run(tmp_path / str(number), BEFORE, AFTER).reused
    for name in (*FILES, "manifest.json"):
        one, other = (tmp_path / str(number) / "changes" / name for number in range(2))
        assert one.read_bytes() == other.read_bytes(), name
    assert run(tmp_path / "0", BEFORE, AFTER).reused


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("A | B", r"A \| B"),
        ("A\nB\r\n\tC", "A B C"),
        ("[x](javascript:y)", r"\[x\]\(javascript:y\)"),
        ("<b>&amp;", r"\<b\>\&amp;"),
        ("`a` *b* _c_ ~d~ \\", r"\`a\` \*b\* \_c\_ \~d\~ \\"),
        ("# 1. C++ - {x}!", r"\# 1\. C\+\+ \- \{x\}\!"),
        ("東京 → Ö", "東京 → Ö"),
    ],
)
def test_titles_are_no_markup(tmp_path: Path, title: str, shown: str) -> None:
    run(tmp_path, BEFORE, [*BEFORE, passage("70", "Text.", title=title)])
    assert table_of(page_of(tmp_path), "| page |") == [[shown, "added", "0", "1", "1", "0"]]


def test_the_page_names_wiki_and_date(tmp_path: Path) -> None:
    dump = Path(__file__).parents[2] / "data" / "dump.xml"
    for date in ("20240101", "20240201"):
        shutil.copyfile(dump, tmp_path / f"toywiki-{date}-pages-articles.xml")
        source = str(tmp_path / f"toywiki-{date}-pages-articles.xml")
        download(source=source, passages=str(tmp_path / date), config=DownloadConfig(workers=1))
    places = ["--previous", str(tmp_path / "20240101"), "--passages", str(tmp_path / "20240201")]
    assert run_stage(compare, [*places, "--changes", str(tmp_path / "changes"), "--config.max-pages", "3"]) == 0
    assert page_of(tmp_path).startswith("# Changes from toywiki 20240101 to toywiki 20240201\n")


def test_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="max_pages: expected 0 or more, found -1"):
        CompareConfig(max_pages=-1)
    write_passages(tmp_path / "before", BEFORE)
    with pytest.raises(ArtifactError, match="nowhere: no such artifact"):
        compare(previous=str(tmp_path / "before"), passages=str(tmp_path / "nowhere"), changes=str(tmp_path / "c"))
    damaged = {**BEFORE[0], "content_hash": "0" * 31}
    with pytest.raises(ArtifactError, match="after: content_hash: expected a sha256 in hexadecimal"):
        run(tmp_path, BEFORE, [damaged])
    assert not (tmp_path / "changes").exists()
