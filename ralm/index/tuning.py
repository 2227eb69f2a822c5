"""Probe vectors, and the least effort with which an approximate index reaches its recall target on them.

Shapes: B probes, C candidates of a probe, N passages, D embedding size.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from ralm.index.approximate import ApproximateSearcher, Effort, Layout, rescore
from ralm.index.config import USED_BY, IndexSettings
from ralm.index.matrix import to_float32
from ralm.index.recall import recall_at_k, reference_rows

logger = logging.getLogger(__name__)
TUNED_CUT = 10
PROBE_COSINE = 0.7
RERANKS = (16, 32, 64, 128, 256, 512, 1024)


def make_probes(matrix_ND: np.ndarray, count: int, *, seed: int, cosine: float = PROBE_COSINE) -> np.ndarray:
    """Vectors that lie to the passages as questions do: near one of them, yet not on it.

    A stored vector as its own question would find itself in any index. A probe is a stored vector x turned away from
    itself to a cosine of about 0.7 (where MiniLM puts questions and their passages), not in a random direction, most
    of which hold no passages at all, but towards another stored vector y, taken from the corpus's mean m:
    `0.7 x / |x| + sqrt(1 - 0.7^2) (y - m) / |y - m|`. So the noise is spread as the corpus itself is, and neighbours
    of x have to compete with neighbours of y.

    Args:
        matrix_ND: vectors as `matrix.npy` holds them.
        count: number of probes.
        seed: of the choice of x and y.
        cosine: weight of x; about the cosine between the probe and x.

    Returns:
        float32 [count, D].
    """
    generator = np.random.default_rng(seed)
    rows = generator.integers(len(matrix_ND), size=(2, count))
    center_D = to_float32(matrix_ND[:: max(1, len(matrix_ND) // 4096)]).mean(0)
    near_BD, away_BD = to_float32(matrix_ND[rows[0]]), to_float32(matrix_ND[rows[1]]) - center_D
    probe_BD = cosine * _unit(near_BD) + (1 - cosine**2) ** 0.5 * _unit(away_BD)
    return probe_BD.astype(np.float32)


def _unit(vector_BD: np.ndarray) -> np.ndarray:
    return vector_BD / np.maximum(np.linalg.norm(vector_BD, axis=1, keepdims=True), 1e-12)


def tune(index: Any, matrix_ND: np.ndarray, layout: Layout, settings: IndexSettings) -> tuple[Effort, float]:
    """The least breadth, and for it the least re-ranking, with which recall@10 reaches the target.

    Where none does, it is the best that was tried.

    Returns:
        The effort and its recall@10 on the tuning probes.
    """
    probe_BD = make_probes(matrix_ND, settings.num_probes, seed=1)
    cut = min(TUNED_CUT, len(matrix_ND))
    exact_score_BK, _ = reference_rows(probe_BD, matrix_ND, cut)
    best, best_recall = Effort(breadth=1, rerank=0), -1.0
    reranks = _reranks(settings, len(matrix_ND))
    for breadth in _breadths(settings, layout):
        widest = ApproximateSearcher(index, matrix_ND, layout, Effort(breadth=breadth, rerank=reranks[-1]))
        score_BC, row_BC = widest.candidates(probe_BD, cut)
        true_score_BC = rescore(probe_BD, row_BC, matrix_ND)
        for rerank in reranks:
            order_score_BC = (true_score_BC if rerank else score_BC)[:, : cut + rerank]
            order = np.argsort(-order_score_BC, axis=1, kind="stable")[:, :cut]
            recall = recall_at_k(np.take_along_axis(true_score_BC, order, 1), exact_score_BK)
            if recall > best_recall:
                best, best_recall = Effort(breadth=breadth, rerank=rerank), recall
            if recall >= settings.recall_target:
                return Effort(breadth=breadth, rerank=rerank), recall
    return best, best_recall


def _breadths(settings: IndexSettings, layout: Layout) -> list[int]:
    if settings.kind not in (*USED_BY["nprobe"], *USED_BY["hnsw_ef"]):
        return [1]
    chosen = settings.nprobe if layout.nlist else settings.hnsw_ef
    if chosen != "auto":
        return [min(chosen, layout.nlist) if layout.nlist else chosen]
    lowest, highest = (1, layout.nlist) if layout.nlist else (16, 1024)
    steps = [lowest]
    while steps[-1] < highest:
        steps.append(min(2 * steps[-1], highest))
    return steps


def _reranks(settings: IndexSettings, num_passages: int) -> list[int]:
    if settings.kind not in USED_BY["rerank"]:
        return [0]
    if settings.rerank != "auto":
        return [settings.rerank]
    return [rerank for rerank in RERANKS if rerank < num_passages] or [num_passages]


def measure_recall(search: Any, probe_BD: np.ndarray, matrix_ND: np.ndarray) -> dict[str, float]:
    """recall@1, 10 and 100 of a search against faiss's brute force over the same stored vectors.

    Args:
        search: from (float32 [B, D], k) to (scores, rows).
        probe_BD: questions.
        matrix_ND: vectors as `matrix.npy` holds them.
    """
    recall = {}
    for k in (cut for cut in (1, 10, 100) if cut <= len(matrix_ND)):
        _, row_BK = search(probe_BD, k)
        exact_score_BK, _ = reference_rows(probe_BD, matrix_ND, k)
        recall[f"recall_at_{k}"] = round(recall_at_k(rescore(probe_BD, row_BK, matrix_ND), exact_score_BK), 6)
    return recall
