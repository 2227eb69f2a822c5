"""Pages taken over from an earlier `passages` artifact: the files are those of a run without it, to the byte."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest

from components.download.config import DownloadConfig
from components.download.stage import download
from ralm.artifacts.manifest import open_artifact
from ralm.corpus import parallel
from ralm.errors import ArtifactError, ConfigError

WORDS = ["river", "stone", "winter", "lamp", "green", "market", "north", "copper", "bridge", "of", "the", "a", "in"]


@dataclasses.dataclass(frozen=True)
class Page:
    page_id: int
    revision_id: int | None
    title: str
    text: str
    older: tuple[tuple[int, str], ...] = ()
    """Revision ids and texts of a history dump."""


def prose(seed: int, words: int) -> str:
    generator = random.Random(seed)
    sentences = []
    while words > 0:
        size = generator.randint(5, 25)
        sentences.append(" ".join(generator.choices(WORDS, k=size)).capitalize() + f" {seed}.")
        words -= size + 1
    return " ".join(sentences)


def make_page(number: int, *, words: int = 300, revision_id: int | None = -1) -> Page:
    box = "{{Infobox place\n| name = Place\n| number = " + str(number) + "\n}}\n"
    text = f"{box}{prose(number, words)}\n== History ==\nA [[lamp|light]] & <b>more</b>. {prose(-number - 1, words)}"
    return Page(number, 1000 + number if revision_id == -1 else revision_id, f"Page {number}", text)


def write_dump(path: Path, pages: Iterable[Page], *, file_name: str = "File") -> Path:
    parts = [
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="en"><siteinfo>'
        f'<namespaces><namespace key="0" /><namespace key="6">{file_name}</namespace></namespaces></siteinfo>\n'
    ]
    for page in pages:
        parts.append(f"<page><title>{escape(page.title)}</title><ns>0</ns><id>{page.page_id}</id>")
        for revision_id, text in [*page.older, (page.revision_id, page.text)]:
            number = "" if revision_id is None else f"<id>{revision_id}</id>"
            parts.append(
                f"<revision>{number}<contributor><id>7</id></contributor><text>{escape(text)}</text></revision>"
            )
        parts.append("</page>\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join([*parts, "</mediawiki>"]))
    return path


@pytest.fixture
def cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a `passages` artifact of a dump, each in a store of its own, so that none is reused whole."""
    homes = iter(range(1000))

    def run(source: Path, name: str, previous: Path | str = "", **settings: Any) -> Path:
        monkeypatch.setenv("RALM_HOME", str(tmp_path / f"home-{next(homes)}"))
        config = DownloadConfig(**{"workers": 1, **settings})
        download(source=str(source), passages=str(tmp_path / name), previous=str(previous), config=config)
        return tmp_path / name

    return run


def taken_over(passages: Path) -> int:
    return int(json.loads((passages / "timings.json").read_text())["pages_taken_over"])


def assert_same_files(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert "manifest.json" in names
    for name in names:
        if name != "timings.json":
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def num_taken_over(
    cut: Callable[..., Path], tmp_path: Path, before: Sequence[Page], after: Sequence[Page], **settings: Any
) -> int:
    """Cuts the later dump with and without the earlier one; the files are equal, and so many pages were taken over."""
    old = cut(write_dump(tmp_path / "old" / "dump.xml", before), "old-passages")
    dump = write_dump(tmp_path / "new" / "dump.xml", after)
    plain = cut(dump, "plain", **settings)
    assert taken_over(plain) == 0
    reused = cut(dump, "reused", old, **settings)
    assert_same_files(plain, reused)
    return taken_over(reused)


PAGES = [make_page(number) for number in range(1, 9)]
OTHER_TEXT = dataclasses.replace(PAGES[2], revision_id=5000, text=PAGES[2].text.replace("winter", "summer"))
CASES = {
    "unchanged": (PAGES, 8),
    "changed": ([*PAGES[:2], OTHER_TEXT, *PAGES[3:]], 7),
    "new revision, same text": ([*PAGES[:2], dataclasses.replace(PAGES[2], revision_id=5000), *PAGES[3:]], 7),
    "renamed": ([dataclasses.replace(PAGES[0], title="Another"), *PAGES[1:]], 7),
    "deleted": ([*PAGES[:3], *PAGES[5:]], 6),
    "added": ([*PAGES[:3], make_page(50), *PAGES[3:], make_page(51)], 8),
    "reordered": ([PAGES[number] for number in (5, 0, 7, 6, 2, 1, 3, 4)], 8),
    "other id": ([*PAGES[1:], dataclasses.replace(PAGES[0], page_id=70)], 7),
    "no revision id": ([dataclasses.replace(PAGES[0], revision_id=None), *PAGES[1:]], 7),
    "became a redirect": (
        [dataclasses.replace(PAGES[0], revision_id=5000, text="#REDIRECT [[Page 2]]"), *PAGES[1:]],
        7,
    ),
    "twice": ([*PAGES, PAGES[3]], 8),
    "an empty page": ([*PAGES, Page(60, 1060, "Empty", "")], 8),
    "nothing in common": ([make_page(number) for number in range(100, 104)], 0),
}


@pytest.mark.parametrize("case", CASES)
def test_pages_of_the_earlier_dump_are_taken_over(cut: Callable[..., Path], tmp_path: Path, case: str) -> None:
    after, expected = CASES[case]
    assert num_taken_over(cut, tmp_path, PAGES, after) == expected


def test_pages_without_a_revision_id_are_never_taken_over(cut: Callable[..., Path], tmp_path: Path) -> None:
    pages = [make_page(1, revision_id=None), make_page(2), make_page(3, revision_id=None)]
    assert num_taken_over(cut, tmp_path, pages, pages) == 1
    wrong = [dataclasses.replace(page, revision_id=-1) for page in pages]
    assert num_taken_over(cut, tmp_path, pages, wrong) == 0


@pytest.mark.parametrize(
    ("last", "expected"), [((1002, PAGES[1].text), 8), ((5000, "All of it is new. Nothing stayed."), 7)]
)
def test_of_a_history_dump_the_last_revision_decides(
    cut: Callable[..., Path], tmp_path: Path, last: tuple[int, str], expected: int
) -> None:
    older = ((900, "An older text."), (1002, PAGES[1].text), (1500, "A text in between."))
    page = Page(2, last[0], "Page 2", last[1], older)
    assert num_taken_over(cut, tmp_path, PAGES, [PAGES[0], page, *PAGES[2:]]) == expected


def test_the_history_may_be_in_the_earlier_dump(cut: Callable[..., Path], tmp_path: Path) -> None:
    history = [dataclasses.replace(page, older=((page.page_id, "Old text."),)) for page in PAGES]
    assert num_taken_over(cut, tmp_path, history, PAGES) == 8


def test_a_dump_that_takes_over_can_be_taken_over(cut: Callable[..., Path], tmp_path: Path) -> None:
    first = cut(write_dump(tmp_path / "1" / "dump.xml", PAGES), "first")
    dump = write_dump(tmp_path / "2" / "dump.xml", CASES["changed"][0])
    second = cut(dump, "second", first)
    assert taken_over(cut(dump, "third", second)) == 8
    assert_same_files(second, tmp_path / "third")


@pytest.mark.parametrize("workers", [1, 2])
def test_more_rows_than_are_read_at_a_time(
    cut: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Several parts and row groups; batches, and so what is written at a time, differ from those of a plain run."""
    pools = []

    def start(*args: Any, **settings: Any) -> ProcessPoolExecutor:
        pools.append(ProcessPoolExecutor(*args, **settings))
        return pools[-1]

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", start)
    monkeypatch.setattr("ralm.corpus.build.PART_ROWS", 6000)
    pages = [make_page(number, words=90) for number in range(3200)]
    after = [
        dataclasses.replace(page, revision_id=9000 + page.page_id) if page.page_id % 7 == 0 else page for page in pages
    ]
    after[100:200] = [make_page(number, words=200) for number in range(5000, 5050)]
    after[2500], after[10] = after[10], after[2500]
    expected = len({page.page_id for page in after if page in pages})
    assert num_taken_over(cut, tmp_path, pages, after, workers=workers) == expected
    assert len(list((tmp_path / "reused").glob("part-*"))) == 2
    assert len(pools) == 2 * (workers - 1)


def test_a_folder_of_dumps(cut: Callable[..., Path], tmp_path: Path) -> None:
    for folder, last in (("old", PAGES[7]), ("new", dataclasses.replace(PAGES[7], revision_id=77))):
        write_dump(tmp_path / folder / "dump1.xml", PAGES[:4])
        write_dump(tmp_path / folder / "dump2.xml", [*PAGES[4:7], last])
    old, plain = cut(tmp_path / "old", "a"), cut(tmp_path / "new", "b")
    reused = cut(tmp_path / "new", "c", old)
    assert_same_files(plain, reused)
    assert taken_over(reused) == 7


def test_a_page_in_two_revisions_is_cleaned_again(cut: Callable[..., Path], tmp_path: Path) -> None:
    """The last page of one file of a folder is the first of the next, in another revision."""
    write_dump(tmp_path / "old" / "dump1.xml", PAGES[:3])
    write_dump(tmp_path / "old" / "dump2.xml", [Page(3, 4000, "Page 3", "Not one word is the same."), *PAGES[3:]])
    old = cut(tmp_path / "old", "a")
    dump = write_dump(tmp_path / "new" / "dump.xml", PAGES)
    plain, reused = cut(dump, "b"), cut(dump, "c", old)
    assert_same_files(plain, reused)
    assert taken_over(reused) == 7


def test_other_namespaces_clean_otherwise(cut: Callable[..., Path], tmp_path: Path) -> None:
    pages = [dataclasses.replace(page, text=f"[[Picture gallery:X|Seen]] {page.text}") for page in PAGES]
    old = cut(write_dump(tmp_path / "old" / "dump.xml", pages), "a")
    dump = write_dump(tmp_path / "new" / "dump.xml", pages, file_name="Picture gallery")
    plain, reused = cut(dump, "b"), cut(dump, "c", old)
    assert_same_files(plain, reused)
    assert taken_over(reused) == 0
    assert (old / "part-00000.parquet").read_bytes() != (reused / "part-00000.parquet").read_bytes()


def test_a_folder_of_several_wikis_is_not_taken_over(cut: Callable[..., Path], tmp_path: Path) -> None:
    first, second = [make_page(1)], [make_page(2)]
    write_dump(tmp_path / "old" / "a.xml", first, file_name="Datei")
    write_dump(tmp_path / "old" / "b.xml", second)
    old = cut(tmp_path / "old", "of-old")
    assert open_artifact(str(old), "passages").manifest.details["site"] == "several"
    new = write_dump(tmp_path / "new.xml", [*first, *second])
    taking_over = cut(new, "taking-over", previous=old)
    assert taken_over(taking_over) == 0
    assert_same_files(taking_over, cut(new, "whole"))


def test_repeated_passages_of_the_earlier_dump_prevent_it(cut: Callable[..., Path], tmp_path: Path) -> None:
    assert num_taken_over(cut, tmp_path, [*PAGES, PAGES[0]], PAGES) == 0
    assert open_artifact(str(tmp_path / "old-passages"), "passages").manifest.counts["repeated_passages"] > 0


@pytest.mark.parametrize("settings", [{"passage_words": 60}, {"infoboxes": False}, {"max_passages": 11}])
def test_with_other_settings_every_page_is_cleaned(
    cut: Callable[..., Path], tmp_path: Path, settings: dict[str, Any]
) -> None:
    assert num_taken_over(cut, tmp_path, PAGES, PAGES, **settings) == 0


def test_the_first_passages_of_a_corpus_are_not_taken_over(cut: Callable[..., Path], tmp_path: Path) -> None:
    dump = write_dump(tmp_path / "old" / "dump.xml", PAGES)
    old = cut(dump, "a", max_passages=11)
    new = write_dump(tmp_path / "new" / "dump.xml", PAGES)
    assert_same_files(cut(new, "b"), cut(new, "c", old))
    assert_same_files(cut(new, "d", max_passages=11), cut(new, "e", old, max_passages=11))
    assert taken_over(tmp_path / "c") == taken_over(tmp_path / "e") == 0


def test_a_format_that_was_told_is_the_one_that_was_found(cut: Callable[..., Path], tmp_path: Path) -> None:
    old = cut(write_dump(tmp_path / "old" / "dump.xml", PAGES), "a", format="wikimedia")
    assert taken_over(cut(write_dump(tmp_path / "new" / "dump.xml", PAGES), "b", old)) == 8


def test_what_other_code_made_is_not_taken_over(
    cut: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = cut(write_dump(tmp_path / "old" / "dump.xml", PAGES), "a")
    monkeypatch.setattr("components.download.stage.STAGE_VERSION", 1000)
    dump = write_dump(tmp_path / "new" / "dump.xml", PAGES)
    assert_same_files(cut(dump, "b"), cut(dump, "c", old))
    assert taken_over(tmp_path / "c") == 0


def test_a_corpus_of_another_kind_has_no_pages(cut: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text(json.dumps({"id": "1", "title": "Page 1", "text": "Some text."}) + "\n")
    old = cut(tmp_path / "old.jsonl", "a")
    dump = write_dump(tmp_path / "new" / "dump.xml", PAGES)
    assert_same_files(cut(dump, "b"), cut(dump, "c", old))
    assert taken_over(tmp_path / "c") == 0
    assert taken_over(cut(tmp_path / "old.jsonl", "d", tmp_path / "c")) == 0


def test_another_artifact_in_the_same_folder_is_read_anew(cut: Callable[..., Path], tmp_path: Path) -> None:
    """What one run has read of the earlier pages is not there for the next, though the folder has the same name."""
    for number in range(2):
        pages = [make_page(page, words=300 + 100 * number) for page in range(1 + number, 9 + number)]
        old = cut(write_dump(tmp_path / f"old{number}" / "dump.xml", pages), "old")
        dump = write_dump(tmp_path / f"new{number}" / "dump.xml", pages)
        assert_same_files(cut(dump, f"plain{number}"), cut(dump, f"reused{number}", old))
        assert taken_over(tmp_path / f"reused{number}") == 8


def test_previous_is_a_finished_corpus(cut: Callable[..., Path], tmp_path: Path) -> None:
    dump = write_dump(tmp_path / "dump.xml", PAGES)
    with pytest.raises(ArtifactError, match="no such artifact"):
        cut(dump, "a", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="--previous goes with --passages, found --questions"):
        download(source="corpus:mlm", questions=str(tmp_path / "q"), previous=str(tmp_path))
