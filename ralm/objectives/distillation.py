"""What the reader tells the retriever: how useful each passage was. One function for each kind of score.

Shapes: `B` questions, `K` passages per question, `T` target tokens, `V` vocabulary.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def target_log_likelihood(logit_NTV: Tensor, label_NT: Tensor) -> Tensor:
    """Log-probability `[..., T]` of each target token, 0 where the label is -100.

    Args:
        logit_NTV: logits, any leading dimensions.
        label_NT: int64 token numbers with the same leading dimensions; -100 is ignored.

    Example:
        >>> import torch
        >>> score_NT = target_log_likelihood(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]))
        >>> [round(score, 4) + 0.0 for score in score_NT[0].tolist()]
        [-1.3863, 0.0]
    """
    loss = functional.cross_entropy(
        logit_NTV.flatten(0, -2).float(), label_NT.flatten(), ignore_index=-100, reduction="none"
    )
    return -loss.view(label_NT.shape)


def perplexity_scores(logit_BKTV: Tensor, label_BT: Tensor) -> Tensor:
    """Perplexity distillation: the mean log-likelihood of a target token when passage k is all that is read.

    Args:
        logit_BKTV: logits of the target given each passage alone.
        label_BT: int64 token numbers of the target; -100 is ignored. Each row needs at least one token that counts.

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
    label_BKT = label_BT.unsqueeze(1).expand(-1, logit_BKTV.shape[1], -1)
    likelihood_BKT = target_log_likelihood(logit_BKTV, label_BKT.contiguous())
    count_B1 = (label_BT != -100).sum(dim=-1, keepdim=True)
    return likelihood_BKT.sum(dim=-1) / count_B1
