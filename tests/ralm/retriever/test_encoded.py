"""Vectors of an earlier index by the content of their passages."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ralm.artifacts.manifest import Artifact, open_artifact
from ralm.artifacts.schemas import PASSAGE_IDS as PASSAGE_IDS_SCHEMA
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import write_table
from ralm.errors import ArtifactError
from ralm.index.config import Storage
from ralm.index.matrix import create_matrix, to_storage
from ralm.index.search import PASSAGE_IDS
from ralm.retriever.encoded import EncodedPassages, open_encoded
from tests.corpora import passage, write_passages

FACTS = {"passage_encoder": "encoder", "dtype": "f16", "precision": "fp32"}
ROWS = [passage(str(page), f"Text {page} {number}.") for page in range(9) for number in range(3)]


def write_index(
    place: Path, ids: Sequence[int], passages: str, *, storage: Storage = "f16", **details: Any
) -> tuple[Artifact, np.ndarray]:
    """An `index` artifact with a row for each id, and its vectors."""
    vector_ND = to_storage(np.random.default_rng(3).normal(size=(len(ids), 6)), storage)

    def build(folder: Path) -> Contents:
        create_matrix(folder, storage, *vector_ND.shape)[:] = vector_ND
        write_table(folder / PASSAGE_IDS, pa.table({"passage_id": pa.array(ids, pa.int64())}), PASSAGE_IDS_SCHEMA)
        facts = {"dimension": 6, "storage": storage, "passages": passages, "passage_encoder": "encoder"}
        return Contents(rows={PASSAGE_IDS: len(ids)}, details={**facts, "precision": "fp32", **details})

    inputs = {"passages": passages, "ids": str(list(ids)), "details": str(details), "storage": storage}
    produce(str(place), kind="index", stage="toy", stage_version=1, inputs=inputs, config={}, build=build)
    return open_artifact(str(place), "index"), vector_ND


def ids_of(rows: Sequence[dict[str, Any]]) -> list[int]:
    return [row["passage_id"] for row in rows]


@pytest.mark.parametrize("sizes", [(100, 4096), (10, 4096), (10, 4), (1, 1)])
def test_a_vector_is_found_by_its_content(tmp_path: Path, sizes: tuple[int, int]) -> None:
    """However the table of the passages is cut into files and row groups."""
    passages = write_passages(tmp_path / "passages", ROWS, part_rows=sizes[0], group_rows=sizes[1])
    index, vector_ND = write_index(tmp_path / "index", ids_of(ROWS), passages.fingerprint)
    known = EncodedPassages(index, passages)
    moved = passage("77", ROWS[5]["text"], title=ROWS[5]["title"])
    renamed = passage(ROWS[6]["source_id"], ROWS[6]["text"], title="Another")
    new = passage("3", "Another text.")
    asked = [ROWS[20], moved, renamed, new, ROWS[0], ROWS[26], ROWS[20]]
    row_N = known.find(pa.chunked_array([[row["content_hash"] for row in asked]]))
    assert row_N.tolist() == [20, 5, -1, -1, 0, 26, 20]
    assert known.dimension == 6
    assert known.fingerprint == index.fingerprint
    found_ND = known.vectors(row_N[row_N >= 0])
    np.testing.assert_array_equal(found_ND, vector_ND[[20, 5, 0, 26, 20]])
    assert found_ND.dtype == np.float16
    found_ND[:] = 0  # a copy that may be written to
    np.testing.assert_array_equal(known.vectors(np.array([20])), vector_ND[[20]])


def test_equal_contents_have_one_vector(tmp_path: Path) -> None:
    rows = [passage("1", "Same.", title="T"), passage("2", "Same.", title="T")]
    passages = write_passages(tmp_path / "passages", rows)
    index, _ = write_index(tmp_path / "index", ids_of(rows), passages.fingerprint)
    assert EncodedPassages(index, passages).find(pa.chunked_array([[rows[1]["content_hash"]]])).tolist() == [0]


@pytest.mark.parametrize(
    "ids",
    [ids_of(ROWS)[::-1], [*ids_of(ROWS)[:-1], 5], ids_of(ROWS)[:-1], [*ids_of(ROWS), 5], ids_of(ROWS)[1:]],
    ids=["other order", "another id", "too few rows", "too many rows", "first row missing"],
)
def test_rows_that_are_not_those_of_the_passages_are_refused(tmp_path: Path, ids: list[int]) -> None:
    passages = write_passages(tmp_path / "passages", ROWS, group_rows=5)
    index, _ = write_index(tmp_path / "index", ids, passages.fingerprint)
    with pytest.raises(ArtifactError, match=r"index: its rows are not those of .*passages"):
        EncodedPassages(index, passages)


def test_a_damaged_hash_is_named(tmp_path: Path) -> None:
    passages = write_passages(tmp_path / "passages", [*ROWS, {**passage("50", "x"), "content_hash": "none"}])
    index, _ = write_index(tmp_path / "index", [*ids_of(ROWS), passage("50", "x")["passage_id"]], passages.fingerprint)
    with pytest.raises(ArtifactError, match="passages: content_hash: expected a sha256 in hexadecimal, found 'none'"):
        EncodedPassages(index, passages)


def test_an_index_of_other_passages_is_refused(tmp_path: Path) -> None:
    passages = write_passages(tmp_path / "passages", ROWS)
    other = write_passages(tmp_path / "other", ROWS[:5])
    write_index(tmp_path / "index", ids_of(ROWS), passages.fingerprint)
    assert open_encoded(str(tmp_path / "index"), str(tmp_path / "passages"), **FACTS) is not None
    with pytest.raises(
        ArtifactError, match=f"index: made from passages {passages.fingerprint}, but .*other is"
    ) as raised:
        open_encoded(str(tmp_path / "index"), str(tmp_path / "other"), **FACTS)
    assert other.fingerprint in str(raised.value)


@pytest.mark.parametrize(
    ("expected", "made", "message"),
    [
        ({"passage_encoder": "better"}, {}, "its passage encoder is encoder, here it is better"),
        ({"dtype": "f32"}, {}, "its number format is f16, here it is f32"),
        ({}, {"storage": "bf16"}, "its number format is bf16, here it is f16"),
        ({"precision": "bf16"}, {}, "its precision is fp32, here it is bf16"),
        ({}, {"precision": "unknown"}, "its precision is unknown, here it is fp32"),
    ],
)
def test_vectors_that_cannot_stand_for_new_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, expected: dict[str, str], made: dict[str, Any], message: str
) -> None:
    passages = write_passages(tmp_path / "passages", ROWS)
    write_index(tmp_path / "index", ids_of(ROWS), passages.fingerprint, **made)
    places = str(tmp_path / "index"), str(tmp_path / "passages")
    assert open_encoded(*places, **{**FACTS, **expected}) is None
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage() == f"{places[0]}: {message}; every passage is encoded"


@pytest.mark.parametrize("missing", ["index", "passages"])
def test_unfinished_inputs(tmp_path: Path, missing: str) -> None:
    passages = write_passages(tmp_path / "passages", ROWS)
    write_index(tmp_path / "index", ids_of(ROWS), passages.fingerprint)
    (tmp_path / missing / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=f"{missing}: unfinished"):
        open_encoded(str(tmp_path / "index"), str(tmp_path / "passages"), **FACTS)
