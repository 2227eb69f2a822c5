"""Centroids and lists: exact assignments, the same in every number format, and lists that no vector is in."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch

from ralm.index import clustering, fast_scan_lists
from ralm.index.clustering import Lists, train_centroids


def vectors(count: int = 3000, size: int = 24) -> np.ndarray:
    generator = np.random.default_rng(1)
    center = generator.normal(size=(40, size))
    return (center[generator.integers(40, size=count)] + 0.6 * generator.normal(size=(count, size))).astype(np.float16)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_vector_is_in_the_list_of_its_best_centroid(has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "has_fast_bf16", lambda device: has_bf16)
    vector_ND = vectors().astype(np.float32)
    centroid_LD = np.concatenate([vector_ND[:50], vector_ND[:3]])  # three centroids twice
    expected = (vector_ND.astype(np.float64) @ centroid_LD.astype(np.float64).T).argmax(1)
    np.testing.assert_array_equal(Lists(centroid_LD).assign(vector_ND), expected)


def test_centroids_do_not_depend_on_the_number_format_or_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before, found = torch.get_num_threads(), []
    for has_bf16, threads in ((True, 1), (False, 1), (True, 3)):
        monkeypatch.setattr(clustering, "has_fast_bf16", lambda device, has=has_bf16: has)
        torch.set_num_threads(threads)
        found.append(train_centroids(vectors(), 30, num_points=1800))
    torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_allclose(np.linalg.norm(found[0], axis=1), 1, rtol=1e-6)


def test_centroids_are_about_as_good_as_those_of_faiss() -> None:
    vector_ND = vectors(6000).astype(np.float32)
    vector_ND /= np.linalg.norm(vector_ND, axis=1, keepdims=True)
    theirs = faiss.Kmeans(24, 200, niter=10, spherical=True, max_points_per_centroid=1000, seed=1)
    theirs.train(vector_ND)
    ours_LD = train_centroids(vector_ND, 200, num_points=6000)
    ours, reference = ((vector_ND @ each.T).max(1).mean() for each in (ours_LD, theirs.centroids))
    assert ours > reference - 0.01


def test_lists_without_vectors_are_filled() -> None:
    """More lists than different vectors among most of them."""
    vector_ND = np.repeat(vectors(8), 100, axis=0)
    vector_ND = np.concatenate([vector_ND, vectors(40)[8:]])
    centroid_LD = train_centroids(vector_ND, 30, num_points=10_000)
    assert np.isfinite(centroid_LD).all()
    np.testing.assert_allclose(np.linalg.norm(centroid_LD, axis=1), 1, rtol=1e-6)
    assert len(np.unique(Lists(centroid_LD).assign(vector_ND.astype(np.float32)))) >= 15


def test_one_list_and_zero_vectors() -> None:
    assert np.isfinite(train_centroids(np.zeros((5, 4), np.float32), 1, num_points=39)).all()


@pytest.mark.parametrize("breadth", [1, 5, 20])
@pytest.mark.parametrize("has_bf16", [True, False])
def test_packed_lists_find_what_faiss_finds_in_them(
    breadth: int, has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_scan_lists, "has_fast_bf16", lambda device: has_bf16)
    vector_ND = vectors()
    packed = fast_scan_lists.build_lists(vector_ND, num_lists=20, code_size=6)
    question_BD = vectors(30).astype(np.float32)[::-1].copy()
    options = faiss.SearchParametersIVF()
    options.nprobe = breadth
    expected = packed.search(question_BD, 40, params=options)
    found = fast_scan_lists.ListSearch(packed).search(question_BD, 40, breadth)
    np.testing.assert_allclose(found[0], expected[0], rtol=5e-3 if has_bf16 else 1e-5, atol=1e-4)
    assert (found[1] == expected[1]).mean() > (0.7 if has_bf16 else 0.98), "equal codes may change places"


def test_packed_and_unpacked_again() -> None:
    packed = fast_scan_lists.build_lists(vectors(), num_lists=20, code_size=6)
    image = faiss.serialize_index(packed).tobytes()
    assert faiss.serialize_index(fast_scan_lists.pack(fast_scan_lists.unpack(packed))).tobytes() == image
    part = fast_scan_lists.part_of_lists(packed, slice(100, 900))
    question_BD = vectors(5).astype(np.float32)
    rows = fast_scan_lists.ListSearch(part).search(question_BD, 900, 20)[1]
    assert all(sorted(row[row >= 0].tolist()) == list(range(100, 900)) for row in rows)
    assert faiss.serialize_index(packed).tobytes() == image, "only read"


def test_lists_that_are_far_from_a_question_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if only the others had been asked for, whatever the other questions need, and whatever the sign."""
    monkeypatch.setattr(fast_scan_lists, "has_fast_bf16", lambda device: False)
    packed = fast_scan_lists.build_lists(vectors(), num_lists=20, code_size=6)
    searcher, centroid_LD = fast_scan_lists.ListSearch(packed), fast_scan_lists.centroids(packed)
    question_BD = np.concatenate([vectors(30).astype(np.float32), -centroid_LD.mean(0)[None]])
    found = searcher.search(question_BD, 40, 20, 2.5)
    counts = set()
    for number, question_D in enumerate(question_BD):
        near_L = np.sort(question_D @ centroid_LD.T)[::-1]
        step = (centroid_LD @ centroid_LD.T).std() * np.linalg.norm(question_D)
        count = sum(near_L[rank] >= near_L[0] - step * (2.5 - np.log(rank + 1)) for rank in range(12))
        counts.add(count)
        expected = searcher.search(question_D[None], 40, count)
        np.testing.assert_allclose(found[0][number], expected[0][0], rtol=1e-5)
    assert len(counts) > 2
    np.testing.assert_array_equal(searcher.search(question_BD, 9, 20, 1e-9)[0], searcher.search(question_BD, 9, 1)[0])
    np.testing.assert_array_equal(searcher.search(question_BD, 9, 7, 1e9)[0], searcher.search(question_BD, 9, 7)[0])
