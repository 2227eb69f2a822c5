"""What changed from one corpus to another: every state by hand, and an oracle made of dictionaries."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ralm.artifacts.schemas import PAGE_CHANGES
from ralm.corpus.changes import PAGE_STATES, PASSAGE_STATES, CorpusRows, compare_corpora, read_corpus
from tests.corpora import Row, passage, write_passages

OTTER = [passage("1", text, title="Otter", revision_id=10) for text in ("Otters swim.", "Otters eat fish.")]
WILLOW = [passage("2", text, title="Willow", revision_id=20) for text in ("Willows grow.", "They need water.")]
STONE = [passage("3", "Stones lie.", title="Stone", revision_id=30)]
BEFORE = [*OTTER, *WILLOW, *STONE]


def read(folder: Path, rows: Sequence[Row], **sizes: int) -> CorpusRows:
    return read_corpus(write_passages(folder, rows, **sizes))


def compare(folder: Path, before: Sequence[Row], after: Sequence[Row]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    table, totals = compare_corpora(read(folder / "before", before), read(folder / "after", after))
    assert table.schema.equals(PAGE_CHANGES, check_metadata=True)
    return table.to_pylist(), totals


def with_title(rows: Iterable[Row], title: str, revision_id: int | None = 99) -> list[dict[str, Any]]:
    return [passage(row["source_id"], row["text"], title=title, revision_id=revision_id) for row in rows]


def numbers(row: Row) -> dict[str, int]:
    """The numbers of a page that are not zero."""
    found = {name: row[f"passages_{name}"] for name in ("before", "after", *PASSAGE_STATES)}
    return {name: number for name, number in found.items() if number}


CASES: dict[str, tuple[list[dict[str, Any]], dict[str, tuple[str, dict[str, int]]], tuple[int, int]]] = {
    "changed": (
        [OTTER[0], passage("1", "Otters play.", title="Otter", revision_id=11), *WILLOW, *STONE],
        {"1": ("changed", {"before": 2, "after": 2, "unchanged": 1, "added": 1, "removed": 1})},
        (4, 1),
    ),
    "a passage more": (
        [*OTTER, passage("1", "Otters play.", title="Otter", revision_id=11), *WILLOW, *STONE],
        {"1": ("changed", {"before": 2, "after": 3, "unchanged": 2, "added": 1})},
        (5, 1),
    ),
    "a passage less": (
        [*OTTER[:1], *WILLOW, *STONE],
        {"1": ("changed", {"before": 2, "after": 1, "unchanged": 1, "removed": 1})},
        (4, 0),
    ),
    "renamed": (
        [*with_title(OTTER, "Lutra"), *WILLOW, *STONE],
        {"1": ("renamed", {"before": 2, "after": 2, "retitled": 2})},
        (3, 2),
    ),
    "changed and renamed": (
        [*with_title(OTTER[:1], "Lutra"), passage("1", "They play.", title="Lutra"), *WILLOW, *STONE],
        {"1": ("changed", {"before": 2, "after": 2, "retitled": 1, "added": 1, "removed": 1})},
        (3, 2),
    ),
    "added": (
        [*BEFORE, passage("4", "Rain falls.", title="Rain", revision_id=40)],
        {"4": ("added", {"after": 1, "added": 1})},
        (5, 1),
    ),
    "removed": ([*OTTER, *STONE], {"2": ("removed", {"before": 2, "removed": 2})}, (3, 0)),
    "moved to another id": (
        [*OTTER, *STONE, *(passage("9", row["text"], title="Willow", revision_id=90) for row in WILLOW)],
        {"9": ("added", {"after": 2, "moved": 2}), "2": ("removed", {"before": 2, "removed": 2})},
        (5, 0),
    ),
    "moved to another page of the same title": (
        [*OTTER, *WILLOW, passage("1", "Stones lie.", title="Stone")],
        {
            "1": ("changed", {"before": 2, "after": 3, "unchanged": 2, "moved": 1}),
            "3": ("removed", {"before": 1, "removed": 1}),
        },
        (5, 0),
    ),
    "two pages that swap their titles": (
        [*with_title(OTTER, "Willow"), *with_title(WILLOW, "Otter"), *STONE],
        {
            "1": ("renamed", {"before": 2, "after": 2, "retitled": 2}),
            "2": ("renamed", {"before": 2, "after": 2, "retitled": 2}),
        },
        (1, 4),
    ),
    "a new revision with the same text": ([{**row, "revision_id": 77} for row in BEFORE], {}, (5, 0)),
    "another order": ([*STONE, *WILLOW[::-1], *OTTER], {}, (5, 0)),
    "nothing": (BEFORE, {}, (5, 0)),
}


@pytest.mark.parametrize("case", CASES)
def test_each_state(tmp_path: Path, case: str) -> None:
    after, expected, (taken_over, encoded) = CASES[case]
    rows, totals = compare(tmp_path, BEFORE, after)
    assert {row["source_id"]: (row["state"], numbers(row)) for row in rows} == expected
    assert (totals["passages"]["taken_over"], totals["passages"]["encoded"]) == (taken_over, encoded)
    states = Counter(state for state, _ in expected.values())
    assert {name: totals["pages"][name] for name in PAGE_STATES if name != "unchanged"} == {
        name: states[name] for name in PAGE_STATES if name != "unchanged"
    }
    assert totals["pages"]["changed_and_renamed"] == int(case == "changed and renamed")


def test_titles_and_revisions_of_both_sides(tmp_path: Path) -> None:
    new = passage("4", "Rain falls.", title="Rain", revision_id=40)
    rows, _ = compare(tmp_path, BEFORE, [new, *with_title(OTTER, "Lutra"), *STONE])
    columns = ("source_id", "title_before", "title_after", "revision_before", "revision_after")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("4", None, "Rain", None, 40),
        ("1", "Otter", "Lutra", 10, 99),
        ("2", "Willow", None, 20, None),
    ]


def test_a_page_in_several_stretches_is_one_page(tmp_path: Path) -> None:
    """As where infoboxes come in a file of their own."""
    box = passage("1", "length: 1 m", title="Otter")
    rows, totals = compare(tmp_path, [*BEFORE, box], [*BEFORE, passage("1", "length: 2 m", title="Otter")])
    assert [(row["source_id"], row["state"], numbers(row)) for row in rows] == [
        ("1", "changed", {"before": 3, "after": 3, "unchanged": 2, "added": 1, "removed": 1})
    ]
    assert (totals["pages"]["before"], totals["pages"]["after"]) == (3, 3)


def test_one_stretch_under_another_title(tmp_path: Path) -> None:
    """The page keeps its name, but the encoder reads one passage anew: the page is listed."""
    box = passage("1", "length: 1 m", title="Otter")
    rows, totals = compare(tmp_path, [*BEFORE, box], [*BEFORE, *with_title([box], "Lutra")])
    assert [(row["source_id"], row["state"], numbers(row)) for row in rows] == [
        ("1", "unchanged", {"before": 3, "after": 3, "unchanged": 2, "retitled": 1})
    ]
    assert totals["pages"]["unchanged"] == 3


def test_a_new_title_that_another_page_had(tmp_path: Path) -> None:
    """The text under the new title was encoded before, for another page: retitled, and taken over."""
    twin = passage("8", "Otters swim.", title="Lutra")
    _, totals = compare(tmp_path, [*OTTER, twin], with_title(OTTER, "Lutra"))
    assert totals["passages"]["retitled"] == 2
    assert (totals["passages"]["taken_over"], totals["passages"]["encoded"]) == (1, 1)


@pytest.mark.parametrize("sizes", [(100, 4096), (3, 4096), (100, 2), (1, 1)])
def test_a_corpus_reads_the_same_however_it_is_cut(tmp_path: Path, sizes: tuple[int, int]) -> None:
    rows = [*OTTER, *STONE, *WILLOW, passage("1", "length: 1 m", title="Other")]
    corpus = read(tmp_path / "passages", rows, part_rows=sizes[0], group_rows=sizes[1])
    assert corpus.ids.tolist() == [row["passage_id"] for row in rows]
    assert corpus.keys.tolist() == [[int(row["content_hash"][at : at + 16], 16) for at in (0, 16)] for row in rows]
    assert corpus.page_of.tolist() == [0, 0, 1, 2, 2, 0]
    assert corpus.pages.to_pylist() == [
        {"source_id": page, "page_id": int(page), "revision_id": int(page) * 10, "title": title}
        for page, title in (("1", "Otter"), ("3", "Stone"), ("2", "Willow"))
    ]


SECTIONS, TITLES, TEXTS = ["", "A"], ["T", "U", "V"], [f"Text {number}." for number in range(6)]


@st.composite
def corpora(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Pages in one or two stretches; titles and texts from few, so that all kinds of coincidence occur."""
    rows: dict[int, dict[str, Any]] = {}
    stretches = draw(st.lists(st.tuples(st.integers(1, 5), st.sampled_from(TITLES)), min_size=1, max_size=8))
    for page, title in stretches:
        for text in draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4, unique=True)):
            row = passage(str(page), text, title=title, section=draw(st.sampled_from(SECTIONS)), revision_id=page)
            rows.setdefault(row["passage_id"], row)  # ids are different within a corpus
    return list(rows.values())


def oracle(before: Sequence[Row], after: Sequence[Row]) -> tuple[dict[str, tuple[str, dict[str, int]]], Counter[str]]:
    """State and numbers of each page that is not the same, and the totals of the passages."""
    old_content = {row["passage_id"]: row["content_hash"] for row in before}
    new_ids = {row["passage_id"] for row in after}
    pages: dict[str, Counter[str]] = {row["source_id"]: Counter() for row in [*before, *after]}
    titles: dict[str, dict[str, str]] = {"before": {}, "after": {}}
    totals: Counter[str] = Counter()
    for row in before:
        titles["before"].setdefault(row["source_id"], row["title"])
        pages[row["source_id"]]["before"] += 1
        pages[row["source_id"]]["removed"] += row["passage_id"] not in new_ids
    for row in after:
        titles["after"].setdefault(row["source_id"], row["title"])
        is_known = row["content_hash"] in old_content.values()
        if row["passage_id"] in old_content:
            state = "unchanged" if old_content[row["passage_id"]] == row["content_hash"] else "retitled"
        else:
            state = "moved" if is_known else "added"
        pages[row["source_id"]].update(["after", state])
        totals["taken_over"] += is_known
    found = {}
    for page, counts in pages.items():
        totals.update(counts)
        old, new = (titles[side].get(page) for side in ("before", "after"))
        if old is None or new is None:
            state = "added" if old is None else "removed"
        elif counts["added"] or counts["moved"] or counts["removed"]:
            state = "changed"
        else:
            state = "renamed" if old != new else "unchanged"
        if state != "unchanged" or counts["retitled"]:
            found[page] = (state, {name: number for name, number in counts.items() if number})
    return found, totals


@settings(max_examples=100, deadline=None)
@given(corpora(), corpora(), st.sampled_from([(100, 100), (3, 2), (1, 1)]))
def test_random_corpora(before: list[dict[str, Any]], after: list[dict[str, Any]], sizes: tuple[int, int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = functools.partial(read, part_rows=sizes[0], group_rows=sizes[1])
        table, totals = compare_corpora(place(Path(folder, "a"), before), place(Path(folder, "b"), after))
    expected, expected_totals = oracle(before, after)
    rows = table.to_pylist()
    assert {row["source_id"]: (row["state"], numbers(row)) for row in rows} == expected
    passages, pages = totals["passages"], totals["pages"]
    assert {name: passages[name] for name in passages if name != "encoded"} == {
        name: expected_totals[name] for name in passages if name != "encoded"
    }
    assert passages["after"] == passages["taken_over"] + passages["encoded"]
    assert passages["after"] == sum(passages[name] for name in ("unchanged", "retitled", "moved", "added"))
    assert passages["before"] == sum(passages[name] for name in ("unchanged", "retitled", "removed"))
    assert pages["after"] == sum(pages[name] for name in ("unchanged", "renamed", "changed", "added"))
    assert pages["before"] == sum(pages[name] for name in ("unchanged", "renamed", "changed", "removed"))
    assert pages["before"] == len({row["source_id"] for row in before})
    order = list(dict.fromkeys(row["source_id"] for row in [*after, *before]))
    assert [row["source_id"] for row in rows] == sorted((row["source_id"] for row in rows), key=order.index)
    states = Counter(row["state"] for row in rows)
    assert all(states[name] == pages[name] for name in PAGE_STATES if name != "unchanged")
