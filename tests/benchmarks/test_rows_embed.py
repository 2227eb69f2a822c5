"""The rows of embedding and the machine's limits in tiny sizes: they measure, and a wrong vector shows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from benchmarks import inputs
from benchmarks.goals import goals_of
from benchmarks.gpu import made_models
from benchmarks.rows import embed, limits
from benchmarks.suite import Bench, Measured
from ralm.device import resolve_dtype


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("RALM_HOME", str(tmp_path / "home"))
    return Bench(work=tmp_path, small=True, repeats=1)


@pytest.mark.parametrize(
    ("row", "measure"), [("E1", embed.measure_minilm), ("E2", embed.measure_base), ("T1", embed.measure_tokenizing)]
)
def test_embed_rows(bench: Bench, row: str, measure: Callable[[Bench], Measured]) -> None:
    found = measure(bench)
    left_out = set() if importlib.util.find_spec("sentence_transformers") else {"x_sentence_transformers"}
    assert {goal.figure for goal in goals_of(row)} - left_out <= found.figures.keys()
    assert all(value > 0 for value in found.figures.values())
    assert found.figures.get("least_cosine", 1) > 0.999


def test_a_wrong_vector_shows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_wrongly(path: str) -> Any:
        ids, vector_ND = read_vectors(path)
        vector_ND = vector_ND.copy()
        vector_ND[30] = vector_ND[31]
        return ids, vector_ND

    read_vectors = embed.read_vectors
    monkeypatch.setattr(embed, "read_vectors", read_wrongly)
    assert embed.measure_minilm(bench).figures["least_cosine"] < 0.999


def test_a_subset_has_the_lengths_of_all() -> None:
    lengths_N = np.random.default_rng(0).permutation(1000)
    chosen = embed.stratified(lengths_N, 10)
    assert list(chosen) == sorted(chosen)
    assert sorted(lengths_N[chosen]) == [50 + 100 * number for number in range(10)]


def test_limits_row(bench: Bench) -> None:
    found = limits.measure(bench)
    assert {"fp32_gflops_1", "read_gb_s_1", "bz2_mb_s_1"} <= found.figures.keys()
    assert ("bf16_gflops_1" in found.figures) == (resolve_dtype("auto", torch.device("cpu")) == torch.bfloat16)
    assert any("bf16" in line for line in found.table) == (resolve_dtype("auto", torch.device("cpu")) == torch.bfloat16)
    assert all(value > 0 for value in found.figures.values())


def test_a_model_with_the_vocabulary_of_another_has_its_tokens(tmp_path: Path) -> None:
    made_models.write_bert(tmp_path / "one", "tiny", ["what is the colour of granite"])
    vocabulary = inputs.write_vocabulary(tmp_path / "one", tmp_path / "vocab.txt")
    made_models.write_bert(tmp_path / "other", "tiny", [], vocabulary)
    tokens = [AutoTokenizer.from_pretrained(tmp_path / name)("the granite").input_ids for name in ("one", "other")]
    assert tokens[0] == tokens[1]
    assert len(set(tokens[0])) == 4
