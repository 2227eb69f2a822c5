from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ralm.artifacts.schemas import PASSAGE_IDS, embeddings_schema
from ralm.artifacts.tables import TableWriter, write_table
from ralm.errors import ArtifactError
from ralm.retriever import vectors
from ralm.retriever.vectors import NUMPY_DTYPES, binary_column, iterate_vectors, read_vectors


def write(path: Path, vectors_ND: np.ndarray, dtype: str, row_group_rows: int = 1000) -> None:
    schema = embeddings_schema(vectors_ND.shape[1], dtype, "fingerprint")
    with TableWriter(path, schema, row_group_rows=row_group_rows) as writer:
        for start in range(0, len(vectors_ND), 7):
            rows = vectors_ND[start : start + 7]
            ids = pa.array(np.arange(start, start + len(rows)))
            writer.write(pa.table([ids, binary_column(rows, dtype)], schema=schema))


@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize("row_group_rows", [10, 1000])
def test_what_is_written_is_read(tmp_path: Path, dtype: str, row_group_rows: int) -> None:
    vectors_ND = np.random.default_rng(0).normal(size=(45, 6)).astype(np.float32)
    path = tmp_path / "shard.parquet"
    write(path, vectors_ND, dtype, row_group_rows)
    ids_N, found_ND = read_vectors(str(path))
    assert found_ND.dtype == NUMPY_DTYPES[dtype]
    np.testing.assert_array_equal(found_ND, vectors_ND.astype(found_ND.dtype))
    assert ids_N.tolist() == list(range(45))
    assert sum(len(ids) for ids, _ in iterate_vectors(str(path))) == 45


def test_the_file_is_hardly_larger_than_its_values(tmp_path: Path) -> None:
    vectors_ND = np.random.default_rng(0).normal(size=(2000, 384)).astype(np.float32)
    write(tmp_path / "shard.parquet", vectors_ND, "f16", 65536)
    assert (tmp_path / "shard.parquet").stat().st_size <= 1.02 * vectors_ND.size * 2 + 2000 * 8


def test_an_empty_shard(tmp_path: Path) -> None:
    write(tmp_path / "shard.parquet", np.empty((0, 6), np.float32), "f16")
    ids_N, found_ND = read_vectors(str(tmp_path / "shard.parquet"))
    assert (ids_N.shape, found_ND.shape) == ((0,), (0, 6))


def test_values_that_f16_cannot_hold() -> None:
    with pytest.raises(ArtifactError, match="not finite as f16"):
        binary_column(np.array([[1e6, 0.0]], np.float32), "f16")
    with pytest.raises(ArtifactError, match="not finite as f32"):
        binary_column(np.array([[np.nan, 0.0]], np.float32), "f32")


def test_tables_of_another_kind(tmp_path: Path) -> None:
    write_table(tmp_path / "ids.parquet", [{"passage_id": 1}], PASSAGE_IDS)
    with pytest.raises(ArtifactError, match="expected a embeddings/1 table"):
        read_vectors(str(tmp_path / "ids.parquet"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "none"},
        {"compression": "none", "use_dictionary": False},
        {"compression": "none", "use_dictionary": False, "data_page_size": 64},
        {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
        {"compression": "none", "use_dictionary": False, "column_encoding": {"vector": "BYTE_STREAM_SPLIT"}},
    ],
    ids=str,
)
def test_files_that_are_laid_out_otherwise(tmp_path: Path, options: dict) -> None:
    """Many small pages; compressed, with a dictionary or pages of the second version, which pyarrow reads."""
    vectors_ND = np.random.default_rng(0).normal(size=(3000, 6)).astype(np.float16)
    vectors_ND[5:900] = vectors_ND[5]
    table = pa.table([pa.array(range(3000)), binary_column(vectors_ND, "f16")], schema=embeddings_schema(6, "f16", "x"))
    pq.write_table(table, tmp_path / "shard.parquet", row_group_size=1300, **options)
    ids_N, found_ND = read_vectors(str(tmp_path / "shard.parquet"))
    np.testing.assert_array_equal(found_ND, vectors_ND)
    assert ids_N.tolist() == list(range(3000))


def test_values_are_read_straight_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from row groups of several pages: pyarrow ends a page after 20,000 rows."""
    vectors_ND = np.random.default_rng(0).normal(size=(70_000, 6)).astype(np.float32)
    schema = embeddings_schema(6, "f16", "fingerprint")
    table = pa.table([pa.array(range(70_000)), binary_column(vectors_ND, "f16")], schema=schema)
    write_table(tmp_path / "shard.parquet", table, schema)
    monkeypatch.setattr(vectors, "iterate_vectors", None)
    _, found_ND = read_vectors(str(tmp_path / "shard.parquet"))
    np.testing.assert_array_equal(found_ND, vectors_ND.astype(np.float16))
    found_ND[0] = 1  # an array of its own


def test_a_file_without_its_end(tmp_path: Path) -> None:
    write(tmp_path / "shard.parquet", np.ones((300, 6), np.float32), "f16")
    content = (tmp_path / "shard.parquet").read_bytes()
    (tmp_path / "shard.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match="no readable Parquet file"):
        read_vectors(str(tmp_path / "shard.parquet"))
