"""Objectives on tiny cases computed by hand, at extremes of the number format, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch

from ralm.objectives.attention import KINDS, attention_distillation_scores, attention_statistics, token_attention
from ralm.objectives.distillation import (
    leave_one_out_scores,
    passage_log_likelihood,
    perplexity_scores,
    target_log_likelihood,
)
from ralm.objectives.marginal import emdr2_loss, marginal_loss
from ralm.objectives.reader_loss import reader_loss

TWO_WORDS = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, math.log(3.0)]]])[None]
"""One question, two passages, two target tokens: word 0 has 3/4, 1/2 given passage 0 and 1/2, 1/4 given passage 1."""


def test_perplexity_and_leave_one_out_by_hand() -> None:
    label_BT = torch.tensor([[0, 0]])
    expected = [0.5 * math.log(3 / 4 * 1 / 2), 0.5 * math.log(1 / 2 * 1 / 4)]
    assert perplexity_scores(TWO_WORDS, label_BT)[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert leave_one_out_scores(TWO_WORDS, label_BT)[0].tolist() == pytest.approx([-x for x in expected], abs=1e-6)


def test_positions_that_do_not_count_change_nothing() -> None:
    """Padding and tokens of a decoder prompt (below -100)."""
    for label in (-100, -107):
        label_BT = torch.tensor([[label, 0]])
        expected = [math.log(1 / 2), math.log(1 / 4)]
        assert perplexity_scores(TWO_WORDS, label_BT)[0].tolist() == pytest.approx(expected, abs=1e-6)
        assert reader_loss(TWO_WORDS[:, 0], label_BT).item() == pytest.approx(math.log(2), abs=1e-6)
        equal = torch.tensor([[0.5, 0.5]]).log()
        for level in ("sequence", "token"):
            loss = emdr2_loss(TWO_WORDS, label_BT, equal, level=level)
            assert loss.item() == pytest.approx(-math.log(3 / 8), abs=1e-6)


def test_emdr2_by_hand() -> None:
    label_BT, log_retriever_BK = torch.tensor([[0, 0]]), torch.tensor([[0.8, 0.2]]).log()
    by_sequence = -math.log(0.8 * 3 / 4 * 1 / 2 + 0.2 * 1 / 2 * 1 / 4)
    by_token = -(math.log(0.8 * 3 / 4 + 0.2 * 1 / 2) + math.log(0.8 * 1 / 2 + 0.2 * 1 / 4)) / 2
    assert emdr2_loss(TWO_WORDS, label_BT, log_retriever_BK).item() == pytest.approx(by_sequence, abs=1e-6)
    found = emdr2_loss(TWO_WORDS, label_BT, log_retriever_BK, level="token")
    assert found.item() == pytest.approx(by_token, abs=1e-6)


def test_emdr2_means_over_questions_or_over_all_tokens() -> None:
    likelihood_BKT = torch.tensor([[[-1.0, -3.0]], [[-5.0, 0.0]]])
    label_BT, certain = torch.tensor([[3, 4], [5, -100]]), torch.zeros(2, 1)
    assert marginal_loss(likelihood_BKT, label_BT, certain).item() == pytest.approx((4 + 5) / 2)
    assert marginal_loss(likelihood_BKT, label_BT, certain, level="token").item() == pytest.approx((1 + 3 + 5) / 3)


def test_temperature_divides_the_vocabulary_logits_only() -> None:
    """At 1 the likelihood is the model's own; at Atlas' default of 0.01 the loss explodes (its known defect)."""
    logit_BKTV = torch.randn(1, 3, 4, 50, generator=torch.Generator().manual_seed(0)) * 3
    label_BT, log_retriever_BK = torch.tensor([[1, 2, 3, 4]]), torch.full((1, 3), 1 / 3).log()
    plain = emdr2_loss(logit_BKTV, label_BT, log_retriever_BK, level="token")
    assert emdr2_loss(logit_BKTV, label_BT, log_retriever_BK, level="token", temperature=1.0) == plain
    hot = emdr2_loss(logit_BKTV, label_BT, log_retriever_BK, level="token", temperature=0.01)
    assert hot.item() > 50 * plain.item()
    expected = emdr2_loss(logit_BKTV / 2, label_BT, log_retriever_BK, level="token")
    torch.testing.assert_close(
        emdr2_loss(logit_BKTV, label_BT, log_retriever_BK, level="token", temperature=2.0), expected
    )


def test_gradient_of_emdr2_pulls_towards_the_posterior_and_spares_the_reader() -> None:
    """d loss / d s = p_r - p(d | a, q)."""
    logit_BKTV = TWO_WORDS.clone().requires_grad_()
    score_BK = torch.tensor([[0.2, -0.3]], requires_grad=True)
    emdr2_loss(logit_BKTV, torch.tensor([[0, 0]]), torch.log_softmax(score_BK, -1)).backward()
    prior = torch.softmax(score_BK.detach(), -1)
    posterior = prior * torch.tensor([[3 / 8, 1 / 8]])
    posterior = posterior / posterior.sum()
    torch.testing.assert_close(score_BK.grad, prior - posterior)
    assert logit_BKTV.grad is None


def test_one_target_token_makes_sequence_and_token_level_equal() -> None:
    logit_BKTV = torch.randn(3, 4, 1, 9, generator=torch.Generator().manual_seed(1))
    label_BT, log_retriever_BK = torch.tensor([[1], [5], [8]]), torch.randn(3, 4).log_softmax(-1)
    by_level = [emdr2_loss(logit_BKTV, label_BT, log_retriever_BK, level=level) for level in ("sequence", "token")]
    torch.testing.assert_close(*by_level)


def test_extreme_logits_stay_finite() -> None:
    """The target has probability exp(-20000) a token: no passage's product is a number, their logarithms are."""
    logit_BKTV = torch.zeros(1, 2, 3, 4)
    logit_BKTV[0, 0, :, 0], logit_BKTV[0, 1, :, 0] = 20000.0, 20010.0
    label_BT, score_BK = torch.tensor([[1, 2, 3]]), torch.zeros(1, 2, requires_grad=True)
    loss = emdr2_loss(logit_BKTV, label_BT, torch.log_softmax(score_BK, -1))
    loss.backward()
    assert loss.item() == pytest.approx(60000 + math.log(2), rel=1e-6)
    assert torch.isfinite(score_BK.grad).all()  # type: ignore[arg-type]
    assert torch.isfinite(perplexity_scores(logit_BKTV, label_BT)).all()


def test_bf16_logits_are_computed_in_fp32() -> None:
    logit_BKTV = (torch.randn(2, 3, 4, 400, generator=torch.Generator().manual_seed(2)) * 4).bfloat16()
    label_BT = torch.randint(0, 400, (2, 4))
    for function in (perplexity_scores, leave_one_out_scores, passage_log_likelihood):
        found = function(logit_BKTV, label_BT)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, function(logit_BKTV.float(), label_BT), atol=0, rtol=0)
    assert target_log_likelihood(logit_BKTV[:, 0], label_BT).dtype == torch.float32


def test_attention_by_hand() -> None:
    """Two heads, two tokens and one of padding; the second target position does not count.

    Head 0: scores 0 and log 3, so 1/4 and 3/4; values of length 5 and 1. Head 1: equal scores, so 1/2 and 1/2; values
    of length 2 and 0.
    """
    query_BHTD = torch.tensor([[[[1.0, 0.0], [9.0, 9.0]], [[0.0, 0.0], [9.0, 9.0]]]])
    key_BHSD = torch.tensor([[[[0.0, 7.0], [math.log(3.0), 7.0], [50.0, 0.0]], [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]]])
    value_BHSD = torch.tensor([[[[3.0, 4.0], [1.0, 0.0], [99.0, 0.0]], [[0.0, -2.0], [0.0, 0.0], [99.0, 0.0]]]])
    found = token_attention(query_BHTD, key_BHSD, value_BHSD, torch.tensor([[1, 1, 0]]), torch.tensor([[4, -100]]))
    assert found["scores"][0].tolist() == pytest.approx([0.0, math.log(3.0) / 2, 0.0])
    assert found["probs"][0].tolist() == pytest.approx([3 / 8, 5 / 8, 0.0])
    assert found["norms"][0].tolist() == pytest.approx([(5 / 4 + 1) / 2, (3 / 4) / 2, 0.0])
    norm_BKL = found["norms"][:, None]
    (score,) = attention_distillation_scores(norm_BKL, num_layers=1, num_targets_B=torch.tensor([1])).flatten().tolist()
    assert score == pytest.approx((9 / 8 + 3 / 8) / 256)


def test_largest_attention_never_counts_padding() -> None:
    """Scores may be negative: the zeros of padding would then be the largest."""
    tokens_BKL = torch.tensor([[[-1.0, -3.0, 0.0, 0.0, 0.0, 0.0]]])
    found = attention_statistics(
        dict.fromkeys(KINDS, tokens_BKL),
        torch.tensor([[[1, 1, 0, 0, 0, 0]]]),
        num_layers=2,
        num_targets_B=torch.tensor([5]),
        question_tokens_B=torch.tensor([7]),
    )
    assert len(found) == 24
    assert found["scores_top5"].item() == found["scores_avg"].item() == pytest.approx(-2 / 10)
    assert found["scores_woquery"].item() == 0.0  # the input ends within the question
    assert found["scores_nosep"].item() == pytest.approx(-1 / 256 / 10)
