"""How large an index is in memory and on the disk, by kind, before it is built.

Layouts are those of `ralm/index/approximate.py` (faiss's); `tests/ralm/capacity/test_index_size.py` builds each kind.

Symbols: `N` passages, `D` values in a vector.
"""

from __future__ import annotations

import dataclasses
from typing import Final, get_args

from ralm.index.config import USED_BY, IndexSettings, Kind

ITEM_BYTES: Final = {"f16": 2, "bf16": 2, "f32": 4}
ID_BYTES: Final = 8
RESIDENT_BYTES: Final = 2 << 30
"""A flat index in main memory is held as fp32 up to this size (`ralm/index/flat.py`)."""
GPU_KINDS: Final = ("flat", "ivf_flat", "ivf_sq8", "ivf_sq4", "ivf_pq")
"""Kinds that a GPU holds: flat, and those that faiss has for GPUs (`ralm/index/faiss_gpu.py`); others stay in main
memory."""
_POINTS_PER_LIST: Final = 39
_CODES: Final = {"pq": 256, "ivf_pq": 256, "pq_fast_scan": 16, "ivf_pq_fast_scan": 16}
"""Codes of one part of a product quantiser: rows of its code book, and passages that it needs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexSize:
    """Size of an index of one kind."""

    kind: Kind
    bytes_per_vector: float
    fixed_bytes: int = 0
    """Centroids and code books; each process has them."""
    is_on_device: bool
    problem: str = ""
    """Why there can be no such index; empty if there can."""

    def share(self, passages: int, processes: int) -> int:
        """Bytes in the memory of one of the processes that share it."""
        return round(-(-passages // processes) * self.bytes_per_vector) + self.fixed_bytes


def index_sizes(
    settings: IndexSettings, *, passages: int, dimension: int, processes: int, is_gpu: bool
) -> dict[Kind, IndexSize]:
    """The size of every kind with these settings; options of other kinds than the settings' are `auto`.

    Args:
        settings: number format and options.
        passages: N.
        dimension: D.
        processes: that share the index by row ranges.
        is_gpu: they have a GPU each.
    """
    return {kind: _size(kind, settings, passages, dimension, processes, is_gpu=is_gpu) for kind in get_args(Kind)}


def file_bytes(size: IndexSize, *, passages: int) -> int:
    """Size of `index.faiss`; a flat index has none."""
    return 0 if size.kind == "flat" else size.share(passages, 1)


def _size(
    kind: Kind, settings: IndexSettings, passages: int, dimension: int, processes: int, *, is_gpu: bool
) -> IndexSize:
    item = ITEM_BYTES[settings.storage]
    nlist, code_size, problem = 0, 0, ""
    if kind in USED_BY["nlist"]:
        shortest = 256 if kind == "ivf_pq_fast_scan" else _POINTS_PER_LIST
        nlist = _option(settings, kind, "nlist", max(1, min(round(4 * passages**0.5), passages // shortest)))
        if nlist > passages:
            problem = f"nlist is {nlist}, more than the {passages:,} passages"
    if kind in _CODES:
        code_size = _option(settings, kind, "code_size", _auto_code_size(kind, dimension))
        if not code_size or dimension % (code_size * (2 if kind.endswith("fast_scan") else 1)):
            problem = f"code_size {code_size} does not divide {dimension} values"
        elif passages < _CODES[kind]:
            problem = f"it needs at least {_CODES[kind]} passages"
    if kind == "hnsw" and processes > 1:
        problem = f"a graph cannot be split over {processes} processes"
    neighbours = _option(settings, kind, "hnsw_m", 32)
    is_resident = -(-passages // processes) * dimension * 4 <= RESIDENT_BYTES
    per_vector: dict[Kind, float] = {
        "flat": dimension * (4 if is_resident and not is_gpu else item),
        "ivf_flat": dimension * item + ID_BYTES,
        "ivf_sq8": dimension + ID_BYTES,
        "ivf_sq4": -(-dimension // 2) + ID_BYTES,
        "pq": code_size,
        "ivf_pq": code_size + ID_BYTES,
        "pq_fast_scan": code_size,
        "ivf_pq_fast_scan": code_size + ID_BYTES,
        # twice as many links on the lowest level of the graph, on average M / (M - 1) times as many above; 12: level
        # and place of the links
        "hnsw": dimension * item + 4 * (2 * neighbours + neighbours / (neighbours - 1)) + 12,
    }
    per_list = dimension * 4 + ID_BYTES
    if kind == "ivf_pq_fast_scan":
        per_list += 16 * code_size  # a list ends with a block of 32 codes, of which half are empty on average
    return IndexSize(
        kind=kind,
        bytes_per_vector=per_vector[kind],
        fixed_bytes=nlist * per_list + _CODES.get(kind, 0) * dimension * 4,
        is_on_device=not is_gpu or kind in GPU_KINDS,
        problem=problem,
    )


def _option(settings: IndexSettings, kind: Kind, name: str, auto: int) -> int:
    value = getattr(settings, name)
    return auto if value == "auto" or settings.kind != kind else int(value)


def _auto_code_size(kind: Kind, dimension: int) -> int:
    """A quarter of the values, or the next smaller number that divides them; 0 if none does."""
    codes_per_byte = 2 if kind.endswith("fast_scan") else 1
    fitting = [size for size in range(1, dimension + 1) if dimension % (size * codes_per_byte) == 0]
    return max([size for size in fitting if size <= dimension // 4] or fitting[:1] or [0])
