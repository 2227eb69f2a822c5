"""Probes are no questions that any index can answer."""

from __future__ import annotations

import numpy as np

from ralm.index.recall import reference_rows
from ralm.index.tuning import make_probes


def test_probes_lie_near_stored_vectors_but_not_on_them() -> None:
    generator = np.random.default_rng(0)
    vector_ND = generator.normal(size=(5000, 64)).astype(np.float32)
    vector_ND /= np.linalg.norm(vector_ND, axis=1, keepdims=True)
    probe_BD = make_probes(vector_ND, 200, seed=1)
    unit_BD = probe_BD / np.linalg.norm(probe_BD, axis=1, keepdims=True)
    best_B = reference_rows(unit_BD, vector_ND, 1)[0][:, 0]
    assert best_B.max() < 0.8
    assert 0.35 < best_B.mean() < 0.6


def test_probes_of_tuning_and_of_the_report_differ_and_are_repeatable() -> None:
    vector_ND = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float16)
    np.testing.assert_array_equal(make_probes(vector_ND, 20, seed=1), make_probes(vector_ND, 20, seed=1))
    assert (make_probes(vector_ND, 20, seed=1) != make_probes(vector_ND, 20, seed=2)).any()


def test_one_passage_and_zero_vectors_give_finite_probes() -> None:
    assert np.isfinite(make_probes(np.zeros((1, 4), np.float32), 3, seed=1)).all()
