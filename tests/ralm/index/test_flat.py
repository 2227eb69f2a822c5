"""Exact search: equal to brute force, with a fixed order among ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ralm.errors import ConfigError
from ralm.index import flat
from ralm.index.config import Storage
from ralm.index.flat import FlatSearcher
from ralm.index.matrix import rescore, to_storage
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat, "BLOCK_ROWS", data.draw(st.integers(1, 50)))
        patch.setattr(flat, "MARGIN", data.draw(st.integers(0, 4)))
        patch.setattr(flat, "SCORED_AT_ONCE", data.draw(st.integers(1, 9)))
        _, found = FlatSearcher(matrix.astype(np.float32), CPU).search(question.astype(np.float32), k)
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


@pytest.mark.parametrize("storage", ["f16", "f32", "bf16"])
def test_results_do_not_depend_on_blocks_batches_or_the_order_of_equal_passages(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """700 passages of the best score, k = 100: rounding differs with the place in a product, the result must not."""
    generator = np.random.default_rng(3)
    vector_ND = generator.normal(size=(4000, 48)).astype(np.float32)
    question_BD = generator.normal(size=(5, 48)).astype(np.float32)
    vector_ND[generator.permutation(4000)[:700]] = question_BD[0]
    matrix_ND = to_storage(vector_ND, storage)
    id_N = generator.permutation(4000)
    score_BN = rescore(question_BD, np.tile(np.arange(4000), (5, 1)), matrix_ND)
    expected = [sorted(range(4000), key=lambda row: (-score_N[row], id_N[row]))[:100] for score_N in score_BN]
    for block in (4000, 999, 128):
        monkeypatch.setattr(flat, "BLOCK_ROWS", block)
        searcher = FlatSearcher(matrix_ND, CPU, id_N)
        together = searcher.search(question_BD, 100)
        np.testing.assert_array_equal(together[1], expected)
        np.testing.assert_array_equal(together[0], np.take_along_axis(score_BN, together[1], 1))
        alone = searcher.search(question_BD[3:4], 100)
        np.testing.assert_array_equal(alone[0], together[0][3:4])


def test_many_questions_are_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    matrix_ND, question_BD = generator.normal(size=(300, 8)).astype(np.float16), generator.normal(size=(70, 8))
    whole = FlatSearcher(matrix_ND, CPU).search(question_BD, 5)
    monkeypatch.setattr(flat, "QUESTIONS_AT_ONCE", 16)
    for found, expected in zip(FlatSearcher(matrix_ND, CPU).search(question_BD, 5), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_no_question() -> None:
    score, row = FlatSearcher(np.eye(3, dtype=np.float32), CPU).search(np.zeros((0, 3), np.float32), 2)
    assert score.shape == row.shape == (0, 2)
