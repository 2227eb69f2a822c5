"""Inner products: exact ones of few vectors, those of whole blocks on a GPU, and the best rows by these.

Shapes: B questions, C candidates, N rows of a block, K rows kept for a question, D values in a vector.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

GROUP_ROWS = 64
"""Rows whose largest score stands for them at first."""


def as_tensor(stored: np.ndarray) -> Tensor:
    """Stored values as a tensor of their number format, in the same memory; it must be writable.

    Example:
        >>> as_tensor(np.array([0x3FC0], np.uint16))
        tensor([1.5000], dtype=torch.bfloat16)
    """
    if stored.dtype == np.uint16:
        return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(stored)


def inner_products(stored_CD: Tensor, question_D: Tensor) -> Tensor:
    """Exact products in fp64, added up by halves and given in fp32: the same bits on every device, for every shape.

    Args:
        stored_CD: stored vectors; dimensions before C are those of further questions.
        question_D: fp32 values; of shape `[..., 1, D]` where there are several, or one for each stored vector.

    Example:
        >>> inner_products(torch.eye(3), torch.tensor([1.0, 2.0, 4.0])).tolist()
        [1.0, 2.0, 4.0]
    """
    sum_CD = stored_CD.double().mul_(question_D.double())
    while (size := sum_CD.shape[-1]) > 1:
        half = (size + 1) // 2
        sum_CD[..., : size - half] += sum_CD[..., half:]
        sum_CD = sum_CD[..., :half]
    return sum_CD[..., 0].float()


def half_questions(question_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Questions as fp16, each divided by a power of two that brings it into the range of fp16.

    Returns:
        The questions, and the divisors `[B, 1]`.

    Example:
        >>> half_questions(torch.tensor([[3e5, 1.0]]))[1].tolist()
        [[524288.0]]
    """
    largest_B1 = question_BD.abs().amax(dim=1, keepdim=True)
    divisor_B1 = torch.exp2(torch.frexp(largest_B1).exponent.clamp(-120, 127).float())
    return (question_BD / divisor_B1).half(), divisor_B1


def half_products(half_BD: Tensor, block_ND: Tensor) -> Tensor:
    """Inner products of fp16 values, float32 [B, N], added up in fp32."""
    if half_BD.is_cuda:
        return torch.mm(half_BD, block_ND.T, out_dtype=torch.float32)
    return half_BD.float() @ block_ND.float().T


def half_rounding(question_BD: np.ndarray, longest: float) -> np.ndarray:
    """How far such a product can be from the true score, `[B]`.

    The question's own rounding, by Cauchy and Schwarz, and a sum of D exact products in fp32; tensor cores cut off
    where others round to the nearest, which doubles the usual bound.

    Args:
        question_BD: float32.
        longest: length of the longest vector.
    """
    question = torch.from_numpy(question_BD)
    half_BD, divisor_B1 = half_questions(question)
    lost_B = torch.linalg.vector_norm(question.double() - half_BD.double() * divisor_B1, dim=1)
    length_B = torch.linalg.vector_norm(question.double(), dim=1)
    unit = np.finfo(np.float32).eps * (question_BD.shape[1] + 1)
    return ((lost_B + unit * length_B) * longest).numpy()


def best_of(score_BN: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The `size` largest scores of each question, best first, and their places.

    The largest of each group of rows is compared first: the best rows are in the groups with the best of these. So most
    scores are read once, where `topk` reads all of them several times. A group is every n-th row, n the number of
    groups, so that neighbours in memory are compared at the same time.

    Example:
        >>> best_of(torch.tensor([[1.0, 3.0, 2.0]]), 2)[1].tolist()
        [[1, 2]]
    """
    num_groups = score_BN.shape[1] // GROUP_ROWS
    if num_groups <= 2 * size:
        best_BK, row_BK = score_BN.topk(min(size, score_BN.shape[1]), dim=1)
        return best_BK, row_BK
    whole = num_groups * GROUP_ROWS
    score_BRG = score_BN[:, :whole].unflatten(1, (GROUP_ROWS, num_groups))
    group_B1K = score_BRG.amax(dim=1).topk(size, dim=1, sorted=False).indices.unsqueeze(1)
    picked_BN = score_BRG.gather(2, group_B1K.expand(-1, GROUP_ROWS, -1)).flatten(1)
    row_R1 = torch.arange(0, whole, num_groups, device=score_BN.device).unsqueeze(1)
    row_BN = (group_B1K + row_R1).flatten(1)
    if whole < score_BN.shape[1]:
        rest_N = torch.arange(whole, score_BN.shape[1], device=score_BN.device)
        picked_BN = torch.cat([picked_BN, score_BN[:, whole:]], dim=1)
        row_BN = torch.cat([row_BN, rest_N.expand(len(row_BN), -1)], dim=1)
    best_BK, place_BK = picked_BN.topk(size, dim=1)
    return best_BK, row_BN.gather(1, place_BK)
