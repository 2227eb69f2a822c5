"""Approximate kinds: found passages, their scores, small corpora, equal bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from ralm.errors import ArtifactError, ConfigError
from ralm.index.approximate import FAISS_FILE, ApproximateSearcher, build_faiss, read_faiss, resolve_layout
from ralm.index.build import finish_index, open_searcher
from ralm.index.config import IndexSettings
from ralm.index.flat import FlatSearcher
from ralm.index.matrix import create_matrix, to_float32, to_storage

APPROXIMATE = ("ivf_flat", "ivf_sq8", "ivf_sq4", "pq", "ivf_pq", "pq_fast_scan", "ivf_pq_fast_scan", "hnsw")
RERANKED = ("ivf_sq8", "ivf_sq4", "pq", "ivf_pq", "pq_fast_scan", "ivf_pq_fast_scan")
CPU = torch.device("cpu")


def clustered(count: int, size: int = 32, *, seed: int = 0) -> np.ndarray:
    """60 clusters, lengths between 0.5 and 2, so that the inner product is not the cosine."""
    generator = np.random.default_rng(seed)
    center = generator.normal(size=(60, size))
    vector = center[generator.integers(60, size=count)] + 0.7 * generator.normal(size=(count, size))
    vector *= generator.uniform(0.5, 2, size=(count, 1)) / np.linalg.norm(vector, axis=1, keepdims=True)
    return vector.astype(np.float32)


def build(folder: Path, vector_ND: np.ndarray, settings: IndexSettings) -> tuple[dict, np.ndarray]:
    matrix_ND = create_matrix(folder, settings.storage, *vector_ND.shape)
    matrix_ND[:] = to_storage(vector_ND, settings.storage)
    return finish_index(folder, matrix_ND, settings), matrix_ND


def opened(folder: Path, vector_ND: np.ndarray, settings: IndexSettings) -> tuple[ApproximateSearcher, np.ndarray]:
    details, matrix_ND = build(folder, vector_ND, settings)
    searcher = open_searcher(folder / FAISS_FILE, matrix_ND, details, CPU)
    assert isinstance(searcher, ApproximateSearcher)
    return searcher, matrix_ND


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    yield
    faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("storage", ["f16", "f32", "bf16"])
@pytest.mark.parametrize("kind", APPROXIMATE)
def test_reaches_the_recall_target_on_questions_it_was_not_tuned_on(kind: str, storage: str, tmp_path: Path) -> None:
    settings = IndexSettings(kind=kind, storage=storage, recall_target=0.95)
    details, _ = build(tmp_path, clustered(4000), settings)
    assert details["recall_target_reached"]
    assert details["recall"]["recall_at_10"] >= 0.92
    assert set(details["recall"]) == set(details["recall_without_rerank"]) == {f"recall_at_{k}" for k in (1, 10, 100)}
    if kind in RERANKED:
        assert details["options"]["rerank"] >= 16
        assert details["recall_without_rerank"]["recall_at_10"] <= details["recall"]["recall_at_10"]
    if kind in ("pq", "ivf_pq", "pq_fast_scan", "ivf_pq_fast_scan"):
        assert details["recall_without_rerank"]["recall_at_10"] < 0.9, "codes this small must lose something"


def test_lists_are_probed_as_far_as_the_recall_target_needs_and_no_further(tmp_path: Path) -> None:
    """Atlas defect 10: IVF probed all of its lists at each search, and so was slower than a flat index."""
    vector_ND = clustered(6000)
    needed = {}
    for target in (0.6, 0.99):
        details, _ = build(tmp_path, vector_ND, IndexSettings(kind="ivf_flat", nlist=100, recall_target=target))
        needed[target] = details["options"]["nprobe"]
        assert details["recall_target_reached"]
    assert needed[0.6] < needed[0.99] < 100
    details, _ = build(tmp_path, vector_ND, IndexSettings(kind="ivf_flat", nlist=100, nprobe=3))
    assert details["options"] == {"nlist": 100, "nprobe": 3}


def test_how_near_a_list_has_to_be_is_tuned_and_kept(tmp_path: Path) -> None:
    vector_ND, kind = clustered(6000), "ivf_pq_fast_scan"
    reaches = []
    for target in (0.5, 0.99):
        (folder := tmp_path / str(target)).mkdir()
        searcher, _ = opened(folder, vector_ND, IndexSettings(kind=kind, nlist=100, recall_target=target))
        assert (searcher._effort.breadth, searcher._effort.rerank > 0) == (100, True)
        reaches.append(searcher._effort.reach)
    assert 0 < reaches[0] < reaches[1]
    details, _ = build(tmp_path, vector_ND, IndexSettings(kind=kind, nlist=100, nprobe=3))
    assert (details["options"]["nprobe"], details["options"]["list_reach"]) == (3, 0.0)


def test_a_filled_index_is_written_and_the_vectors_are_not_loaded(tmp_path: Path) -> None:
    """Atlas defect 9: saved faiss files held no vectors, and all raw vectors stayed in memory beside the codes."""
    vector_ND = clustered(4000)
    searcher, matrix_ND = opened(tmp_path, vector_ND, IndexSettings(kind="pq", code_size=8))
    written = faiss.read_index(str(tmp_path / FAISS_FILE))
    assert written.ntotal == 4000
    assert (tmp_path / FAISS_FILE).stat().st_size < 4000 * 8 + 256 * 32 * 4 + 1024
    assert isinstance(matrix_ND, np.memmap)
    assert np.shares_memory(searcher._matrix_ND, matrix_ND)


def test_an_unreachable_target_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = IndexSettings(kind="pq", code_size=1, rerank=0, recall_target=0.9)
    details, _ = build(tmp_path, clustered(2000), settings)
    assert details["recall_target_reached"] is False
    assert details["recall"] == details["recall_without_rerank"]
    assert "short of recall_target 0.900" in caplog.text


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.parametrize("count", [256, 300])
def test_always_k_different_passages(kind: str, count: int, tmp_path: Path) -> None:
    """Also where the one list that is probed holds fewer than k."""
    vector_ND = clustered(count, 16)
    narrow = {"nlist": 40, "nprobe": 1} if kind.startswith("ivf") else {}
    searcher, _ = opened(tmp_path, vector_ND, IndexSettings(kind=kind, **narrow))
    for k in (1, 10, 101, count):
        score_BK, row_BK = searcher.search(vector_ND[:5], k)
        assert row_BK.min() >= 0
        assert row_BK.max() < count
        assert all(len(set(row_K)) == k for row_K in row_BK.tolist())
        assert np.isfinite(score_BK).all()
        assert (np.diff(score_BK, axis=1) <= 0).all()


@pytest.mark.parametrize("kind", RERANKED)
def test_reranked_scores_are_exact_and_ties_go_to_the_lower_row(kind: str, tmp_path: Path) -> None:
    base = clustered(300, 16)
    vector_ND = np.concatenate([base, base])  # each vector twice
    searcher, matrix_ND = opened(tmp_path, vector_ND, IndexSettings(kind=kind, rerank=600))
    question_BD = clustered(9, 16, seed=3)
    score_BK, row_BK = searcher.search(question_BD, 20)
    exact = np.einsum("bkd,bd->bk", to_float32(matrix_ND[row_BK]), question_BD)
    np.testing.assert_allclose(score_BK, exact, rtol=1e-5, atol=1e-6)
    is_tie = score_BK[:, :-1] == score_BK[:, 1:]
    assert is_tie.sum() > 50
    assert (row_BK[:, :-1] < row_BK[:, 1:])[is_tie].all()


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_sq8", "ivf_sq4", "pq", "ivf_pq", "pq_fast_scan", "ivf_pq_fast_scan"])
def test_searching_everything_and_scoring_it_again_is_the_flat_result(kind: str, tmp_path: Path) -> None:
    vector_ND = clustered(400, 16)
    widest: dict = {"rerank": 400} if kind in RERANKED else {}
    if kind.startswith("ivf"):
        widest |= {"nlist": 8, "nprobe": 8}
    searcher, matrix_ND = opened(tmp_path, vector_ND, IndexSettings(kind=kind, storage="f32", **widest))
    question_BD = clustered(20, 16, seed=4)
    flat_score_BK, flat_row_BK = FlatSearcher(matrix_ND, CPU).search(question_BD, 15)
    score_BK, row_BK = searcher.search(question_BD, 15)
    np.testing.assert_array_equal(row_BK, flat_row_BK)
    np.testing.assert_allclose(score_BK, flat_score_BK, rtol=1e-5)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_equal_bytes_with_any_number_of_threads(kind: str, restored_threads: None) -> None:
    vector_ND = clustered(3000)
    layout = resolve_layout(IndexSettings(kind=kind), *vector_ND.shape)
    images = []
    for threads in (1, 4, 3):
        faiss.omp_set_num_threads(threads)
        images.append(faiss.serialize_index(build_faiss(vector_ND, layout)).tobytes())
        assert faiss.omp_get_max_threads() == threads, "the caller's setting is left as it was"
    assert images[0] == images[1] == images[2]


@pytest.mark.parametrize(
    ("kind", "fewest"), [("pq", 256), ("ivf_pq", 256), ("pq_fast_scan", 16), ("ivf_pq_fast_scan", 16)]
)
def test_too_few_passages_for_a_quantiser(kind: str, fewest: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"kind: {kind} needs at least {fewest} passages, found {fewest - 1}; use"):
        build(tmp_path, clustered(fewest - 1, 8), IndexSettings(kind=kind))


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_sq8", "ivf_sq4", "hnsw"])
@pytest.mark.parametrize("count", [1, 3])
def test_tiny_corpora(kind: str, count: int, tmp_path: Path) -> None:
    vector_ND = clustered(count, 8)
    searcher, _ = opened(tmp_path, vector_ND, IndexSettings(kind=kind))
    assert sorted(searcher.search(vector_ND[:1], count)[1][0].tolist()) == list(range(count))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "ivf_flat", "nlist": 301}, "nlist: expected at most 300, the number of passages, found 301"),
        ({"kind": "pq", "code_size": 5}, r"code_size: expected one of \[1, 2, 4, 8, 16\] for 16 values, found 5"),
        ({"kind": "pq_fast_scan", "code_size": 16}, r"code_size: expected one of \[1, 2, 4, 8\] for 16 values"),
    ],
)
def test_options_that_do_not_fit_the_vectors(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_layout(IndexSettings(**settings), 300, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "flat", "nlist": 4}, "nlist: expected auto, since kind flat does not use it, found 4"),
        ({"kind": "pq", "hnsw_ef": 4}, "hnsw_ef: expected auto, since kind pq does not use it"),
        ({"kind": "ivf_pq", "nprobe": 0}, "nprobe: expected auto or a number from 1, found 0"),
        ({"kind": "ivf_pq", "nlist": 4, "nprobe": 5}, "nprobe: expected at most nlist, which is 4, found 5"),
        ({"recall_target": 1.5}, "recall_target: expected more than 0 and at most 1, found 1.5"),
    ],
)
def test_settings_that_contradict(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IndexSettings(**settings)


def test_auto_code_size_divides_the_vector() -> None:
    for dimension, kind, expected in ((384, "pq", 96), (384, "pq_fast_scan", 96), (30, "pq", 6), (7, "pq", 1)):
        assert resolve_layout(IndexSettings(kind=kind), 1000, dimension).code_size == expected


def test_search_checks_its_input(tmp_path: Path) -> None:
    searcher, _ = opened(tmp_path, clustered(300, 8), IndexSettings(kind="pq"))
    with pytest.raises(ConfigError, match="k: expected 1 to 300"):
        searcher.search(np.zeros((1, 8), np.float32), 301)
    with pytest.raises(ConfigError, match="question vectors have 9 values"):
        searcher.search(np.zeros((1, 9), np.float32), 1)
    assert searcher.search(np.zeros((0, 8), np.float32), 4)[1].shape == (0, 4)


def test_a_damaged_or_foreign_faiss_file(tmp_path: Path) -> None:
    build(tmp_path, clustered(300, 8), IndexSettings(kind="pq"))
    with pytest.raises(ArtifactError, match=r"expected passages, values and metric \(299, 8, 0\), found \(300, 8, 0\)"):
        read_faiss(tmp_path / FAISS_FILE, 299, 8)
    (tmp_path / FAISS_FILE).write_bytes(b"no index at all")
    with pytest.raises(ArtifactError, match="expected a faiss index"):
        read_faiss(tmp_path / FAISS_FILE, 300, 8)


def test_an_index_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ArtifactError, match="found 'exact'; build it again"):
        open_searcher(None, np.zeros((2, 4), np.float32), {"kind": "exact"}, CPU)
