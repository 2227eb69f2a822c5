"""Approximate kinds: a filled faiss index finds candidates, `matrix.npy` gives their exact scores.

The raw vectors are not held in memory for this: re-ranking touches only the candidates' pages of the mapped file.

Shapes: B questions, C candidates of a question, K passages found per question, N passages searched, D embedding size.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ralm.errors import ArtifactError, ConfigError
from ralm.index import fast_scan_lists
from ralm.index.config import IndexSettings, Kind, Storage
from ralm.index.faiss_gpu import to_device, to_memory
from ralm.index.faiss_import import faiss
from ralm.index.matrix import BLOCK_ROWS, best_candidates, check_search, to_float32
from ralm.index.recall import matrix_products, reference_rows
from ralm.index.rows_on_demand import RowsOnDemand, with_rows

CPU = torch.device("cpu")
FAISS_FILE = "index.faiss"
QUESTION_BATCH = 256
"""Questions that faiss gets at a time; it bounds its tables (a product quantiser's: 1 KiB a part and question)."""
POINTS_PER_CENTROID = 64
SMALLEST_TRAINING = 39
"""Points a centroid that faiss asks for; fewer lists are made where there are not as many passages."""

_WHOLE: dict[Storage, str] = {"f32": "Flat", "f16": "SQfp16", "bf16": "SQbf16"}
_FACTORY: dict[Kind, str] = {
    "ivf_flat": "IVF{nlist},{whole}",
    "ivf_sq8": "IVF{nlist},SQ8",
    "ivf_sq4": "IVF{nlist},SQ4",
    "pq": "PQ{code_size}np",
    "ivf_pq": "IVF{nlist},PQ{code_size}np",
    "pq_fast_scan": "PQ{code_pairs}x4fs",
    "ivf_pq_fast_scan": "IVF{nlist},PQ{code_pairs}x4fsr",
    "hnsw": "HNSW{hnsw_m},{whole}",
}
# np: without polysemous training, an ordering of the codes for Hamming distances that is not used here and takes a
# hundred times as long as the rest.
_FEWEST: dict[str, int] = {"pq": 256, "ivf_pq": 256, "pq_fast_scan": 16, "ivf_pq_fast_scan": 16}
"""Passages that a product quantiser needs: one for each of its codes."""


WHOLE_VECTORS: tuple[Kind, ...] = ("ivf_flat", "hnsw")
"""Kinds whose own scores are exact but for rounding, which differs with the place of a vector in the index."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What is fixed when an approximate index is built; fields that a kind does not use are 0."""

    kind: Kind
    storage: Storage
    nlist: int = 0
    code_size: int = 0
    hnsw_m: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """What can be chosen anew for each search."""

    breadth: int
    """Lists (nprobe) of an ivf kind, vectors kept in view (ef) of hnsw; 1 where all is compared."""
    rerank: int
    """Candidates beyond k that are scored again; 0: the scores are those of the codes."""
    reach: float = 0.0
    """Of ivf_pq_fast_scan: how far below the nearest list others are searched; 0: `breadth` lists of each question."""


def resolve_layout(settings: IndexSettings, num_passages: int, dimension: int) -> Layout:
    """Numbers for every `auto` that the build needs.

    Raises:
        ConfigError: too few passages for the kind, more lists than passages, or a code size that does not divide D.
    """
    kind = settings.kind
    if num_passages < _FEWEST.get(kind, 1):
        raise ConfigError(f"kind: {kind} needs at least {_FEWEST[kind]} passages, found {num_passages}; use flat")
    numbers = {}
    if "nlist" in _FACTORY[kind]:
        shortest = fast_scan_lists.SHORTEST_LIST if kind == fast_scan_lists.KIND else SMALLEST_TRAINING
        auto = max(1, min(round(4 * num_passages**0.5), num_passages // shortest))
        numbers["nlist"] = auto if settings.nlist == "auto" else settings.nlist
        if numbers["nlist"] > num_passages:
            raise ConfigError(f"nlist: expected at most {num_passages}, the number of passages, found {settings.nlist}")
    if "code" in _FACTORY[kind]:
        numbers["code_size"] = _code_size(settings, dimension)
    if kind == "hnsw":
        numbers["hnsw_m"] = 32 if settings.hnsw_m == "auto" else settings.hnsw_m
    return Layout(kind=kind, storage=settings.storage, **numbers)


def _code_size(settings: IndexSettings, dimension: int) -> int:
    codes_per_byte = 2 if settings.kind.endswith("fast_scan") else 1
    fitting = [size for size in range(1, dimension + 1) if dimension % (size * codes_per_byte) == 0]
    if settings.code_size == "auto":
        if not fitting:
            raise ConfigError(f"kind: {settings.kind} needs vectors of an even size, found {dimension} values")
        return max([size for size in fitting if size <= dimension // 4] or fitting[:1])
    if settings.code_size not in fitting:
        raise ConfigError(f"code_size: expected one of {fitting} for {dimension} values, found {settings.code_size}")
    return settings.code_size


def build_faiss(matrix_ND: np.ndarray, layout: Layout, device: torch.device = CPU) -> Any:
    """A trained and filled faiss index. On a CPU equal vectors give an equal index, whatever the number of threads.

    Shown by tests for 1 and several threads; a graph depends on the order of insertion and is built on one thread.

    Args:
        matrix_ND: vectors as `matrix.npy` holds them.
        layout: what to build.
        device: a GPU builds the kinds that faiss has for it.
    """
    if layout.kind == fast_scan_lists.KIND:
        made = fast_scan_lists.build_lists(matrix_ND, num_lists=layout.nlist, code_size=layout.code_size)
        return to_device(made, layout.kind, device)  # stays on the CPU, and the log says so
    text = _FACTORY[layout.kind].format(
        nlist=layout.nlist,
        code_size=layout.code_size,
        code_pairs=2 * layout.code_size,
        hnsw_m=layout.hnsw_m,
        whole=_WHOLE[layout.storage],
    )
    index: Any = faiss.index_factory(matrix_ND.shape[1], text, faiss.METRIC_INNER_PRODUCT)
    if layout.kind == "ivf_flat" and layout.storage != "f32":
        index.by_residual = False  # the lists then hold the same rounded values as the matrix
    trained = [index] if layout.nlist else []
    for clustering in [part.cp for part in (trained + [index.pq] if layout.code_size else trained)]:
        clustering.max_points_per_centroid = POINTS_PER_CENTROID
        clustering.min_points_per_centroid = 1  # no warnings on small corpora
    index = to_device(index, layout.kind, device)
    with matrix_products(), _threads(1 if layout.kind == "hnsw" else faiss.omp_get_max_threads()):
        index.train(_sample(matrix_ND, POINTS_PER_CENTROID * max(layout.nlist, 256)))
        for start in range(0, len(matrix_ND), BLOCK_ROWS):
            index.add(to_float32(matrix_ND[start : start + BLOCK_ROWS]))
    return to_memory(index)


def _sample(matrix_ND: np.ndarray, size: int) -> np.ndarray:
    if size >= len(matrix_ND):
        return to_float32(matrix_ND)
    rows = np.random.default_rng(0).choice(len(matrix_ND), size, replace=False)
    return to_float32(matrix_ND[np.sort(rows)])


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(number)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def read_faiss(path: Path, num_passages: int, dimension: int) -> Any:
    """Open an `index.faiss`, its codes mapped where faiss can.

    Raises:
        ArtifactError: faiss cannot read it, or it holds something else than these passages.
    """
    try:
        index = faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", 0))
    except (RuntimeError, MemoryError) as error:
        raise ArtifactError(f"{path}: expected a faiss index, found {str(error).splitlines()[0]}") from error
    found = (index.ntotal, index.d, index.metric_type)
    expected = (num_passages, dimension, faiss.METRIC_INNER_PRODUCT)
    if found != expected:
        raise ArtifactError(f"{path}: expected passages, values and metric {expected}, found {found}")
    return index


class ApproximateSearcher:
    """Search with a faiss index, then score the candidates exactly.

    Args:
        index: the filled faiss index.
        matrix_ND: the vectors as `matrix.npy` holds them, memory-mapped or fetched on demand.
        layout: how the index was built.
        effort: how hard to look.
        id_N: ids of the passages; among equal scores the lower one comes first. By default the rows.
        first_row: what the index calls the first of these rows.
    """

    def __init__(
        self,
        index: Any,
        matrix_ND: np.ndarray | RowsOnDemand,
        layout: Layout,
        effort: Effort,
        *,
        id_N: np.ndarray | None = None,
        first_row: int = 0,
    ) -> None:
        self._index, self._matrix_ND, self._layout, self._effort = index, matrix_ND, layout, effort
        self._id_N = np.arange(len(matrix_ND)) if id_N is None else id_N
        self._first_row = first_row
        self._lists = fast_scan_lists.ListSearch(index) if layout.kind == fast_scan_lists.KIND else None

    def search(self, question_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages that are found: always k different ones for each question.

        Where the searched part holds fewer than k, more is searched, at last everything. Among equal scores the lower
        id comes first (among the candidates; what faiss leaves out at the cut is its choice).

        Args:
            question_BD: float32.
            k: passages per question, at most N.

        Returns:
            (score_BK float32, row_BK int64), best first.

        Raises:
            ConfigError: k is not between 1 and N, or the question vectors have another size than the passages'.
        """
        check_search(question_BD, k, *self._matrix_ND.shape)
        score_BC, row_BC = self.candidates(question_BD, k)
        if self._effort.rerank or self._layout.kind in WHOLE_VECTORS:
            matrix_ND = with_rows(self._matrix_ND, row_BC[row_BC >= 0])
            return best_candidates(question_BD, row_BC, matrix_ND, k, self._id_N)
        order = np.lexsort((self._id_N[row_BC], -score_BC), axis=1)[:, :k]
        return np.take_along_axis(score_BC, order, 1), np.take_along_axis(row_BC, order, 1)

    def candidates(self, question_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Up to `k + rerank` candidates by the score of their codes, k at least; missing ones are -inf and row -1."""
        question_BD = np.ascontiguousarray(question_BD, np.float32)
        size = min(k + self._effort.rerank, len(self._matrix_ND))
        score_BC = np.empty((len(question_BD), size), np.float32)
        row_BC = np.empty((len(question_BD), size), np.int64)
        for start in range(0, len(question_BD), QUESTION_BATCH):
            part = slice(start, start + QUESTION_BATCH)
            score_BC[part], row_BC[part] = self._search_faiss(
                question_BD[part], size, self._effort.breadth, self._effort.reach
            )
        breadth = self._effort.breadth
        if self._effort.reach and len(short := np.flatnonzero((row_BC[:, :k] < 0).any(1))):
            score_BC[short], row_BC[short] = self._search_faiss(question_BD[short], size, breadth)
        while len(short := np.flatnonzero((row_BC[:, :k] < 0).any(1))) and breadth < self._layout.nlist:
            breadth = min(2 * breadth, self._layout.nlist)
            score_BC[short], row_BC[short] = self._search_faiss(question_BD[short], size, breadth)
        if len(short):
            matrix_ND = with_rows(self._matrix_ND, np.arange(len(self._matrix_ND)))
            score_BC[short], row_BC[short] = reference_rows(question_BD[short], matrix_ND, size)
        return score_BC, row_BC

    def _search_faiss(
        self, question_BD: np.ndarray, size: int, breadth: int, reach: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        try:
            if self._lists is not None:
                score_BC, row_BC = self._lists.search(question_BD, size, min(breadth, self._layout.nlist), reach)
            else:
                score_BC, row_BC = self._index.search(question_BD, size, params=self._parameters(breadth))
        except RuntimeError as error:  # a GPU's limits on candidates and lists
            raise ConfigError(f"index: faiss refuses this search: {str(error).splitlines()[0]}") from error
        is_none_BC = row_BC < 0
        return np.where(is_none_BC, np.float32(-np.inf), score_BC), np.where(is_none_BC, -1, row_BC - self._first_row)

    def _parameters(self, breadth: int) -> Any:
        if self._layout.nlist:
            lists = faiss.SearchParametersIVF()
            lists.nprobe = min(breadth, self._layout.nlist)
            return lists
        if self._layout.hnsw_m:
            graph = faiss.SearchParametersHNSW()  # type: ignore[attr-defined]  # faiss's stubs leave it out
            graph.efSearch = breadth
            return graph
        return None
