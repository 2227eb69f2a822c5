"""Vectors of an approximate index in an object store: fetched for the candidates of a search, not whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from components.index.config import IndexConfig
from components.index.stage import index
from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.schemas import embeddings_schema
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import write_table
from ralm.errors import ArtifactError, StorageDownError
from ralm.index import rows_on_demand, search
from ralm.index.rows_on_demand import RowsOnDemand
from ralm.retriever.vectors import binary_column
from tests.s3_proxy import S3Proxy

N, D = 6000, 64


@pytest.fixture
def place(tmp_path: Path, s3: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> str:
    """An ivf_sq8 index in the store."""
    monkeypatch.setattr(search, "WHOLE_MATRIX_BYTES", 0)
    monkeypatch.setattr(rows_on_demand, "BLOCK_BYTES", 4 * D * 2)
    vector_ND = np.random.default_rng(0).normal(size=(N, D)).astype(np.float16)

    def build(work: Path) -> Contents:
        table = pa.table({"passage_id": np.arange(N) * 7, "vector": binary_column(vector_ND, "f16")})
        write_table(work / "shard.parquet", table, embeddings_schema(D, "f16", "e" * 64))
        facts = {"passages": "p" * 64, "passage_encoder": "e" * 64, "dimension": D, "dtype": "f16"}
        return Contents(rows={"shard.parquet": N}, details={**facts, "shard": 0, "num_shards": 1})

    produce(str(tmp_path / "e"), kind="embeddings", stage="t", stage_version=1, inputs={}, config={}, build=build)
    config = IndexConfig(kind="ivf_sq8", nlist=32, nprobe=8, rerank=20, num_probes=10)
    index(embeddings=str(tmp_path / "e"), index=str(tmp_path / "index"), config=config)
    return str(tmp_path / "index")


def test_a_search_fetches_its_candidates_and_finds_the_same(
    place: str, s3: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    question_BD = np.random.default_rng(1).normal(size=(3, D)).astype(np.float32)
    s3.requests.clear()
    opened = search.open_index(place, passage_encoder="e" * 64)
    found = opened.search(question_BD, 10)
    assert 3 * 10 * D * 2 <= s3.got_bytes("matrix.npy") < N * D * 2 / 10
    seen = len(s3.requests)
    np.testing.assert_array_equal(opened.search(question_BD, 10).rows, found.rows)
    assert len(s3.requests) == seen  # they are kept
    monkeypatch.setattr(search, "WHOLE_MATRIX_BYTES", 1 << 30)
    whole = search.open_index(place, passage_encoder="e" * 64)
    for one, other in zip(found, whole.search(question_BD, 10), strict=True):
        np.testing.assert_array_equal(one, other)
    rows = np.array([[0, 17], [N - 1, 5999]])
    np.testing.assert_array_equal(opened.vectors(rows), whole.vectors(rows))
    everything = np.arange(N)
    np.testing.assert_array_equal(opened.vectors(everything), whole.vectors(everything))


def test_a_part_shares_what_was_fetched(place: str, s3: S3Proxy) -> None:
    artifact = open_artifact(place, "index")
    matrix_ND = RowsOnDemand(artifact.file("matrix.npy"), N, D)
    part_ND = matrix_ND.part(slice(1000, 2000))
    assert (len(part_ND), part_ND.shape) == (1000, (1000, D))
    row_D = part_ND.with_rows(np.array([3]))[3]
    seen = len(s3.requests)
    np.testing.assert_array_equal(matrix_ND.with_rows(np.array([1003]))[1003], row_D)
    assert len(s3.requests) == seen
    with pytest.raises(ArtifactError, match=f"expected {N + 1} x {D} values of 16 or 32 bits, found shape"):
        RowsOnDemand(artifact.file("matrix.npy"), N + 1, D)
    with pytest.raises(ArtifactError, match="expected an array of numbers"):
        RowsOnDemand(artifact.file("passage_ids.parquet"), N, D)


def test_rows_that_did_not_come_are_not_taken_for_there(place: str, s3: S3Proxy) -> None:
    matrix_ND = RowsOnDemand(open_artifact(place, "index").file("matrix.npy"), N, D)
    s3.fail("GET", "matrix.npy", drop_after=5)
    with pytest.raises(StorageDownError):
        matrix_ND.with_rows(np.array([5]))
    s3.faults = []
    assert matrix_ND.with_rows(np.array([5]))[5].any()
