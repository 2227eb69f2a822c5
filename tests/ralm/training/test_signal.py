"""Each objective's signal and loss are those of its own functions, and the correlation is Pearson's."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from ralm.model import open_model
from ralm.objectives.divergence import distillation_loss
from ralm.objectives.marginal import emdr2_loss
from ralm.reader.encoded import EncodedPassages
from ralm.reader.fusion import FusionReader
from ralm.training.config import TrainingConfig
from ralm.training.signal import Signal, mean_correlation, passage_signal, retriever_loss

QUESTIONS = ["what is the colour of granite", "who uses copper"]
TEXTS = ("The colour of granite is amber.", "People use copper tools before winter.", "Scholars trace the origin.")
PASSAGES = [[SimpleNamespace(title="Granite", section="", text=text) for text in TEXTS]] * 2


@pytest.fixture
def reader(tiny_model: str) -> FusionReader:
    model = open_model(tiny_model)
    return FusionReader.load(model.reader_folder, model.reader, device=torch.device("cpu"))


@torch.no_grad()
def signal_of(reader: FusionReader, config: TrainingConfig) -> Signal:
    encoded = reader.encode(reader.tokenize_inputs(QUESTIONS, PASSAGES))
    return passage_signal(reader, encoded, reader.tokenize_targets(["amber", "old iron"]), QUESTIONS, config)


@pytest.mark.parametrize(("level", "temperature"), [("sequence", 1.0), ("token", 1.0), ("token", 0.5)])
def test_emdr2_is_the_marginal_likelihood_of_the_logits(reader: FusionReader, level: str, temperature: float) -> None:
    config = TrainingConfig(objective="emdr2", emdr2_level=level, temperature_gold=temperature, temperature_score=0.5)
    score_BK = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        encoded = reader.encode(reader.tokenize_inputs(QUESTIONS, PASSAGES))
        label_BT = reader.tokenize_targets(["amber", "old iron"])
        logits = reader.passage_logits(encoded, label_BT)
    expected = emdr2_loss(
        logits, label_BT, functional.log_softmax(score_BK / 0.5, dim=-1), level=level, temperature=temperature
    )
    torch.testing.assert_close(retriever_loss(score_BK, signal_of(reader, config), config), expected)


@pytest.mark.parametrize("objective", ["pdist", "loop", "adist"])
def test_distillation_goes_to_the_softmax_of_the_signal(reader: FusionReader, objective: str) -> None:
    config = TrainingConfig(objective=objective, temperature_score=0.3, temperature_gold=0.7, reduction="batchmean")
    signal = signal_of(reader, config)
    score_BK = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = retriever_loss(score_BK, signal, config)
    expected = distillation_loss(
        score_BK, signal.gold, temperature_score=0.3, temperature_gold=0.7, reduction="batchmean"
    )
    torch.testing.assert_close(loss, expected)
    (gradient_BK,) = torch.autograd.grad(loss, score_BK)
    target = functional.softmax(signal.gold / 0.7, dim=-1)
    found = functional.softmax(score_BK.detach() / 0.3, dim=-1)
    torch.testing.assert_close(gradient_BK, (found - target) / 0.3 / 2, atol=1e-6, rtol=1e-5)


def test_the_objectives_differ(reader: FusionReader) -> None:
    config = TrainingConfig()
    golds = [signal_of(reader, dataclasses.replace(config, objective=name)).gold for name in ("pdist", "loop", "adist")]
    assert not torch.allclose(golds[0], golds[1])
    assert not torch.allclose(golds[0], golds[2])


@pytest.mark.parametrize("objective", ["pdist", "loop", "adist"])
def test_passages_encoded_apart_give_the_same_signal(reader: FusionReader, objective: str) -> None:
    config = TrainingConfig(objective=objective)
    inputs = reader.tokenize_inputs(QUESTIONS, PASSAGES)
    with torch.no_grad():
        label_BT = reader.tokenize_targets(["amber", "old iron"])
        parts = [reader.encode([row[:2] for row in inputs]), reader.encode([row[2:] for row in inputs])]
        joined = passage_signal(reader, EncodedPassages.join(parts), label_BT, QUESTIONS, config)
    torch.testing.assert_close(joined.gold, signal_of(reader, config).gold, atol=1e-5, rtol=1e-5)


def test_correlation_is_pearsons() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 4, 7))
    expected = np.mean([np.corrcoef(one, other)[0, 1] for one, other in zip(first, second, strict=True)])
    assert mean_correlation(torch.tensor(first), torch.tensor(second)) == pytest.approx(expected, abs=1e-6)
    assert mean_correlation(torch.ones(1, 3), torch.randn(1, 3)) == 0
