"""Indices over several processes: the rows of one of them, and the best of what all of them found.

Shapes: W processes, B questions of this process, Q questions of all, K passages found per question, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ralm.distributed import World
from ralm.errors import ConfigError
from ralm.index import fast_scan_lists
from ralm.index.config import Kind
from ralm.index.faiss_import import faiss

CODES_IN_A_BLOCK = 32
"""A fast-scan index packs so many codes into a block."""
SPLIT_KINDS: frozenset[Kind] = frozenset(
    {"flat", "ivf_flat", "ivf_sq8", "ivf_sq4", "pq", "ivf_pq", "pq_fast_scan", "ivf_pq_fast_scan"},
)
"""Kinds that can be split by rows. A graph (hnsw) cannot: its edges go everywhere."""
_BY_ID_RANGE = 0  # faiss' InvertedLists::SUBSET_TYPE_ID_RANGE
_NO_ROW, _NO_ID = -1, np.iinfo(np.int64).max


class Found(NamedTuple):
    """What a search found for B questions, the best first."""

    scores: np.ndarray
    """`[B, K]` float32 inner products."""
    rows: np.ndarray
    """`[B, K]` int64, of the whole index."""
    passage_ids: np.ndarray
    """`[B, K]` int64."""


def check_split(kind: Kind, world: World) -> None:
    """Refuse a kind that cannot be split over these processes.

    Raises:
        ConfigError: hnsw with several processes.
    """
    if world.size > 1 and kind not in SPLIT_KINDS:
        raise ConfigError(
            f"kind: {kind} cannot be split over {world.size} processes; build the index as flat or with a kind of "
            f"{', '.join(sorted(SPLIT_KINDS - {'flat'}))}"
        )


def row_multiple(kind: Kind) -> int:
    """Where a process' range of rows may start: at multiples of this."""
    return CODES_IN_A_BLOCK if kind == "pq_fast_scan" else 1


def part_of_faiss(index: Any, rows: slice, path: Path, kind: Kind) -> tuple[Any, int]:
    """The rows of a filled faiss index as an index of their own, with the same lists and codes.

    Args:
        index: the whole one, opened from `path` with its codes mapped.
        rows: which; they start at a multiple of `row_multiple`.
        path: its file.
        kind: of the index, one of `SPLIT_KINDS`.

    Returns:
        The part, and what is to be taken off its row numbers to count from the first of these rows.
    """
    if kind == fast_scan_lists.KIND:
        return fast_scan_lists.part_of_lists(index, rows), rows.start
    if kind.startswith("ivf"):
        part: Any = faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", 0))
        lists: Any = faiss.ArrayInvertedLists(part.nlist, part.code_size)
        part.replace_invlists(lists, True)
        lists.this.disown()
        part.ntotal = 0
        index.copy_subset_to(part, _BY_ID_RANGE, rows.start, rows.stop)
        return part, rows.start
    count, quantizer = rows.stop - rows.start, index.pq
    if kind == "pq":
        part = faiss.IndexPQ(index.d, quantizer.M, quantizer.nbits, index.metric_type)
        part.pq, part.is_trained = quantizer, True
        code_NM = faiss.rev_swig_ptr(index.codes.data(), index.codes.size()).reshape(index.ntotal, -1)
        part.add_sa_codes(np.ascontiguousarray(code_NM[rows]))
        return part, 0
    part = faiss.IndexPQFastScan(index.d, quantizer.M, quantizer.nbits, index.metric_type, index.bbs)
    part.pq, part.is_trained = quantizer, True
    per_row, padded = index.M2 // 2, -(-count // index.bbs) * index.bbs
    code_N = faiss.rev_swig_ptr(index.codes.get(), index.codes.size())
    own_N = np.ascontiguousarray(code_N[rows.start * per_row : (rows.start + padded) * per_row])
    part.codes.resize(len(own_N))
    faiss.memcpy(part.codes.get(), faiss.swig_ptr(own_N), len(own_N))
    part.ntotal, part.ntotal2 = count, padded
    return part, 0


def search_parts(
    world: World, search: Callable[[np.ndarray, int], Found], question_BD: np.ndarray, k: int, num_own: int
) -> Found:
    """Search the rows of every process for the questions of every process.

    Questions go to all processes; of each question, pairs of score and passage (its id, and its row) go back to the
    process that asked. Every process has to call it with the same k; the number of questions may differ, or be 0.

    Args:
        world: the processes.
        search: the k best among this process' own rows, at most `num_own`.
        question_BD: float32, of this process.
        k: passages for each question, at most the rows of all processes together.
        num_own: rows of this process.

    Returns:
        The k best of all rows; among equal scores the lower id comes first.
    """
    asked = world.gather(torch.from_numpy(np.ascontiguousarray(question_BD, np.float32)))
    question_QD = torch.cat(asked).numpy()
    score_QK = np.full((len(question_QD), k), -np.inf, np.float32)
    place_QK2 = np.full((len(question_QD), k, 2), (_NO_ROW, _NO_ID), np.int64)
    if (depth := min(k, num_own)) and len(question_QD):
        found = search(question_QD, depth)
        score_QK[:, :depth] = found.scores
        place_QK2[:, :depth] = np.stack([found.rows, found.passage_ids], axis=2)
    sizes = [len(part) for part in asked]
    scores = world.exchange(torch.from_numpy(score_QK).split(sizes))
    places = world.exchange(torch.from_numpy(place_QK2).split(sizes))
    score_BC, place_BC2 = torch.cat(scores, dim=1).numpy(), torch.cat(places, dim=1).numpy()
    order_BK = np.lexsort((place_BC2[:, :, 1], -score_BC), axis=1)[:, :k]
    return Found(
        np.take_along_axis(score_BC, order_BK, 1),
        np.take_along_axis(place_BC2[:, :, 0], order_BK, 1),
        np.take_along_axis(place_BC2[:, :, 1], order_BK, 1),
    )
