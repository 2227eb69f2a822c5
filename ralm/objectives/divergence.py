"""The retriever's loss: how far its distribution over the passages is from the one the reader asks for.

Shapes: `B` questions, `K` passages per question, `D` embedding size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ralm.objectives.config import Reduction


def retriever_scores(question_BD: Tensor, passage_BKD: Tensor) -> Tensor:
    """Scores `[B, K]` of the passages: s_k = <q, p_k> / sqrt(D).

    Source: Atlas, published implementation (the paper, arXiv 2208.03299, section 2.2, writes s(d, q) only).

    Example:
        >>> import torch
        >>> question_BD = torch.tensor([[1.0, 2.0, 0.0, 0.0]])
        >>> passage_BKD = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0]]])
        >>> retriever_scores(question_BD, passage_BKD).tolist()
        [[0.5, 3.0]]
    """
    return torch.einsum("bd,bkd->bk", question_BD, passage_BKD) / math.sqrt(question_BD.shape[-1])


def distillation_loss(
    score_BK: Tensor,
    gold_BK: Tensor,
    *,
    temperature_score: float,
    temperature_gold: float,
    reduction: Reduction,
) -> Tensor:
    """KL divergence from the retriever's distribution to the reader's: sum_k p_gold (log p_gold - log p_retriever).

    Args:
        score_BK: retriever scores, with gradient.
        gold_BK: what the reader says of each passage (a log-likelihood); no gradient flows into it.
        temperature_score: divides the retriever scores before the softmax.
        temperature_gold: divides the gold scores before the softmax.
        reduction: `batchmean` = the mean over questions of the divergence; `elementmean` = that divided by K. The
            learning rates published with Atlas belong to `elementmean`.

    Returns:
        A scalar, at least 0 (up to rounding), in nats.

    Source: Atlas (arXiv 2208.03299), section 2.2, KL(p_LM || p_retr) with a stop-gradient at the reader.

    Example:
        >>> import torch
        >>> score_BK, gold_BK = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -100.0]])
        >>> setting = {"temperature_score": 1.0, "temperature_gold": 1.0}
        >>> round(distillation_loss(score_BK, gold_BK, reduction="batchmean", **setting).item(), 4)  # log 2
        0.6931
        >>> round(distillation_loss(score_BK, gold_BK, reduction="elementmean", **setting).item(), 4)
        0.3466
    """
    log_retriever_BK = functional.log_softmax(score_BK.float() / temperature_score, dim=-1)
    gold_probability_BK = functional.softmax(gold_BK.detach().float() / temperature_gold, dim=-1)
    total = functional.kl_div(log_retriever_BK, gold_probability_BK, reduction="sum")
    num_questions, num_passages = score_BK.shape
    return total / (num_questions if reduction == "batchmean" else num_questions * num_passages)
