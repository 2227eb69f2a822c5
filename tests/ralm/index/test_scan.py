"""The scan of a CPU: equal to brute force over exact scores, in bf16 as in fp32, for any values, ties and blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ralm.index import scan
from ralm.index.config import Storage
from ralm.index.matrix import rescore, to_float32, to_storage
from ralm.index.scan import CpuScan

DTYPES = (torch.bfloat16, torch.float32)
SMALL_BLOCKS = {"SCORES_AT_ONCE": 1, "LEAST_ROWS": 200, "BLOCK_ROWS": 700, "GROUP_ROWS": 8}


def brute_force(
    question_BD: np.ndarray, matrix_ND: np.ndarray, id_N: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    row_BN = np.tile(np.arange(len(matrix_ND)), (len(question_BD), 1))
    score_BN = rescore(question_BD, row_BN, matrix_ND)
    row_BK = np.lexsort((id_N[row_BN], -score_BN), axis=1)[:, :k]
    return np.take_along_axis(score_BN, row_BK, 1), row_BK


def check(matrix_ND: np.ndarray, question_BD: np.ndarray, k: int, *, dtype: torch.dtype, is_held: bool = True) -> None:
    id_N = np.random.default_rng(5).permutation(len(matrix_ND))
    searcher = CpuScan(matrix_ND, id_N, dtype=dtype, is_held=is_held)
    expected = brute_force(question_BD, matrix_ND, id_N, k)
    np.testing.assert_array_equal(searcher.nearest(question_BD), expected[1][:, 0])
    for _ in range(2):  # later searches know all bounds
        for found, wanted in zip(searcher.search(question_BD, k), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL_BLOCKS.items():
        monkeypatch.setattr(scan, name, value)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), is_held=st.booleans())
def test_small_integers_with_ties(data: st.DataObject, dtype: torch.dtype, is_held: bool) -> None:
    """Integer vectors make ties and scores of 0 frequent."""
    rows, size, k = (data.draw(st.integers(1, high)) for high in (60, 4, 60))
    value = st.integers(-2, 2)
    matrix = data.draw(st.lists(st.lists(value, min_size=size, max_size=size), min_size=rows, max_size=rows))
    question = data.draw(st.lists(st.lists(value, min_size=size, max_size=size), min_size=1, max_size=3))
    with pytest.MonkeyPatch.context() as patch:
        for name, high in {"LEAST_ROWS": 50, "BLOCK_ROWS": 50, "GROUP_ROWS": 9, "PENDING_PAIRS": 40}.items():
            patch.setattr(scan, name, data.draw(st.integers(1, high)))
        patch.setattr(scan, "SCORES_AT_ONCE", 1)
        check(np.array(matrix, np.float16), np.array(question, np.float32), min(k, rows), dtype=dtype, is_held=is_held)


@pytest.mark.parametrize("storage", ["f16", "f32", "bf16"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_held", [True, False])
def test_random_vectors_and_many_equal_ones(
    storage: Storage, dtype: torch.dtype, is_held: bool, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "PENDING_PAIRS", 600)
    monkeypatch.setattr(scan, "QUESTIONS_AT_ONCE", 4)
    generator = np.random.default_rng(1)
    vector_ND = generator.normal(size=(3000, 24)).astype(np.float32)
    question_BD = generator.normal(size=(9, 24)).astype(np.float32)
    vector_ND[generator.permutation(3000)[:700]] = question_BD[0]
    for k in (1, 40, 900, 3000):
        check(to_storage(vector_ND, storage), question_BD, k, dtype=dtype, is_held=is_held)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case", ["all below 0", "no question", "zero", "tiny", "huge", "mixed", "past fp32", "past bf16"]
)
def test_any_values(case: str, dtype: torch.dtype, small_blocks: None) -> None:
    generator = np.random.default_rng(2)
    vector_ND = generator.normal(size=(1500, 16)).astype(np.float32)
    question_BD = generator.normal(size=(5, 16)).astype(np.float32)
    if case == "all below 0":
        vector_ND, question_BD = np.abs(vector_ND), -np.abs(question_BD)
    elif case == "no question":
        question_BD = question_BD[:0]
    elif case == "zero":
        question_BD[2], vector_ND[::3] = 0, 0
    elif case in ("tiny", "huge"):
        question_BD *= {"tiny": 1e-38, "huge": 1e37}[case]
    elif case == "mixed":
        question_BD *= np.float32(10.0) ** np.arange(-30, 30, 12)[:, None].astype(np.float32)
        vector_ND *= np.float32(10.0) ** generator.integers(-9, 4, size=(1500, 1)).astype(np.float32)
    elif case == "past fp32":
        vector_ND *= 1e20
        question_BD *= 1e20
    elif case == "past bf16":
        vector_ND[7, 3] = np.finfo(np.float32).max
    with np.errstate(over="ignore", invalid="ignore"):
        check(vector_ND, question_BD, 10, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_products_are_within_their_bound(dtype: torch.dtype, scale: float) -> None:
    generator = np.random.default_rng(3)
    matrix_ND = generator.normal(size=(400, 384)).astype(np.float32)
    question_BD = (scale * generator.normal(size=(6, 384))).astype(np.float32)
    searcher = CpuScan(matrix_ND, np.arange(400), dtype=dtype, is_held=False)
    block_ND, bound = next(searcher._blocks())
    asked = scan._Asked(question_BD, dtype)
    found_BN = (block_ND.double() @ asked.rounded_DB.double()).T.numpy() * asked.divisor_B[:, None]
    error_BN = np.abs(found_BN - question_BD.astype(np.float64) @ to_float32(matrix_ND).astype(np.float64).T)
    error_B = asked.error(bound)
    assert (error_BN.max(axis=1) <= error_B).all()
    length_B = np.linalg.norm(question_BD.astype(np.float64), axis=1)
    assert (error_B <= (6e-3 if dtype == torch.bfloat16 else 1e-4) * length_B * bound.longest).all()
    assert bound.longest >= np.linalg.norm(matrix_ND, axis=1).max()


def test_the_bound_keeps_passages_that_rounding_would_lose() -> None:
    """Scores closer to each other than bf16 can tell."""
    generator = np.random.default_rng(4)
    matrix_ND = (generator.normal(size=64) + 0.01 * generator.normal(size=(5000, 64))).astype(np.float16)
    question_BD = generator.normal(size=(20, 64)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan._Asked, "error", lambda self, bound: np.zeros(len(self.question_BD)))
        with pytest.raises(AssertionError):
            check(matrix_ND, question_BD, 10, dtype=torch.bfloat16)
    check(matrix_ND, question_BD, 10, dtype=torch.bfloat16)
