"""Search on a GPU: exact, and by faiss where it is built for GPUs. Skips itself where there is none."""

from __future__ import annotations

import logging
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

import ralm.index.flat
from ralm.index.build import finish_index, open_searcher
from ralm.index.config import IndexSettings, Storage
from ralm.index.flat import FlatSearcher
from ralm.index.matrix import create_matrix, to_storage
from ralm.index.recall import recall_at_k, reference_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda")


def vectors(count: int, dimension: int = 64) -> np.ndarray:
    generator = np.random.default_rng(2)
    centres = generator.normal(size=(50, dimension))
    return (centres[generator.integers(50, size=count)] + generator.normal(size=(count, dimension))).astype(np.float32)


@pytest.mark.parametrize("storage", ["f16", "f32", "bf16"])
@pytest.mark.parametrize("is_held", [True, False], ids=["held", "streamed"])
def test_exact_search_finds_what_the_cpu_finds(
    storage: Storage, is_held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_held:
        monkeypatch.setattr(ralm.index.flat, "GPU_SHARE", 0.0)
    matrix_ND = to_storage(vectors(150_000), storage)
    matrix_ND[::1000] = matrix_ND[0]
    question_BD = np.concatenate([vectors(30), vectors(1)])
    expected = FlatSearcher(matrix_ND, torch.device("cpu")).search(question_BD, 100)
    searcher = FlatSearcher(matrix_ND, GPU)
    assert (searcher._held_ND is not None) == is_held
    found = searcher.search(question_BD, 100)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.skipif(getattr(faiss, "get_num_gpus", int)() == 0, reason="needs faiss-gpu")
@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_sq8", "ivf_pq"])
def test_faiss_builds_and_searches_on_the_gpu(kind: str, tmp_path: Path) -> None:
    settings = IndexSettings(kind=kind, nlist=64, nprobe=16)  # type: ignore[arg-type]
    matrix_ND = create_matrix(tmp_path, "f16", 20_000, 64)
    matrix_ND[:] = to_storage(vectors(20_000), "f16")
    details = finish_index(tmp_path, matrix_ND, settings, GPU)
    searcher = open_searcher(tmp_path / "index.faiss", matrix_ND, details, GPU)
    assert hasattr(searcher._index, "getDevice")  # type: ignore[union-attr]
    question_BD = vectors(64)
    exact, _ = reference_rows(question_BD, matrix_ND, 10)
    found, row_BK = searcher.search(question_BD, 10)
    assert recall_at_k(found, exact) > 0.9
    assert all(len(set(rows)) == 10 for rows in row_BK.tolist())


@pytest.mark.skipif(getattr(faiss, "get_num_gpus", int)() > 0, reason="needs a faiss without GPUs")
def test_the_log_says_that_faiss_stays_on_the_cpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    matrix_ND = create_matrix(tmp_path, "f16", 2000, 64)
    matrix_ND[:] = to_storage(vectors(2000), "f16")
    with caplog.at_level(logging.WARNING):
        finish_index(tmp_path, matrix_ND, IndexSettings(kind="ivf_flat", nlist=8), GPU)
    assert "ivf_flat stays on the CPU: the installed faiss is built without GPU support" in caplog.text
