"""An index and its searches hold vectors and ids only; texts are read by id from Parquet when they are needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ralm.corpus.lookup
from components.index.config import IndexConfig
from components.index.stage import index
from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.tables import read_table
from ralm.corpus.lookup import PassageLookup
from ralm.index.search import Index, open_index
from ralm.retrieval import PassageRetriever
from tests.conftest import toy_rows


@pytest.fixture(params=["flat", "ivf_flat", "hnsw"])
def built(request: pytest.FixtureRequest, toy_passages: str, tiny_model: str, tmp_path: Path) -> Index:
    from components.embed.stage import embed

    embed(passages=toy_passages, model=tiny_model, embeddings=str(tmp_path / "embeddings"))
    settings = {"nlist": 3} if request.param == "ivf_flat" else {}
    config = IndexConfig(kind=request.param, **settings)
    manifest = index(embeddings=str(tmp_path / "embeddings"), index=str(tmp_path / "index"), config=config)
    return open_index(str(tmp_path / "index"), passage_encoder=manifest.details["passage_encoder"])


def test_an_index_and_its_search_results_hold_no_text(built: Index, tmp_path: Path) -> None:
    """Defect 22: passages travelled, pickled, with each search, and lay in a dict of every rank."""
    artifact = open_artifact(str(tmp_path / "index"), "index")
    (table,) = [place for place, _ in artifact.tables()]
    assert read_table(table, "passage_ids/1").column_names == ["passage_id"]
    files = {path.name for path in (tmp_path / "index").iterdir()} - {"manifest.json", "timings.json"}
    assert files - {"index.faiss"} == {"matrix.npy", "passage_ids.parquet"}
    for name in files:
        content = (tmp_path / "index" / name).read_bytes()
        assert not any(str(row["text"])[:20].encode() in content for row in toy_rows()), name
    score_BK, row_BK, id_BK = built.search(np.ones((2, built.dimension), np.float32), 4)
    assert (score_BK.dtype, row_BK.dtype, id_BK.dtype) == (np.float32, np.int64, np.int64)
    assert score_BK.shape == row_BK.shape == id_BK.shape == (2, 4)


def test_texts_are_read_by_id_and_only_what_was_found(
    built: Index, toy_passages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defect 22, second half: nothing but ids is in memory before a question is asked."""
    lookup = PassageLookup(toy_passages)
    assert not lookup._cache
    read: list[int] = []
    original = ralm.corpus.lookup.pq.ParquetFile.read_row_group

    def watch(self: object, number: int, **rest: object) -> object:
        read.append(number)
        return original(self, number, **rest)

    monkeypatch.setattr(ralm.corpus.lookup.pq.ParquetFile, "read_row_group", watch)
    question_BD = built.vectors(np.array([3])).astype(np.float32)
    found = PassageRetriever(built, lookup).find(question_BD, 1)
    assert len(read) == 1, "one row group for one passage, though the corpus has two"
    text = {row["passage_id"]: row["text"] for row in toy_rows()}
    assert found.passages[0][0].text == text[int(found.passage_ids[0, 0])]
