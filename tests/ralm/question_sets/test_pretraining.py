"""Pretraining questions from passages: every passage in exactly one split, shuffled, in bounded pieces."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ralm.artifacts.manifest import Artifact, open_artifact
from ralm.artifacts.schemas import PASSAGES
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import read_table, write_table
from ralm.errors import ConfigError, DataError
from ralm.question_sets import pretraining
from ralm.question_sets.pretraining import parse_source, shuffled_places, write_pretraining


def passages(folder: Path, *sizes: int, **columns: list[object]) -> Artifact:
    """A corpus in parts of these sizes."""
    total = sum(sizes)
    rows = [
        {
            "passage_id": 1000 + number,
            "source_id": str(number),
            "page_id": number,
            "revision_id": None,
            "title": f"Title {number}",
            "section": "",
            "text": f"text {number}",
            "kind": "text",
            "position": 0,
            "content_hash": "",
            **{name: values[number] for name, values in columns.items()},
        }
        for number in range(total)
    ]

    def build(work: Path) -> Contents:
        counts, start = {}, 0
        for part, size in enumerate(sizes):
            counts[f"part-{part:05d}.parquet"] = write_table(
                work / f"part-{part:05d}.parquet", rows[start : start + size], PASSAGES
            )
            start += size
        return Contents(rows=counts, counts={"passages": total})

    place = str(folder / f"corpus-{'-'.join(map(str, sizes))}")
    produce(
        place,
        kind="passages",
        stage="test",
        stage_version=1,
        inputs={},
        config={"sizes": sizes, **columns},
        build=build,
    )
    return open_artifact(place, "passages")


def write(folder: Path, corpus: Artifact, task: str = "mlm", **changed: object) -> dict[str, list[dict[str, object]]]:
    settings = {"num_test": 10, "num_dev": 10, "seed": 0, "infoboxes": True, **changed}
    folder.mkdir()
    rows, counts = write_pretraining(folder, corpus, task, **settings)  # type: ignore[arg-type]
    assert counts["questions"] == sum(rows.values())
    assert sorted(path.name for path in folder.iterdir()) == sorted(rows), "work files are left"
    tables = {name.removesuffix(".parquet"): read_table(str(folder / name), "questions/1").to_pylist() for name in rows}
    assert {f"{split}.parquet": len(table) for split, table in tables.items()} == rows
    return tables


def ids(tables: dict[str, list[dict[str, object]]]) -> dict[str, list[object]]:
    return {split: [row["question_id"] for row in table] for split, table in tables.items()}


@pytest.mark.parametrize("block_rows", [7, 64, 1 << 17])
def test_no_passage_is_in_two_splits_and_none_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    monkeypatch.setattr(pretraining, "BLOCK_ROWS", block_rows)
    found = ids(write(tmp_path / "q", passages(tmp_path, 30, 1, 69)))
    assert {split: len(names) for split, names in found.items()} == {"test": 10, "dev": 10, "train": 80}
    everything = [name for names in found.values() for name in names]
    assert sorted(everything) == sorted(str(1000 + number) for number in range(100))
    assert found["train"] != sorted(found["train"]), "train is not shuffled"


def test_the_order_is_that_of_the_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ids(write(tmp_path / "a", passages(tmp_path, 100)))
    monkeypatch.setattr(pretraining, "BLOCK_ROWS", 9)
    assert ids(write(tmp_path / "b", passages(tmp_path, 40, 60))) == first
    assert ids(write(tmp_path / "c", passages(tmp_path, 100), seed=1)) != first
    permutation = np.random.default_rng(0).permutation(100)
    expected = [str(1000 + int(number)) for number in np.argsort(permutation)]
    assert first["test"] + first["dev"] + first["train"] == expected


@given(sizes=st.tuples(st.integers(0, 5), st.integers(0, 5)), keep=st.lists(st.booleans(), min_size=12, max_size=40))
def test_places_number_the_eligible_rows(sizes: tuple[int, int], keep: list[bool]) -> None:
    place_N = shuffled_places(np.array(keep), seed=sum(sizes))
    assert sorted(place_N[np.array(keep)]) == list(range(sum(keep)))
    assert (place_N[~np.array(keep)] == -1).all()


def test_rows_are_those_of_the_task(tmp_path: Path) -> None:
    corpus = passages(tmp_path, 30, section=["History" if number % 2 else "" for number in range(30)])
    row = write(tmp_path / "a", corpus, "lm", num_test=1, num_dev=1)["test"][0]
    number = int(str(row["question_id"])) - 1000
    assert row["question"] == f"text {number}"
    assert row["source_id"] == str(1000 + number), "the own passage must not be retrieved"
    assert (row["task"], row["answers"], row["target"]) == ("lm", [], None)
    metadata = json.loads(str(row["metadata"]))
    assert metadata == {
        "dataset": "corpus:lm",
        "section": "History" if number % 2 else "",
        "title": f"Title {number}",
    }


def test_passages_without_text_or_section_are_left_out(tmp_path: Path) -> None:
    corpus = passages(
        tmp_path,
        8,
        text=["x", "", " \n", "y", "z", "u", "v", "w"],
        section=["s", "s", "s", "", " ", "s", "s", "s"],
        title=["t"] * 5 + ["", "t", "t"],
        kind=["text"] * 7 + ["infobox"],
    )
    sizes = {"num_test": 1, "num_dev": 0}
    for task, infoboxes, expected in (
        ("mlm", True, "034567"),
        ("section", True, "067"),
        ("section", False, "06"),
    ):
        tables = ids(write(tmp_path / f"{task}-{infoboxes}", corpus, task, infoboxes=infoboxes, **sizes))
        found = sorted(str(int(str(name)) - 1000) for names in tables.values() for name in names)
        assert "".join(found) == expected


def test_splits_may_be_empty_but_not_too_large(tmp_path: Path) -> None:
    corpus = passages(tmp_path, 12)
    assert set(write(tmp_path / "a", corpus, num_test=0, num_dev=2)) == {"dev", "train"}
    with pytest.raises(DataError, match=r"12 passages can be asked about, expected over num_test \+ num_dev = 12"):
        write(tmp_path / "b", corpus, num_test=6, num_dev=6)


def test_sources() -> None:
    assert [parse_source(f"corpus:{task}") for task in ("mlm", "lm", "section")] == ["mlm", "lm", "section"]
    with pytest.raises(ConfigError, match="corpus:clm: expected one of corpus:mlm, corpus:lm, corpus:section"):
        parse_source("corpus:clm")
