"""Exact maximum-inner-product search: blocks of the matrix against all questions, in bounded memory.

Shapes: B questions, N passages searched, K passages found per question, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ralm.index.matrix import BLOCK_ROWS, check_search, to_float32

RESIDENT_BYTES = 2 << 30
"""Up to this size the matrix is held as fp32 on the device; a larger one is converted block by block."""


def is_resident(matrix_ND: np.ndarray) -> bool:
    """True where the whole matrix is held as fp32."""
    return matrix_ND.size * 4 <= RESIDENT_BYTES


class FlatSearcher:
    """Search a matrix of passage vectors by inner product.

    Args:
        matrix_ND: vectors as `matrix.npy` holds them, best memory-mapped.
        device: where the products are computed.
    """

    def __init__(self, matrix_ND: np.ndarray, device: torch.device) -> None:
        self._matrix_ND, self._device = matrix_ND, device
        self._resident_ND = self._load(0, len(matrix_ND)) if is_resident(matrix_ND) else None

    def search(self, question_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of each question; among equal scores the lower row comes first.

        Args:
            question_BD: float32.
            k: passages per question, at most N.

        Returns:
            (score_BK float32, row_BK int64), best first.

        Raises:
            ConfigError: k is not between 1 and N, or the question vectors have another size than the passages'.

        Example:
            >>> searcher = FlatSearcher(np.eye(3, dtype=np.float32), torch.device("cpu"))
            >>> searcher.search(np.array([[0.0, 2.0, 1.0]], np.float32), 2)[1].tolist()
            [[1, 2]]
        """
        check_search(question_BD, k, *self._matrix_ND.shape)
        question = torch.from_numpy(np.ascontiguousarray(question_BD, np.float32)).to(self._device)
        best_score = torch.empty((len(question), 0), device=self._device)
        best_row = torch.empty((len(question), 0), dtype=torch.int64, device=self._device)
        for start, block_ND in self._blocks():
            score_BN = question @ block_ND.T
            score, row = _best(score_BN, min(k, score_BN.shape[1]))
            best_score = torch.cat([best_score, score], 1)
            best_row = torch.cat([best_row, row + start], 1)
            if start:
                # Earlier blocks come first and hold the lower rows, so a stable sort keeps the tie rule.
                order = best_score.argsort(dim=1, descending=True, stable=True)[:, :k]
                best_score, best_row = best_score.gather(1, order), best_row.gather(1, order)
        return best_score.cpu().numpy(), best_row.cpu().numpy()

    def _blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        for start in range(0, len(self._matrix_ND), BLOCK_ROWS):
            stop = start + BLOCK_ROWS
            resident = self._resident_ND
            yield start, resident[start:stop] if resident is not None else self._load(start, stop)

    def _load(self, start: int, stop: int) -> torch.Tensor:
        return torch.from_numpy(to_float32(self._matrix_ND[start:stop])).to(self._device)


def _best(score_BN: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Top k of each row, sorted; ties, also at the cut, go to the lower column."""
    score_BK, row_BK = score_BN.topk(k, dim=1)
    cut_B1 = score_BK[:, -1:]
    crowded_B = (score_BN >= cut_B1).sum(1) > k
    for row in crowded_B.nonzero().flatten().tolist():
        columns = (score_BN[row] >= cut_B1[row]).nonzero().flatten()
        keep = columns[score_BN[row, columns].argsort(dim=0, descending=True, stable=True)[:k]]
        score_BK[row], row_BK[row] = score_BN[row, keep], keep
    by_row = row_BK.argsort(dim=1)
    score_BK, row_BK = score_BK.gather(1, by_row), row_BK.gather(1, by_row)
    order = score_BK.argsort(dim=1, descending=True, stable=True)
    return score_BK.gather(1, order), row_BK.gather(1, order)
