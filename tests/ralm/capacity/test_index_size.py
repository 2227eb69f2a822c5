"""Sizes of an index by kind, against files that faiss writes and the layouts that the index stage resolves."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import get_args

import faiss
import numpy as np
import pytest

from ralm.capacity import index_size, run
from ralm.capacity.index_size import file_bytes, index_sizes
from ralm.distributed import World
from ralm.errors import ConfigError
from ralm.index import faiss_gpu, flat
from ralm.index.approximate import build_faiss, resolve_layout
from ralm.index.config import IndexSettings, Kind, Storage
from ralm.index.matrix import create_matrix
from ralm.index.shard import check_split

PASSAGES, DIMENSION = 3000, 64
APPROXIMATE = [kind for kind in get_args(Kind) if kind != "flat"]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(PASSAGES, DIMENSION)).astype(np.float32)


def sizes(settings: IndexSettings, **changes: int | bool) -> dict[Kind, index_size.IndexSize]:
    default = {"passages": PASSAGES, "dimension": DIMENSION, "processes": 1, "is_gpu": True}
    return index_sizes(settings, **{**default, **changes})


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_size_of_a_built_index(kind: Kind, vectors: np.ndarray, tmp_path: Path) -> None:
    settings = IndexSettings(kind=kind)
    index = build_faiss(vectors, resolve_layout(settings, PASSAGES, DIMENSION))
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    real = (tmp_path / "index.faiss").stat().st_size
    tolerance = 0.1 if kind == "ivf_pq_fast_scan" else 0.05  # so short lists end with emptier blocks
    assert file_bytes(sizes(settings)[kind], passages=PASSAGES) == pytest.approx(real, rel=tolerance)


@pytest.mark.parametrize("storage", get_args(Storage))
def test_size_of_whole_vectors(storage: Storage, vectors: np.ndarray, tmp_path: Path) -> None:
    settings = IndexSettings(storage=storage)
    found = sizes(settings)["flat"]
    matrix_ND = create_matrix(tmp_path, storage, PASSAGES, DIMENSION)
    assert found.share(PASSAGES, 1) == matrix_ND.nbytes
    assert file_bytes(found, passages=PASSAGES) == 0
    for kind in ("ivf_flat", "hnsw"):
        layout = resolve_layout(IndexSettings(kind=kind, storage=storage), PASSAGES, DIMENSION)
        faiss.write_index(build_faiss(vectors, layout), str(tmp_path / kind))
        estimate = file_bytes(sizes(settings)[kind], passages=PASSAGES)
        assert estimate == pytest.approx((tmp_path / kind).stat().st_size, rel=0.05)


@pytest.mark.parametrize("dimension", [2, 3, 96, 384, 767, 768, 1024])
@pytest.mark.parametrize("passages", [1, 15, 16, 255, 256, 40_000, 37_500_000])
def test_what_cannot_be_built_is_known_before(passages: int, dimension: int) -> None:
    for kind in APPROXIMATE:
        found = sizes(IndexSettings(kind=kind), passages=passages, dimension=dimension)[kind]
        try:
            layout = resolve_layout(IndexSettings(kind=kind), passages, dimension)
        except ConfigError:
            assert found.problem
            continue
        assert not found.problem
        if layout.nlist:
            assert found.fixed_bytes >= layout.nlist * dimension * 4
        if layout.code_size:
            assert found.bytes_per_vector == layout.code_size + (8 if layout.nlist else 0)


def test_options_count_for_their_kind_only() -> None:
    found = sizes(IndexSettings(kind="ivf_pq", code_size=8, nlist=16))
    assert found["ivf_pq"].bytes_per_vector == 16
    assert found["pq"].bytes_per_vector == DIMENSION // 4
    assert sizes(IndexSettings(kind="pq", code_size=5))["pq"].problem == "code_size 5 does not divide 64 values"
    assert "more than the 3,000 passages" in sizes(IndexSettings(kind="ivf_sq8", nlist=4000))["ivf_sq8"].problem


@pytest.mark.parametrize("kind", get_args(Kind))
def test_which_kinds_can_be_split(kind: Kind) -> None:
    assert not sizes(IndexSettings(), processes=1)[kind].problem
    is_refused = bool(sizes(IndexSettings(), processes=4)[kind].problem)
    with pytest.raises(ConfigError) if is_refused else contextlib.nullcontext():
        check_split(kind, World(rank=0, size=4))


def test_a_flat_index_in_main_memory_is_fp32_while_it_is_small() -> None:
    small = sizes(IndexSettings(), passages=10**5, dimension=768, is_gpu=False)["flat"]
    large = sizes(IndexSettings(), passages=10**6, dimension=768, is_gpu=False)["flat"]
    shared = sizes(IndexSettings(), passages=10**6, dimension=768, processes=2, is_gpu=False)["flat"]
    assert [each.bytes_per_vector for each in (small, large, shared)] == [4 * 768, 2 * 768, 4 * 768]


def test_limits_are_those_of_the_index() -> None:
    assert index_size.RESIDENT_BYTES == flat.RESIDENT_BYTES
    assert run.FLAT_SHARE == flat.GPU_SHARE
    assert set(index_size.GPU_KINDS) == {"flat", *faiss_gpu.GPU_KINDS}
