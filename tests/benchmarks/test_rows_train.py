"""The rows of training and generation in a tiny size: their figures are there, and a wrong result is seen in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.goals import goals_of
from benchmarks.rows import generate, joint_step, waiting
from benchmarks.suite import Bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(work=tmp_path_factory.mktemp("bench"), small=True, repeats=1)


def test_joint_step(bench: Bench) -> None:
    found = joint_step.measure(bench)
    assert {goal.figure for goal in goals_of("J1")} <= found.figures.keys()
    assert found.figures["score_difference"] < 1e-5
    assert found.figures["loss_difference"] < 1
    assert [line.split("|")[1].strip() for line in found.table[2:]][0] == "ralm"


def test_wrong_scores_and_losses_are_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    right = joint_step.AtlasStep.scores
    monkeypatch.setattr(joint_step.AtlasStep, "scores", lambda peer, batch: right(peer, batch).flip(1))
    figures = joint_step.measure(bench).figures
    assert figures["score_difference"] > 1e-3
    assert figures["retriever_loss_difference"] > 0.01


def test_waiting(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RALM_HOME", str(tmp_path))
    found = waiting.measure(bench)
    assert 0 < found.figures["waiting_share"] < 1
    assert all(re.fullmatch(r"\w+", name) for name in found.figures), "MLflow takes no others"
    assert found.figures["vectors"] == 64
    assert len(found.table) == 2 + len(waiting.RUNS)


def test_generate(bench: Bench) -> None:
    found = generate.measure(bench)
    assert {goal.figure for goal in goals_of("G1")} <= found.figures.keys()
    assert found.figures["same_answers"] == 1
    assert found.figures["tokens"] > 1


def test_wrong_answers_are_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    right = generate.Ours.run

    def without_passages(ours: generate.Ours, batches: list[generate.EncodedPassages]) -> list[str]:
        empty = [generate.EncodedPassages(torch.zeros_like(batch.state), batch.mask) for batch in batches]
        return right(ours, empty)

    monkeypatch.setattr(generate.Ours, "run", without_passages)
    assert generate.measure(bench).figures["same_answers"] < 1
