"""PDist against an implementation in plain numpy loops that shares nothing with ours, and a case computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ralm.objectives.distillation import perplexity_scores
from ralm.objectives.divergence import distillation_loss, retriever_scores
from ralm.objectives.reader_loss import reader_loss


def log_softmax(values: list[float]) -> list[float]:
    top = max(values)
    total = math.log(sum(math.exp(value - top) for value in values)) + top
    return [value - total for value in values]


def reference_score(logits: np.ndarray, labels: list[int]) -> float:
    """Mean log-likelihood of the target's tokens, one passage."""
    kept = [(row, label) for row, label in zip(logits.tolist(), labels, strict=True) if label != -100]
    return sum(log_softmax(row)[label] for row, label in kept) / len(kept)


def reference_loss(
    question: np.ndarray, passages: np.ndarray, gold: np.ndarray, tau_s: float, tau_g: float, over_passages: bool
) -> float:
    """KL of each question by the definition, then the mean."""
    total = 0.0
    num_questions, num_passages, dimension = passages.shape
    for b in range(num_questions):
        scores = [
            sum(float(question[b, d]) * float(passages[b, k, d]) for d in range(dimension))
            / math.sqrt(dimension)
            / tau_s
            for k in range(num_passages)
        ]
        log_retriever = log_softmax(scores)
        log_gold = log_softmax([float(value) / tau_g for value in gold[b]])
        total += sum(math.exp(g) * (g - r) for g, r in zip(log_gold, log_retriever, strict=True))
    return total / (num_questions * num_passages if over_passages else num_questions)


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_the_reference(seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(3, 4, 5, 11)).astype(np.float32) * 3
    labels = generator.integers(0, 11, size=(3, 5))
    labels[1, 3:], labels[2, 1:] = -100, -100
    found = perplexity_scores(torch.tensor(logits), torch.tensor(labels))
    expected = [[reference_score(logits[b, k], labels[b].tolist()) for k in range(4)] for b in range(3)]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("reduction", ["batchmean", "elementmean"])
@pytest.mark.parametrize(("tau_s", "tau_g"), [(0.01, 0.01), (0.1, 0.1), (1.0, 0.5)])
def test_loss_equals_the_reference(seed: int, reduction: str, tau_s: float, tau_g: float) -> None:
    generator = np.random.default_rng(seed)
    question = generator.normal(size=(3, 16)).astype(np.float32) * 0.3
    passages = generator.normal(size=(3, 5, 16)).astype(np.float32) * 0.3
    gold = -generator.random(size=(3, 5)).astype(np.float32)
    score_BK = retriever_scores(torch.tensor(question), torch.tensor(passages))
    found = distillation_loss(
        score_BK, torch.tensor(gold), temperature_score=tau_s, temperature_gold=tau_g, reduction=reduction
    )
    expected = reference_loss(question, passages, gold, tau_s, tau_g, reduction == "elementmean")
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_case_computed_by_hand() -> None:
    """d = 4, q = (1, 0, 0, 0), p = (2, ...) and (0, ...): s = 1 and 0. Gold: log 3 and 0, so 3/4 and 1/4.

    With both temperatures 1: log p_r = -log(1 + 1/e) and -1 - log(1 + 1/e), so
    KL = 3/4 log 3/4 + 1/4 log 1/4 + log(1 + 1/e) + 1/4.
    """
    score_BK = retriever_scores(
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([[[2.0, 5.0, 5.0, 5.0], [0.0, 7.0, 7.0, 7.0]]])
    )
    assert score_BK.tolist() == [[1.0, 0.0]]
    gold_BK = torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(0.75) + 0.25 * math.log(0.25) + math.log(1 + 1 / math.e) + 0.25
    settings = {"temperature_score": 1.0, "temperature_gold": 1.0}
    assert distillation_loss(score_BK, gold_BK, reduction="batchmean", **settings).item() == pytest.approx(
        expected, abs=1e-6
    )
    assert distillation_loss(score_BK, gold_BK, reduction="elementmean", **settings).item() == pytest.approx(
        expected / 2, abs=1e-6
    )


def test_gradient_reaches_the_retriever_only_and_is_softmax_difference() -> None:
    """d loss / d s = (p_retriever - p_gold) / tau / B for the mean over questions."""
    score_BK = torch.tensor([[0.3, -0.1, 0.2]], requires_grad=True)
    gold_BK = torch.tensor([[-0.5, -0.4, -0.9]], requires_grad=True)
    distillation_loss(score_BK, gold_BK, temperature_score=0.5, temperature_gold=0.2, reduction="batchmean").backward()
    difference = torch.softmax(score_BK.detach() / 0.5, -1) - torch.softmax(gold_BK.detach() / 0.2, -1)
    torch.testing.assert_close(score_BK.grad, difference / 0.5)
    assert gold_BK.grad is None


def test_equal_distributions_have_no_divergence() -> None:
    score_BK = torch.tensor([[0.01, -0.02, 0.03]])
    loss = distillation_loss(score_BK, score_BK, temperature_score=0.01, temperature_gold=0.01, reduction="batchmean")
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_reader_loss_is_the_mean_over_tokens_that_count() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(2, 3, 7)).astype(np.float32)
    labels = np.array([[1, 2, 3], [4, -100, -100]])
    expected = -np.mean([log_softmax(logits[b, t].tolist())[labels[b, t]] for b, t in [(0, 0), (0, 1), (0, 2), (1, 0)]])
    assert reader_loss(torch.tensor(logits), torch.tensor(labels)).item() == pytest.approx(expected, rel=1e-5)
