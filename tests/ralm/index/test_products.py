"""Products in fp16, their error bound, the best rows by groups, and scores that are the same for every shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ralm.index.config import Storage
from ralm.index.flat import FlatSearcher
from ralm.index.matrix import best_candidates, rescore, score_pairs, to_storage
from ralm.index.products import as_tensor, best_of, half_products, half_questions, half_rounding, inner_products

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_rows", [3, 64, 1000, 4096, 4099])
@pytest.mark.parametrize("size", [1, 7, 33])
def test_the_best_by_groups_are_the_best(num_rows: int, size: int) -> None:
    score_BN = torch.randn(5, num_rows, generator=torch.Generator().manual_seed(1))
    expected_BK, expected_row_BK = score_BN.topk(min(size, num_rows), dim=1)
    found_BK, row_BK = best_of(score_BN, size)
    torch.testing.assert_close(found_BK, expected_BK, rtol=0, atol=0)
    torch.testing.assert_close(row_BK, expected_row_BK, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e35])
def test_products_in_fp16_are_within_their_bound(scale: float) -> None:
    generator = np.random.default_rng(2)
    question_BD = (scale * generator.normal(size=(8, 768))).astype(np.float32)
    question_BD[7] = 0
    block_ND = to_storage(generator.normal(size=(500, 768)).astype(np.float32), "f16")
    half_BD, divisor_B1 = half_questions(torch.from_numpy(question_BD))
    assert half_BD.abs().max() <= 1
    assert half_questions(torch.tensor([[3.4e38, 1e-45]]))[1].isfinite().all()
    found_BN = (half_products(half_BD, torch.from_numpy(block_ND)) * divisor_B1).double().numpy()
    error_BN = np.abs(found_BN - question_BD.astype(np.float64) @ block_ND.astype(np.float64).T)
    longest = float(np.linalg.norm(block_ND.astype(np.float64), axis=1).max())
    bound_B = half_rounding(question_BD, longest)
    assert (error_BN.max(axis=1) <= bound_B).all()
    assert (bound_B <= 4e-4 * np.linalg.norm(question_BD.astype(np.float64), axis=1) * longest).all()


def test_scores_have_the_same_bits_in_every_shape() -> None:
    generator = torch.Generator().manual_seed(3)
    stored_CD, question_BD = torch.randn(40, 771, generator=generator).half(), torch.randn(3, 771, generator=generator)
    together_BC = inner_products(stored_CD.expand(3, -1, -1), question_BD.unsqueeze(1))
    alone_BC = rescore(question_BD.numpy(), np.arange(40)[None].repeat(3, 0), stored_CD.numpy())
    np.testing.assert_array_equal(together_BC.numpy(), alone_BC)
    torch.testing.assert_close(together_BC, question_BD @ stored_CD.float().T, rtol=1e-4, atol=1e-4)


def test_a_matrix_on_the_device_gives_what_the_mapped_one_gives() -> None:
    """The way of a GPU, here with fp16 products that the CPU computes."""
    generator = np.random.default_rng(4)
    matrix_ND = to_storage(generator.normal(size=(9000, 48)).astype(np.float32), "f16")
    question_BD = generator.normal(size=(6, 48)).astype(np.float32)
    matrix_ND[generator.permutation(9000)[:700]] = question_BD[0]
    expected = FlatSearcher(matrix_ND, CPU).search(question_BD, 100)
    for found, wanted in zip(
        FlatSearcher(torch.from_numpy(matrix_ND), CPU).search(question_BD, 100), expected, strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("storage", ["f16", "f32", "bf16"])
def test_pairs_have_the_same_bits_as_one_by_one(storage: Storage) -> None:
    """Also where a sum lies in the middle between two fp32 numbers, or is 0, huge or tiny."""
    generator = np.random.default_rng(5)
    vector_ND = generator.normal(size=(1500, 70)).astype(np.float32)
    vector_ND[::3] = np.round(vector_ND[::3])
    vector_ND[1::5] *= 1e-4
    vector_ND[7] = 0
    vector_ND[8:40] = 0
    vector_ND[8:40, 0] = 1 + generator.integers(0, 128, size=32) / 128
    vector_ND[8:40, 3] = 2.0**-12
    question_BD = generator.normal(size=(6, 70)).astype(np.float32)
    question_BD[0], question_BD[1], question_BD[2] = 1, 0, 0
    question_BD[1, [0, 3]] = 1, 2.0**-12  # 1 + 2^-24
    question_BD[3] *= 1e37
    question_BD[4] *= 1e-42
    matrix_ND = to_storage(vector_ND, storage)
    question_P, row_P = (each.ravel() for each in np.meshgrid(np.arange(6), np.arange(1500), indexing="ij"))
    stored_PD = as_tensor(matrix_ND[row_P])
    expected = inner_products(stored_PD, torch.from_numpy(question_BD)[torch.from_numpy(question_P)]).numpy()
    found = score_pairs(question_BD, question_P, row_P, matrix_ND)
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("storage", ["f16", "f32", "bf16"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_the_best_candidates_are_those_of_sorted_scores(storage: Storage, scale: float) -> None:
    """With scores that differ less than fp32 products tell, equal ones, and missing candidates."""
    generator = np.random.default_rng(6)
    vector_ND = (generator.normal(size=48) + 1e-3 * generator.normal(size=(400, 48))).astype(np.float32)
    vector_ND[::7] = vector_ND[3]
    question_BD = (scale * generator.normal(size=(90, 48))).astype(np.float32)
    question_BD[5] = 0
    matrix_ND, id_N = to_storage(vector_ND * (1e11 if storage == "f32" else 1), storage), generator.permutation(400)
    row_BC = np.stack([generator.permutation(400)[:70] for _ in range(90)])
    row_BC[::2, 9:30] = -1
    for k in (1, 10, 49):
        score_BC = rescore(question_BD, row_BC, matrix_ND)
        order_BK = np.lexsort((id_N[row_BC], -score_BC), axis=1)[:, :k]
        score_BK, row_BK = best_candidates(question_BD, row_BC, matrix_ND, k, id_N)
        np.testing.assert_array_equal(score_BK, np.take_along_axis(score_BC, order_BK, 1))
        np.testing.assert_array_equal(row_BK, np.take_along_axis(row_BC, order_BK, 1))
