"""Exact maximum-inner-product search: blocks of the matrix against all questions, in bounded memory.

A block product finds candidates, more than asked for; their scores are then computed each on its own, so that a passage
has the same score whatever stands beside it: in any block, on any device, on any number of processes. Rounding of the
block products cannot lose a passage: where the margin is not wide enough to rule that out, the question is searched
again. Here is the way of a GPU; that of a CPU is in `ralm/index/scan.py`.

Shapes: B questions, N passages searched, K passages found per question, C candidates, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ralm.device import free_bytes, has_fast_bf16
from ralm.index.matrix import BLOCK_ROWS, check_search, rescore, to_float32
from ralm.index.products import as_tensor, best_of, half_products, half_questions, half_rounding, inner_products
from ralm.index.scan import CpuScan

RESIDENT_BYTES = 2 << 30
"""A matrix that has up to this size as fp32 is held in main memory, as bf16 on a CPU with units for it, else as fp32; a
larger one is converted block by block."""
GPU_SHARE = 0.6
"""Part of a GPU's free memory that the matrix may take, in its stored format; a larger one is copied block by block."""
MARGIN = 32
"""Candidates beyond k."""
SCORED_AT_ONCE = 4096
"""Candidates of a crowded question that are scored at a time."""
QUESTIONS_AT_ONCE = 2048
"""Questions in one block product; it bounds its memory (0.5 GiB)."""
SCORES_AT_ONCE = 2**27
"""Scores (4 bytes each) of a block product on a GPU that holds the matrix as fp16; at least `BLOCK_ROWS` rows."""
GPU_BLOCK_ROWS = 4 * 2**20
"""Most rows in it."""
VALUES_AT_ONCE = 2**25
"""Values (8 bytes each) of candidates that a GPU scores at a time."""


def is_resident(matrix_ND: np.ndarray) -> bool:
    """True where the whole matrix is held in main memory."""
    return matrix_ND.size * 4 <= RESIDENT_BYTES


class FlatSearcher:
    """Search a matrix of passage vectors by inner product.

    Args:
        matrix_ND: vectors as `matrix.npy` holds them, best memory-mapped; or, on a GPU, a tensor that is there already.
        device: where the products are computed.
        id_N: ids of the passages; among equal scores the lower one comes first. By default the rows.
    """

    def __init__(self, matrix_ND: np.ndarray | Tensor, device: torch.device, id_N: np.ndarray | None = None) -> None:
        self._device, self._shape = device, (len(matrix_ND), matrix_ND.shape[1])
        self._id_N = np.arange(len(matrix_ND)) if id_N is None else id_N
        self._longest: dict[int, float] = {}
        self._held_ND: Tensor | None = None
        self._scan: CpuScan | None = None
        if isinstance(matrix_ND, np.ndarray) and device.type == "cpu":
            dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32
            self._scan = CpuScan(matrix_ND, self._id_N, dtype=dtype, is_held=is_resident(matrix_ND))
            return
        if isinstance(matrix_ND, Tensor):
            self._held_ND, self._matrix_ND = matrix_ND, np.empty((0, matrix_ND.shape[1]), np.float32)
        else:
            self._matrix_ND = matrix_ND
            if device.type == "cuda" and matrix_ND.nbytes <= GPU_SHARE * free_bytes(device):
                self._held_ND = _to_gpu(matrix_ND, device)
        self._is_half = self._held_ND is not None and self._held_ND.dtype == torch.float16
        is_small = device.type != "cuda" and is_resident(self._matrix_ND)
        self._resident_ND = torch.from_numpy(to_float32(self._matrix_ND)).to(device) if is_small else None

    def search(self, question_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of each question; among equal scores the lower id comes first.

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
        check_search(question_BD, k, *self._shape)
        if self._scan is not None:
            return self._scan.search(np.ascontiguousarray(question_BD, np.float32), k)
        if len(question_BD) > QUESTIONS_AT_ONCE:
            starts = range(0, len(question_BD), QUESTIONS_AT_ONCE)
            parts = [self.search(question_BD[start : start + QUESTIONS_AT_ONCE], k) for start in starts]
            return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
        question_BD = np.ascontiguousarray(question_BD, np.float32)
        near_BC, row_BC = self._candidates(question_BD, min(k + MARGIN, self._shape[0]))
        score_BK, row_BK = self._best(self._score(question_BD, row_BC), row_BC, k)
        if row_BC.shape[1] < self._shape[0]:
            # What was not kept has at most the last candidate's score, up to the rounding of both.
            error_B = self._rounding(question_BD)
            for number in np.flatnonzero(near_BC[:, -1] + error_B >= score_BK[:, -1]):
                lowest = np.nan_to_num(score_BK[number, -1] - error_B[number], nan=-np.inf)
                score_BK[number], row_BK[number] = self._search_one(question_BD[number], k, lowest)
        return score_BK, row_BK

    def _candidates(self, question_BD: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The `size` best rows by block products, best first."""
        question = torch.from_numpy(question_BD).to(self._device)
        divisor_B1 = torch.ones((len(question), 1), device=self._device)
        block_rows = BLOCK_ROWS
        if self._is_half:
            question, divisor_B1 = half_questions(question)
            block_rows = max(BLOCK_ROWS, min(GPU_BLOCK_ROWS, SCORES_AT_ONCE // max(1, len(question))))
        best_BC = torch.empty((len(question), 0), device=self._device)
        row_BC = torch.empty((len(question), 0), dtype=torch.int64, device=self._device)
        for start, block_ND in self._blocks(block_rows):
            score_BN = half_products(question, block_ND) if self._is_half else question @ block_ND.float().T
            score, row = best_of(score_BN, size)
            best_BC, row_BC = torch.cat([best_BC, score], 1), torch.cat([row_BC, row + start], 1)
            if start:
                best_BC, place = best_BC.topk(min(size, best_BC.shape[1]), dim=1)
                row_BC = row_BC.gather(1, place)
        return (best_BC * divisor_B1).cpu().numpy(), row_BC.cpu().numpy()

    def _search_one(self, question_D: np.ndarray, k: int, lowest: float) -> tuple[np.ndarray, np.ndarray]:
        """Search where many passages are about equally good: all that reach `lowest` in a block are scored exactly."""
        question = torch.from_numpy(question_D).to(self._device)
        score_K, row_K = np.empty(0, np.float32), np.empty(0, np.int64)
        for start, block_ND in self._blocks(BLOCK_ROWS):
            found = (block_ND.float() @ question >= float(lowest)).nonzero().flatten().cpu().numpy() + start
            for first in range(0, len(found), SCORED_AT_ONCE):
                found_C = found[first : first + SCORED_AT_ONCE]
                exact_C = self._score(question_D[None], found_C[None])[0]
                score_C, row_C = np.concatenate([score_K, exact_C]), np.concatenate([row_K, found_C])
                order_K = np.lexsort((self._id_N[row_C], -score_C))[:k]
                score_K, row_K = score_C[order_K], row_C[order_K]
        return score_K, row_K

    def _score(self, question_BD: np.ndarray, row_BC: np.ndarray) -> np.ndarray:
        """Scores of candidates, each computed on its own."""
        stored_ND = self._held_ND
        if stored_ND is None:
            return rescore(question_BD, row_BC, self._matrix_ND)
        question, rows = (torch.from_numpy(each).to(self._device) for each in (question_BD, row_BC))
        at_once = max(1, VALUES_AT_ONCE // max(1, row_BC.shape[1] * self._shape[1]))
        parts = [
            inner_products(stored_ND[row_bC], question_bD.unsqueeze(1))
            for question_bD, row_bC in zip(question.split(at_once), rows.split(at_once), strict=True)
        ]
        return torch.cat(parts).cpu().numpy()

    def _best(self, score_BC: np.ndarray, row_BC: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        order_BK = np.lexsort((self._id_N[row_BC], -score_BC), axis=1)[:, :k]
        return np.take_along_axis(score_BC, order_BK, 1), np.take_along_axis(row_BC, order_BK, 1)

    def _rounding(self, question_BD: np.ndarray) -> np.ndarray:
        """How far a block product can be from the true score: the usual bound for a sum of D products in fp32."""
        longest = max(self._longest.values(), default=0.0)
        if self._is_half:
            return half_rounding(question_BD, longest)
        unit = np.finfo(np.float32).eps / 2 * (question_BD.shape[1] + 1)
        return unit * np.linalg.norm(question_BD, axis=1) * longest

    def _blocks(self, block_rows: int) -> Iterator[tuple[int, Tensor]]:
        """Blocks on the device, in the stored number format or in fp32; notes how long their longest vector is."""
        for start in range(0, self._shape[0], block_rows):
            block_ND = self._load(start, start + block_rows)
            if start not in self._longest:
                self._longest[start] = float(torch.linalg.vector_norm(block_ND, dim=1, dtype=torch.float32).max())
            yield start, block_ND

    def _load(self, start: int, stop: int) -> Tensor:
        for resident in (self._held_ND, self._resident_ND):
            if resident is not None:
                return resident[start:stop]
        if self._device.type == "cuda":  # half of the bytes to copy, and the faster one to convert
            return as_tensor(np.array(self._matrix_ND[start:stop])).to(self._device)
        return torch.from_numpy(to_float32(self._matrix_ND[start:stop])).to(self._device)


def _to_gpu(matrix_ND: np.ndarray, device: torch.device) -> Tensor:
    """The matrix in its stored number format on a GPU; main memory holds a block of it at a time."""
    stored_ND = torch.empty(matrix_ND.shape, dtype=as_tensor(np.empty(0, matrix_ND.dtype)).dtype, device=device)
    for start in range(0, len(matrix_ND), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        stored_ND[part] = as_tensor(np.array(matrix_ND[part]))
    return stored_ND
