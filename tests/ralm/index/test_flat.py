"""Exact search: equal to brute force, with a fixed order among ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ralm.errors import ConfigError
from ralm.index import flat
from ralm.index.flat import FlatSearcher
from ralm.index.recall import recall_at_k, reference_rows

CPU = torch.device("cpu")


def brute_force(question_BD: np.ndarray, matrix_ND: np.ndarray, k: int) -> np.ndarray:
    score_BN = question_BD.astype(np.float64) @ matrix_ND.astype(np.float64).T
    return np.stack([sorted(range(len(matrix_ND)), key=lambda row: (-score_N[row], row))[:k] for score_N in score_BN])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_small_integers_equal_brute_force_with_ties(data: st.DataObject) -> None:
    """Integer vectors make products exact and ties frequent."""
    rows, size, k = (data.draw(st.integers(1, high)) for high in (40, 4, 40))
    k = min(k, rows)
    value = st.integers(-2, 2)
    matrix = np.array(data.draw(st.lists(st.lists(value, min_size=size, max_size=size), min_size=rows, max_size=rows)))
    question = np.array(data.draw(st.lists(st.lists(value, min_size=size, max_size=size), min_size=1, max_size=3)))
    block = data.draw(st.integers(1, 50))
    before, flat.BLOCK_ROWS = flat.BLOCK_ROWS, block
    try:
        _, found = FlatSearcher(matrix.astype(np.float32), CPU).search(question.astype(np.float32), k)
    finally:
        flat.BLOCK_ROWS = before
    np.testing.assert_array_equal(found, brute_force(question, matrix, k))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_random_vectors_equal_faiss(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    matrix = generator.normal(size=(5000, 32)).astype(dtype)
    question = generator.normal(size=(17, 32)).astype(np.float32)
    monkeypatch.setattr(flat, "BLOCK_ROWS", 999)
    monkeypatch.setattr(flat, "RESIDENT_BYTES", 0)
    score, row = FlatSearcher(matrix, CPU).search(question, 100)
    reference_score, reference_row = reference_rows(question, matrix, 100)
    np.testing.assert_allclose(score, reference_score, rtol=1e-5, atol=1e-5)
    assert (row == reference_row).mean() > 0.999
    assert recall_at_k(score, reference_score) == 1.0


@pytest.mark.parametrize("k", [0, 4])
def test_k_out_of_range(k: int) -> None:
    searcher = FlatSearcher(np.eye(3, dtype=np.float32), CPU)
    with pytest.raises(ConfigError, match="k: expected 1 to 3"):
        searcher.search(np.zeros((1, 3), np.float32), k)


def test_question_of_another_size() -> None:
    with pytest.raises(ConfigError, match="question vectors have 5 values"):
        FlatSearcher(np.eye(3, dtype=np.float32), CPU).search(np.zeros((1, 5), np.float32), 1)


def test_recall_counts_what_is_missed() -> None:
    assert recall_at_k(np.array([[3.0, 1.0]]), np.array([[3.0, 2.0]])) == 0.5


@pytest.mark.gpu
def test_gpu_equals_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    generator = np.random.default_rng(2)
    matrix = generator.normal(size=(20000, 64)).astype(np.float16)
    question = generator.normal(size=(8, 64)).astype(np.float32)
    on_gpu = FlatSearcher(matrix, torch.device("cuda")).search(question, 20)
    on_cpu = FlatSearcher(matrix, CPU).search(question, 20)
    np.testing.assert_allclose(on_gpu[0], on_cpu[0], rtol=1e-4, atol=1e-4)
