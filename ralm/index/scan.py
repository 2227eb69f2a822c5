"""Exact search on a CPU: one pass over the matrix by block products, then exact scores of what may be among the best.

A product in bf16 takes a quarter of the time of one in fp32 where the CPU has units for it, and half of the bytes; it
is off by a known bound. Of each question the k-th best score so far, less that bound, is what the k-th best passage
has at least; what a block product puts below it, less the bound again, is out. What is left, little more than k
passages, is scored exactly, so no passage is lost, whatever the number format of the products.

Shapes: B questions, N rows of a block, G groups of rows, K passages found, P pairs of question and row, D embedding
size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ralm.index.matrix import BLOCK_ROWS, score_pairs
from ralm.index.products import as_tensor, half_questions

SCORES_AT_ONCE = 2**21
"""Scores of a block product: they stay in the cache of the CPU while the best are picked."""
LEAST_ROWS = 4096
"""Rows of a block product at least."""
QUESTIONS_AT_ONCE = 512
"""Questions in one pass."""
GROUP_ROWS = 64
"""Rows whose largest score is compared first, at most: most groups have none that counts."""
GROUPS_FOR_ONE = 8
"""Groups for each row that is expected to count."""
PENDING_PAIRS = 2**20
"""Pairs that wait for their exact score; where more do, many passages are about equally good, and they are scored at
once."""
LARGEST = 1e37
"""Longest vector times longest question up to which products in fp32 cannot overflow; beyond, all is scored exactly."""
_BF16_STEP = 2.0**-8
"""How far the nearest bf16 number is at most, as a share of a number."""
_TINY = 2.0**-126
"""Products in bf16 take smaller numbers for 0."""


class Bound(NamedTuple):
    """What the error of a product depends on, of some vectors."""

    longest: float
    """Length of the longest."""
    lost: float
    """Length of the largest difference between a vector and its rounded form."""


class CpuScan:
    """Search a mapped matrix of passage vectors on the CPU.

    Args:
        matrix_ND: vectors as `matrix.npy` holds them.
        id_N: ids of the passages; among equal scores the lower one comes first.
        dtype: number format of the products, fp32 or bf16.
        is_held: hold the matrix in it; else blocks are converted in each search.
        questions_at_once: in one pass; by default `QUESTIONS_AT_ONCE`.
    """

    def __init__(
        self,
        matrix_ND: np.ndarray,
        id_N: np.ndarray,
        *,
        dtype: torch.dtype,
        is_held: bool,
        questions_at_once: int | None = None,
    ) -> None:
        self._matrix_ND, self._id_N, self._dtype = matrix_ND, id_N, dtype
        self._at_once = questions_at_once or QUESTIONS_AT_ONCE
        self._bounds: dict[int, Bound] = {}
        self._held_ND: Tensor | None = None
        if is_held:
            held_ND = torch.empty(matrix_ND.shape, dtype=dtype)
            for start in range(0, len(matrix_ND), BLOCK_ROWS):
                held_ND[start : start + BLOCK_ROWS] = self._convert(start)
            self._held_ND = held_ND

    def search(self, question_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of each question: scores (float32) and rows, both [B, K].

        Args:
            question_BD: float32, finite.
            k: passages per question, at most as many as there are.
        """
        starts = range(0, max(1, len(question_BD)), self._at_once)
        parts = [self._search(question_BD[start : start + self._at_once], k) for start in starts]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def nearest(self, question_BD: np.ndarray) -> np.ndarray:
        """The row that `search` finds for k = 1, int64 [B]; of most questions no score has to be computed for it."""
        row_B = np.empty(len(question_BD), np.int64)
        for start in range(0, len(question_BD), self._at_once):
            part = slice(start, start + self._at_once)
            row_B[part] = self._scan(question_BD[part], 1).nearest()
        return row_B

    def _search(self, question_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self._scan(question_BD, k).settle()

    def _scan(self, question_BD: np.ndarray, k: int) -> _Best:
        asked = _Asked(question_BD, self._dtype)
        best = _Best(asked, k, self._matrix_ND, self._id_N)
        size = len(question_BD)
        rows = max(LEAST_ROWS, SCORES_AT_ONCE // max(1, size))
        seen, next_update = 0, 1
        for block_ND, bound in self._blocks() if size else ():
            best.widen(bound)
            for part_ND in block_ND.split(rows):
                score_NB = part_ND @ asked.rounded_DB
                if not seen:
                    best.raise_lower(_kth_best(score_NB, k))
                group_rows = (seen + len(part_ND)) // (GROUPS_FOR_ONE * k)
                question_P, row_P, score_P = _passing(score_NB, best.thresholds(), max(1, min(GROUP_ROWS, group_rows)))
                best.add(question_P, row_P + seen, score_P)
                seen += len(part_ND)
                if seen >= next_update:
                    best.sift()
                    next_update = 2 * seen
        return best

    def _blocks(self) -> Iterator[tuple[Tensor, Bound]]:
        for start in range(0, len(self._matrix_ND), BLOCK_ROWS):
            held_ND = self._held_ND
            block_ND = self._convert(start) if held_ND is None else held_ND[start : start + BLOCK_ROWS]
            yield block_ND, self._bounds[start]

    def _convert(self, start: int) -> Tensor:
        """Some rows in the number format of the products; notes their bound."""
        stored_ND = as_tensor(np.array(self._matrix_ND[start : start + BLOCK_ROWS]))
        block_ND = stored_ND.to(self._dtype)
        if start not in self._bounds:
            exact_ND = stored_ND.float()
            self._bounds[start] = Bound(float(_length(exact_ND).max()), float(_length(exact_ND - block_ND).max()))
        return block_ND


def _length(vector_ND: Tensor) -> np.ndarray:
    """What the lengths of vectors are at most, float64 [N]: they are computed in fp32, whose squares end at 1e-45."""
    return 1.001 * torch.linalg.vector_norm(vector_ND, dim=1).double().numpy() + 1e-17


class _Asked:
    """Questions as the block products take them."""

    def __init__(self, question_BD: np.ndarray, dtype: torch.dtype) -> None:
        question = torch.from_numpy(question_BD)
        self.question_BD, self.dtype = question_BD, dtype
        _, divisor_B1 = half_questions(question)  # powers of two: no range of numbers is too small or too large
        scaled_BD, size_B = question / divisor_B1, divisor_B1[:, 0].double().numpy()
        rounded_BD = scaled_BD.to(dtype)
        self._length_B, self._lost_B = _length(scaled_BD) * size_B, _length(scaled_BD - rounded_BD) * size_B
        is_bf16 = dtype == torch.bfloat16
        self.rounded_DB = (rounded_BD if is_bf16 else question).T.contiguous()
        self.divisor_B = size_B if is_bf16 else np.ones(len(question_BD))

    def error(self, bound: Bound) -> np.ndarray:
        """How far a product can be from the score, before it is rounded itself: [B].

        By Cauchy and Schwarz for the rounded vectors, and the usual bound for a sum of D products in fp32, twice; a
        score is rounded to fp32 as well.
        """
        dimension = self.question_BD.shape[1]
        unit = np.finfo(np.float32).eps * (dimension + 4)
        reach_B = (self._length_B + self._lost_B) * (bound.longest + bound.lost)
        rounded_B = self._lost_B * bound.longest + (self._length_B + self._lost_B) * bound.lost
        tiny_B = 2.0**-149 + _TINY * dimension * self.divisor_B * (1 + bound.longest)
        is_safe_B = (reach_B < LARGEST) & (reach_B / self.divisor_B < LARGEST)
        return np.where(is_safe_B, rounded_B + unit * reach_B + tiny_B, np.inf)


class _Best:
    """What may be among the k best of each question.

    Args:
        asked: the questions.
        k: passages per question.
        matrix_ND: the vectors.
        id_N: ids of the passages.
    """

    def __init__(self, asked: _Asked, k: int, matrix_ND: np.ndarray, id_N: np.ndarray) -> None:
        self._asked, self._k, self._matrix_ND, self._id_N = asked, k, matrix_ND, id_N
        self._lower_B = np.full(len(asked.question_BD), -np.inf)  # what the k-th best score is at least
        self._error_B = np.zeros(len(asked.question_BD))
        self._pending, self._num_pending = [_none()], 0
        self._settled = _none()

    def widen(self, bound: Bound) -> None:
        """Take note of the bound of the next rows."""
        self._error_B = np.maximum(self._error_B, self._asked.error(bound))

    def raise_lower(self, kth_B: np.ndarray) -> None:
        """Take note of the k-th best of some block products."""
        step = _BF16_STEP if self._asked.dtype == torch.bfloat16 else 0.0
        kth_B = kth_B.astype(np.float64) * self._asked.divisor_B
        with np.errstate(invalid="ignore"):
            lower_B = kth_B - step * np.abs(kth_B) - self._error_B
        self._lower_B = np.fmax(self._lower_B, lower_B)

    def thresholds(self) -> Tensor:
        """What a block product of a row that counts is at least; float32 [B]."""
        with np.errstate(over="ignore"):
            lowest_B = ((self._lower_B - self._error_B) / self._asked.divisor_B).astype(np.float32)
        lowest = torch.from_numpy(np.nextafter(lowest_B, np.float32(-np.inf)))
        return lowest.to(self._asked.dtype).float()

    def add(self, question_P: np.ndarray, row_P: np.ndarray, score_P: np.ndarray) -> None:
        """Take in what passed."""
        self._pending.append((question_P, row_P, score_P))
        self._num_pending += len(row_P)
        if self._num_pending > PENDING_PAIRS:
            self.sift()
            if self._num_pending > PENDING_PAIRS // 2:
                self.settle()

    def sift(self) -> None:
        """Raise the limit by what is there, and drop what is below it."""
        question_P, row_P, score_P = (np.concatenate(part) for part in zip(*self._pending, strict=True))
        count_B = np.bincount(question_P, minlength=len(self._lower_B))
        order_P = _order(question_P, score_P)
        has_k_B = count_B >= self._k
        place_B = (np.cumsum(count_B) - count_B)[has_k_B] + self._k - 1
        kth_B = np.full(len(count_B), -np.inf, np.float32)
        kth_B[has_k_B] = score_P[order_P[place_B]]
        self.raise_lower(kth_B)
        is_kept_P = ~(score_P < self.thresholds().numpy()[question_P])
        kept = (question_P[is_kept_P], row_P[is_kept_P], score_P[is_kept_P])
        self._pending, self._num_pending = [kept], len(kept[0])

    def settle(self) -> tuple[np.ndarray, np.ndarray]:
        """Score all that is there exactly and keep the k best of each question: scores and rows, [B, K].

        Both are empty where fewer than k rows were seen.
        """
        if self._num_pending:
            self.sift()
            question_P, row_P, _ = self._pending[0]
            exact_P = score_pairs(self._asked.question_BD, question_P, row_P, self._matrix_ND)
            merged = zip(self._settled, (question_P, row_P, exact_P), strict=True)
            question_P, row_P, exact_P = (np.concatenate(pair) for pair in merged)
            order_P = np.lexsort((self._id_N[row_P], -exact_P, question_P))
            count_B = np.bincount(question_P, minlength=len(self._lower_B))
            rank_P = np.arange(len(order_P)) - np.repeat(np.cumsum(count_B) - count_B, count_B)
            order_P = order_P[rank_P < self._k]
            self._settled = (question_P[order_P], row_P[order_P], exact_P[order_P])
            self._pending, self._num_pending = [_none()], 0
        question_P, row_P, exact_P = self._settled
        if len(row_P) < len(self._lower_B) * self._k:
            return np.empty((0, self._k), np.float32), np.empty((0, self._k), np.int64)
        score_BK, row_BK = exact_P.reshape(-1, self._k), row_P.reshape(-1, self._k)
        self._lower_B = np.fmax(self._lower_B, score_BK[:, -1])
        return score_BK, row_BK

    def nearest(self) -> np.ndarray:
        """For k = 1 the best row of each question: [B]. Only where several may be it, their scores are computed."""
        if len(self._settled[0]):
            return self.settle()[1][:, 0]
        self.sift()
        question_P, row_P, _ = self._pending[0]
        row_B = np.empty(len(self._lower_B), np.int64)
        row_B[question_P] = row_P
        several = np.flatnonzero(np.bincount(question_P, minlength=len(row_B))[question_P] > 1)
        question_P, row_P = question_P[several], row_P[several]
        exact_P = score_pairs(self._asked.question_BD, question_P, row_P, self._matrix_ND)
        order_P = np.lexsort((-self._id_N[row_P], exact_P, question_P))
        row_B[question_P[order_P]] = row_P[order_P]  # the last one, which is the best, stays
        return row_B


def _none() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """No pairs: question, row, score."""
    return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)


def _passing(score_NB: Tensor, threshold_B: Tensor, group_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of question and row whose score is not below the question's threshold.

    Returns:
        (question_P, row_P, score_P).
    """
    key_NB, lowest_B = _keys(score_NB, threshold_B)
    num_questions, num_groups = len(threshold_B), len(score_NB) // group_rows
    whole = num_groups * group_rows
    parts = []
    if num_groups:
        key_RX = key_NB[:whole].reshape(group_rows, num_groups * num_questions)  # a group is every n-th row
        best_GB = key_RX.amax(dim=0).view(num_groups, num_questions)
        group_H, question_H = best_GB.ge(lowest_B).nonzero().unbind(1)
        picked_RH = key_RX.index_select(1, group_H * num_questions + question_H)
        member_P, place_P = picked_RH.ge(lowest_B[question_H]).nonzero().unbind(1)
        parts.append((question_H[place_P], member_P * num_groups + group_H[place_P]))
    if whole < len(score_NB):
        row_P, question_P = key_NB[whole:].ge(lowest_B).nonzero().unbind(1)
        parts.append((question_P, row_P + whole))
    question_P, row_P = (torch.cat(each) for each in zip(*parts, strict=True))
    score_P = score_NB[row_P, question_P].float()
    return question_P.numpy(), row_P.numpy(), score_P.numpy()


def _keys(score_NB: Tensor, threshold_B: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers that are ordered as the scores and the thresholds are; of undefined scores, the largest.

    Of bf16 these are its bits as a signed integer, which a CPU compares four times as fast: those of positive numbers
    as they are, those of negative ones with all but the sign turned round, where any of them counts.
    """
    if score_NB.dtype != torch.bfloat16:
        has_all = bool(threshold_B.isneginf().any())
        return score_NB.nan_to_num(nan=torch.inf) if has_all else score_NB, threshold_B
    key_NB, lowest_B = score_NB.view(torch.int16), threshold_B.bfloat16().view(torch.int16)
    if bool((threshold_B <= 0).any()):
        key_NB = key_NB ^ ((key_NB >> 15) & 0x7FFF)
        lowest_B = torch.where(threshold_B == 0, -1, lowest_B ^ ((lowest_B >> 15) & 0x7FFF))  # -1: -0.0
        lowest_B = torch.where(threshold_B == -torch.inf, -(2**15), lowest_B)
    return key_NB, lowest_B.to(torch.int16)


def _kth_best(score_NB: Tensor, k: int) -> np.ndarray:
    """A number that k rows of each question reach, or nearly the largest such; -inf where there are fewer rows."""
    if k > len(score_NB):
        return np.full(score_NB.shape[1], -np.inf, np.float32)
    num_groups = 4 * k
    if len(score_NB) >= 2 * num_groups:
        per_group = len(score_NB) // num_groups
        score_RGB = score_NB[: per_group * num_groups].reshape(per_group, num_groups, -1)
        score_NB = score_RGB.amax(dim=0) if score_NB.dtype != torch.bfloat16 else _largest(score_RGB)
    return score_NB.T.float().topk(k, dim=1).values[:, -1].numpy()


def _largest(score_RGB: Tensor) -> Tensor:
    """The largest bf16 number of each group, by their bits where it is above 0."""
    bits_GB = score_RGB.view(torch.int16).amax(dim=0)
    return score_RGB.amax(dim=0) if bool((bits_GB <= 0).any()) else bits_GB.view(torch.bfloat16)


def _order(question_P: np.ndarray, score_P: np.ndarray) -> np.ndarray:
    """Pairs by question, and of each question the largest score first."""
    bits_P = score_P.view(np.int32).astype(np.int64)
    return np.argsort((question_P << 33) - np.where(bits_P < 0, bits_P ^ 0x7FFFFFFF, bits_P))
