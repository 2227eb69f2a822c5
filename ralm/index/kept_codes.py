"""A filled faiss index out of an earlier one: codes of unchanged vectors are taken over, only the others are encoded.

The trained part (centroids, codebooks, ranges) stays as it is. What comes out is the index that the trained part of the
earlier one gives when all vectors are added to it one after another: the same lists, codes and order.

Shapes: M passages of the earlier index, N passages of the new one, D values in a vector, C bytes of a code, L entries
of a list.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ralm.index import fast_scan_lists
from ralm.index.approximate import read_faiss
from ralm.index.clustering import Lists
from ralm.index.config import Kind
from ralm.index.faiss_import import faiss
from ralm.index.matrix import BLOCK_ROWS, to_float32
from ralm.index.recall import matrix_products

UPDATABLE: frozenset[Kind] = frozenset(
    {"ivf_flat", "ivf_sq8", "ivf_sq4", "pq", "ivf_pq", "pq_fast_scan", "ivf_pq_fast_scan"}
)
"""Kinds whose codes can be taken over. A flat index is its matrix, and the edges of a graph (hnsw) go everywhere."""


def match_rows(
    old_id_M: np.ndarray, old_matrix_MD: np.ndarray, id_N: np.ndarray, matrix_ND: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which vectors are unchanged: those with the same passage id and, bit by bit, the same stored values.

    The ids of the earlier index are sorted once; the matrices are compared block by block. Memory: 24 bytes a passage
    beside the ids, and two blocks of vectors.

    Args:
        old_id_M: passage ids of the earlier index.
        old_matrix_MD: its vectors as `matrix.npy` holds them, in the number format of the new ones.
        id_N: passage ids of the new index.
        matrix_ND: its vectors.

    Returns:
        (old_row_N, new_row_M) int64: where the vector of a row is in the other index; -1 where it is not.

    Example:
        >>> vectors = np.eye(3, dtype=np.float32)
        >>> match_rows(np.array([7, 8, 9]), vectors, np.array([9, 7, 5]), vectors[[2, 1, 0]])[0].tolist()
        [2, -1, -1]
    """
    order_M = np.argsort(old_id_M, kind="stable")
    sorted_M = old_id_M[order_M]
    bits = f"<u{matrix_ND.itemsize}"
    old_row_N = np.full(len(id_N), -1, np.int64)
    starts = range(0, len(id_N), BLOCK_ROWS)
    for start in starts:
        block = id_N[start : start + BLOCK_ROWS]
        place = np.minimum(np.searchsorted(sorted_M, block), len(sorted_M) - 1)
        row = start + np.flatnonzero(sorted_M[place] == block)
        old_row = order_M[place[row - start]]
        is_equal = (old_matrix_MD[old_row].view(bits) == matrix_ND[row].view(bits)).all(1)
        old_row_N[row[is_equal]] = old_row[is_equal]
    del order_M, sorted_M
    new_row_M = np.full(len(old_id_M), -1, np.int64)
    for start in starts:
        row = start + np.flatnonzero(old_row_N[start : start + BLOCK_ROWS] >= 0)
        new_row_M[old_row_N[row]] = row
    for start in starts:  # of rows with the same id only the last keeps the codes
        row = start + np.flatnonzero(old_row_N[start : start + BLOCK_ROWS] >= 0)
        old_row_N[row[new_row_M[old_row_N[row]] != row]] = -1
    return old_row_N, new_row_M


def update_faiss(
    path: Path, kind: Kind, old_row_N: np.ndarray, new_row_M: np.ndarray, matrix_ND: np.ndarray
) -> tuple[Any, Any]:
    """The faiss index of the new vectors, with the trained part of an earlier one, on the CPU.

    Args:
        path: `index.faiss` of the earlier index.
        kind: of both, one of `UPDATABLE`.
        old_row_N: as `match_rows` gives them.
        new_row_M: the same the other way round.
        matrix_ND: the new vectors as `matrix.npy` holds them.

    Returns:
        The earlier index, its codes mapped, and the new one, in memory.

    Raises:
        ArtifactError: faiss cannot read the earlier index, or it holds something else than M vectors of size D.
    """
    old = read_faiss(path, len(new_row_M), matrix_ND.shape[1])
    added_rows = np.flatnonzero(old_row_N < 0)
    if kind == fast_scan_lists.KIND:
        plain, empty = fast_scan_lists.unpack(old), fast_scan_lists.unpack(old, with_codes=False)
        lists = Lists(fast_scan_lists.centroids(old))

        def encode(vector_ND: np.ndarray, row_N: np.ndarray) -> None:
            fast_scan_lists.add_vectors(empty, vector_ND, row_N, lists)

        return old, fast_scan_lists.pack(_update_lists(plain, empty, added_rows, new_row_M, matrix_ND, encode))
    if kind.startswith("ivf"):
        index = read_faiss(path, len(new_row_M), matrix_ND.shape[1])
        return old, _update_lists(old, index, added_rows, new_row_M, matrix_ND, index.add_with_ids)
    return old, _update_codes(old, kind, old_row_N, matrix_ND)


def _update_lists(
    old: Any,
    index: Any,
    added_rows: np.ndarray,
    new_row_M: np.ndarray,
    matrix_ND: np.ndarray,
    add: Callable[[np.ndarray, np.ndarray], None],
) -> Any:
    """Fill `index` with the added vectors by `add`, then merge each list with what is kept of the other, by row."""
    added: Any = faiss.ArrayInvertedLists(index.nlist, index.code_size)
    _replace_lists(index, added, 0)
    for start in range(0, len(added_rows), BLOCK_ROWS):
        row = added_rows[start : start + BLOCK_ROWS]
        with matrix_products():
            add(to_float32(matrix_ND[row]), row)
    merged: Any = faiss.ArrayInvertedLists(index.nlist, index.code_size)
    for number in range(index.nlist):
        old_row_L, old_code_LC = _list(old.invlists, number)
        added_row_L, added_code_LC = _list(added, number)
        row_L = np.concatenate([new_row_M[old_row_L], added_row_L])
        order = np.argsort(row_L)[np.count_nonzero(row_L < 0) :]  # without those that were removed
        row_L, code_LC = row_L[order], np.concatenate([old_code_LC, added_code_LC])[order]
        merged.add_entries(number, len(row_L), faiss.swig_ptr(row_L), faiss.swig_ptr(code_LC))
    _replace_lists(index, merged, len(matrix_ND))
    return index


def _replace_lists(index: Any, lists: Any, num_vectors: int) -> None:
    index.replace_invlists(lists, True)
    lists.this.disown()
    index.ntotal = num_vectors


def _list(lists: Any, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and codes of a list, not copied."""
    size = lists.list_size(number)
    if not size:
        return np.empty(0, np.int64), np.empty((0, lists.code_size), np.uint8)
    codes = faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size)
    return faiss.rev_swig_ptr(lists.get_ids(number), size), codes.reshape(size, -1)


def _update_codes(old: Any, kind: Kind, old_row_N: np.ndarray, matrix_ND: np.ndarray) -> Any:
    """Codes in the order of the rows. Fast-scan codes are unpacked and packed again: 15 times as fast as encoding."""
    old_code_MC = _unpack(old) if kind == "pq_fast_scan" else _plain_codes(old)
    index: Any = faiss.IndexPQ(old.d, old.pq.M, old.pq.nbits, old.metric_type)
    index.pq, index.is_trained, index.do_polysemous_training = old.pq, True, False
    for start in range(0, len(matrix_ND), BLOCK_ROWS):
        old_row = old_row_N[start : start + BLOCK_ROWS]
        code_NC = old_code_MC[old_row]  # of any vector where there is none
        if len(added := np.flatnonzero(old_row < 0)):
            code_NC[added] = index.sa_encode(to_float32(matrix_ND[start + added]))
        index.add_sa_codes(code_NC)
    if kind == "pq":
        return index
    packed: Any = faiss.IndexPQFastScan(index, old.bbs)
    packed.orig_codes = None  # it points to the unpacked codes, which end here
    return packed


def _plain_codes(index: Any) -> np.ndarray:
    return faiss.rev_swig_ptr(index.codes.data(), index.codes.size()).reshape(index.ntotal, -1)


def _unpack(index: Any) -> np.ndarray:
    """Fast-scan codes, packed in blocks of vectors, as one row of bytes for each vector."""
    packer = index.get_CodePacker()
    packed = faiss.rev_swig_ptr(index.codes.get(), index.codes.size())
    code_MC = np.empty((len(packed) // packer.block_size * packer.nvec, packer.code_size), np.uint8)
    for block, start in enumerate(range(0, len(packed), packer.block_size)):
        packer.unpack_all(faiss.swig_ptr(packed[start:]), faiss.swig_ptr(code_MC[block * packer.nvec :]))
    return code_MC[: index.ntotal]
