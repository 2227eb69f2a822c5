"""Exact search as one writes it down in a few lines: fp16 products of blocks and `topk`, as Atlas' flat index does.

Scores are rounded to fp16, so passages that are about equally good change places.

Shapes: B questions, N passages, K passages found, D values in a vector.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def search(matrix_ND: Tensor, question_BD: np.ndarray, k: int, block_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows of a matrix on the device: (score_BK, row_BK)."""
    question = torch.from_numpy(question_BD).to(matrix_ND)
    scores, rows = [], []
    for start in range(0, len(matrix_ND), block_rows):
        block_ND = matrix_ND[start : start + block_rows]
        score, row = (question @ block_ND.T).topk(min(k, len(block_ND)), dim=1)
        scores.append(score)
        rows.append(row + start)
    score_BK, place_BK = torch.cat(scores, dim=1).topk(k, dim=1)
    return score_BK.float().cpu().numpy(), torch.cat(rows, dim=1).gather(1, place_BK).cpu().numpy()
