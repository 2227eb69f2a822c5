"""What the reader tells the retriever: how useful each passage was. One function for each kind of score.

Attention has a module of its own (`attention.py`), and so has EMDR2, which is a loss and no score (`marginal.py`).

Shapes: `B` questions, `K` passages per question, `T` target tokens, `V` vocabulary.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

IGNORED_LABEL = -100


def target_log_likelihood(logit_NTV: Tensor, label_NT: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probability `[..., T]` of each target token in fp32, 0 where the label is negative (not learnt).

    Args:
        logit_NTV: logits in any number format, any leading dimensions.
        label_NT: int64 token numbers with the same leading dimensions; negative ones are ignored.
        temperature: divides the logits before the softmax over the vocabulary.

    Example:
        >>> import torch
        >>> score_NT = target_log_likelihood(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]))
        >>> [round(score, 4) + 0.0 for score in score_NT[0].tolist()]
        [-1.3863, 0.0]
    """
    label_N = label_NT.flatten()
    loss = functional.cross_entropy(
        logit_NTV.flatten(0, -2).float() / temperature,
        label_N.masked_fill(label_N < 0, IGNORED_LABEL),
        ignore_index=IGNORED_LABEL,
        reduction="none",
    )
    return -loss.view(label_NT.shape)


def passage_log_likelihood(logit_BKTV: Tensor, label_BT: Tensor, *, temperature: float = 1.0) -> Tensor:
    """`target_log_likelihood` of one target under the logits of each passage: `[B, K, T]`."""
    label_BKT = label_BT.unsqueeze(1).expand(-1, logit_BKTV.shape[1], -1)
    return target_log_likelihood(logit_BKTV, label_BKT, temperature=temperature)


def perplexity_scores(logit_BKTV: Tensor, label_BT: Tensor) -> Tensor:
    """Perplexity distillation (PDist): the mean log-likelihood of a target token when passage k is all that is read.

    Args:
        logit_BKTV: logits of the target given each passage alone.
        label_BT: int64 token numbers of the target; negative ones are ignored. Each row needs at least one token that
            counts.

    Returns:
        Scores `[B, K]`, at most 0; higher means more useful.

    Source: Atlas (arXiv 2208.03299), section 2.2, "Perplexity Distillation": p_k is proportional to
    exp(log p_LM(a | d_k, q)); the mean over tokens is that of the published implementation.

    Example:
        >>> import torch
        >>> logit_BKTV = torch.tensor([[[[4.0, 0.0]], [[0.0, 0.0]]]])  # passage 0 favours word 0
        >>> [round(score, 4) for score in perplexity_scores(logit_BKTV, torch.tensor([[0]]))[0].tolist()]
        [-0.0181, -0.6931]
    """
    count_B1 = (label_BT >= 0).sum(dim=-1, keepdim=True)
    return passage_log_likelihood(logit_BKTV, label_BT).sum(dim=-1) / count_B1


def leave_one_out_scores(logit_BKTV: Tensor, label_BT: Tensor) -> Tensor:
    """Leave one out (LOOP): the mean loss of a target token when all passages but k are read.

    Args:
        logit_BKTV: logits of the target given all passages without passage k.
        label_BT: int64 token numbers of the target; negative ones are ignored. Each row needs at least one token that
            counts.

    Returns:
        Scores `[B, K]`, at least 0; higher means more useful: without the passage the target is less likely.

    Source: Atlas (arXiv 2208.03299), section 2.2, "Leave-one-out Perplexity Distillation": p_k is proportional to
    exp(-log p_LM(a | D without d_k, q)); the mean over tokens is that of the published implementation.

    Example:
        >>> import torch
        >>> logit_BKTV = torch.tensor([[[[0.0, 0.0]], [[4.0, 0.0]]]])  # without passage 0 word 0 is lost
        >>> [round(score, 4) for score in leave_one_out_scores(logit_BKTV, torch.tensor([[0]]))[0].tolist()]
        [0.6931, 0.0181]
    """
    return -perplexity_scores(logit_BKTV, label_BT)
