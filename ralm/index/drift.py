"""How well the trained part of an index (centroids, codebooks) fits the vectors that are in it.

What is taken over from an earlier index was trained for other vectors. Growth since the training shows that the corpus
has moved away. Measured with real text (MiniLM, 8,000 Wikipedia passages, 205 lists); recall@10 of real questions, with
the effort of the earlier index, less that of an index trained anew:

| change | ivf_flat error | imbalance | recall | ivf_pq error | recall |
|---|---|---|---|---|---|
| 5 % other Wikipedia passages | +0.5 % | 0 | +0.002 | +2 % | +0.002 |
| 50 % other Wikipedia passages | +5 % | +1 % | -0.003 | +17 % | -0.008 |
| 6 % biographies more | +3 % | -2 % | -0.001 | +5 % | -0.006 |
| 60 % biographies more | +19 % | +26 % | -0.009 | +35 % | -0.025 |
| 6 % scientific abstracts more, asked about them | +4 % | +17 % | -0.022 | +7 % | -0.033 |
| 65 % scientific abstracts more, asked about them | +27 % | +576 % | -0.016 | +49 % | -0.033 |

In an index that was trained anew, both are within 7 % of what they were. A new subject shows first in the imbalance:
its passages crowd in few lists. With pq and pq_fast_scan none of these changes cost more than 0.005.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ralm.index import fast_scan_lists
from ralm.index.config import Kind
from ralm.index.matrix import to_float32
from ralm.index.recall import matrix_products

SAMPLE_ROWS = 16384
"""Rows on which the error is measured: its mean is then known to about 0.2 %."""
_DECODED: frozenset[Kind] = frozenset({"pq", "ivf_pq", "pq_fast_scan", "ivf_pq_fast_scan"})
"""Kinds whose codes come from a trained codebook; the others have trained centroids, and at most a range of values."""


def measure_fit(index: Any, kind: Kind, matrix_ND: np.ndarray) -> dict[str, float]:
    """Quantisation error, and for ivf kinds how unequal the lists are.

    Args:
        index: a filled faiss index of these vectors.
        kind: of the index.
        matrix_ND: the vectors as `matrix.npy` holds them.

    Returns:
        `quantisation_error`: mean squared distance of the vectors to what the trained part makes of them, as a share of
        their mean squared distance to their mean: to the decoded code of a product quantiser (with the centroid it
        is added to, for ivf_pq), to the centroid of the list else. `imbalance`: by how much a search of the lists
        takes longer than with lists of equal size, `nlist sum(n_i^2) / N^2` (faiss's imbalance factor), 1 at best.
    """
    sample_ND = _sample(matrix_ND)
    with matrix_products():
        if kind in _DECODED:
            # faiss 1.15 ends the process when it decodes a packed index that was read from a file
            coder = fast_scan_lists.unpack(index, with_codes=False) if kind == fast_scan_lists.KIND else index
            made_ND = coder.sa_decode(coder.sa_encode(sample_ND))
        else:
            _, list_N1 = index.quantizer.search(sample_ND, 1)
            made_ND = index.quantizer.reconstruct_batch(list_N1[:, 0])
    spread = _mean_square(sample_ND - sample_ND.mean(0))
    fit = {"quantisation_error": round(_mean_square(sample_ND - made_ND) / max(spread, 1e-12), 6)}
    if kind.startswith("ivf"):
        fit["imbalance"] = round(index.invlists.imbalance_factor(), 6)
    return fit


def growth(fit: dict[str, float], at_training: dict[str, float]) -> dict[str, float]:
    """Relative growth of each measure since the training.

    Example:
        >>> growth({"imbalance": 1.5}, {"imbalance": 1.25})
        {'imbalance': 0.2}
    """
    return {name: round(value / max(at_training[name], 1e-6) - 1, 4) for name, value in fit.items()}


def _sample(matrix_ND: np.ndarray) -> np.ndarray:
    if len(matrix_ND) <= SAMPLE_ROWS:
        return to_float32(matrix_ND)
    rows = np.random.default_rng(3).choice(len(matrix_ND), SAMPLE_ROWS, replace=False)
    return to_float32(matrix_ND[np.sort(rows)])


def _mean_square(difference_ND: np.ndarray) -> float:
    return float(np.einsum("nd,nd->", difference_ND, difference_ND, dtype=np.float64) / len(difference_ND))
