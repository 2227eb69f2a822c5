"""The rows of reading and searching vectors, in tiny sizes: their ways agree, and one that is wrong is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.goals import goals_of
from benchmarks.rows import approximate_search, exact_search, vectors
from benchmarks.suite import Bench, Measured
from benchmarks.vector_inputs import made_vectors, real_vectors, spread_vectors


def bench(folder: Path) -> Bench:
    return Bench(work=folder, small=True, repeats=1)


def check(row: str, found: Measured) -> None:
    """Each goal has its figure."""
    assert {goal.figure for goal in goals_of(row)} <= found.figures.keys() | {"x_faiss_32", "x_faiss_256"} | {
        f"x_tuned_{size}" for size in (1, 32, 256)
    }
    assert all(np.isfinite(value) for value in found.figures.values())
    assert found.table


def test_reading_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = vectors.measure(bench(tmp_path))
    check("D1", found)
    assert found.figures["size_ratio"] <= 1.02
    assert not list(tmp_path.glob("vector-files/*")), "gigabytes do not stay"
    monkeypatch.setattr(vectors, "read_vectors", lambda place: (None, np.zeros((4000, 384), np.float16)))
    with pytest.raises(RuntimeError, match="reads other values than were written"):
        vectors.measure(bench(tmp_path))


def test_exact_search(tmp_path: Path) -> None:
    found = exact_search.measure(bench(tmp_path))
    check("S1", found)
    assert found.figures["recall_at_100"] == 1
    assert {f"x_{way}_{size}" for way in ("faiss", "tuned") for size in (1, 8, 16)} <= found.figures.keys()


def test_recall_of_an_exact_search_counts_what_is_missed() -> None:
    vector_ND = made_vectors(3000, 16).astype(np.float16)
    question_BD = made_vectors(3010, 16)[3000:]
    score_BN = question_BD.astype(np.float64) @ vector_ND.astype(np.float64).T
    row_BK = np.argsort(-score_BN, axis=1)[:, :20]
    assert exact_search.exact_recall(vector_ND, question_BD, row_BK) == 1
    row_BK[:, 19] = np.argmin(score_BN, axis=1)
    assert exact_search.exact_recall(vector_ND, question_BD, row_BK) == pytest.approx(0.95)
    row_BK[:, 19] = row_BK[:, 0]
    assert exact_search.exact_recall(vector_ND, question_BD, row_BK) == 0, "a row twice"


def test_approximate_search(tmp_path: Path) -> None:
    found = approximate_search.measure(bench(tmp_path))
    check("S2", found)
    for name in ("recall_at_10", "recall_at_10_real", "recall_at_10_hnsw"):
        assert found.figures[name] > 0.97
    real_ND, question_BD = real_vectors(bench(tmp_path))
    exact = exact_search.exact_faiss(real_ND).search

    def blind(asked_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        score_BK, row_BK = exact(asked_BD, k)
        return score_BK, np.where(np.arange(k) < k - 2, row_BK, 0)

    for asked in approximate_search.halves(question_BD, exact, real_ND):
        assert approximate_search.recall(exact, asked, real_ND) == 1
        assert approximate_search.recall(blind, asked, real_ND) < 0.85


def test_made_vectors_lie_near_real_ones(tmp_path: Path) -> None:
    real_ND = real_vectors(bench(tmp_path))[0].astype(np.float32)
    made_ND = spread_vectors(bench(tmp_path))[:200].astype(np.float32)
    nearest_N = (made_ND @ real_ND.T).max(axis=1)
    assert 0.8 < nearest_N.mean() < 0.99
    np.testing.assert_allclose(np.linalg.norm(made_ND, axis=1), 1, atol=2e-3)
    np.testing.assert_array_equal(spread_vectors(bench(tmp_path))[:200], made_ND.astype(np.float16))
