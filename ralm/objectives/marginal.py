"""EMDR2: the passage is a latent variable, and the retriever learns to make the target likely summed over passages.

Shapes: `B` questions, `K` passages per question, `T` target tokens, `V` vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ralm.objectives.config import Emdr2Level
from ralm.objectives.distillation import passage_log_likelihood


def marginal_loss(
    likelihood_BKT: Tensor, label_BT: Tensor, log_retriever_BK: Tensor, *, level: Emdr2Level = "sequence"
) -> Tensor:
    """Negative log-likelihood of the targets, summed over passages weighted by the retriever.

    Args:
        likelihood_BKT: log-probability of each target token given each passage alone; 0 where nothing is learnt. No
            gradient flows into it.
        label_BT: int64 token numbers of the targets; negative ones are ignored. Each row needs a token that counts.
        log_retriever_BK: the retriever's log-probability of each passage, with gradient.
        level: `sequence`: -log sum_k p(a | q, d_k) p_r(d_k | q), the mean over questions. `token`: the sum over k is
            taken for each token of the target, -log sum_k p(a_t | a_<t, q, d_k) p_r(d_k | q), the mean over the tokens
            of all questions.

    Returns:
        A scalar, at least 0, in nats for each question (`sequence`) or token (`token`).

    Source: `sequence`: EMDR2 as in Atlas (arXiv 2208.03299), section 2.2, and Sachan et al. (arXiv 2106.05346),
    section 2.3; `token`: the form of Atlas' published implementation.

    Example:
        >>> likelihood_BKT = torch.tensor([[[0.5, 0.5], [0.25, 0.5]]]).log()
        >>> log_retriever_BK = torch.tensor([[0.5, 0.5]]).log()
        >>> label_BT = torch.tensor([[7, 8]])
        >>> round(marginal_loss(likelihood_BKT, label_BT, log_retriever_BK).exp().item(), 4)  # 1 / (1/8 + 1/16)
        5.3333
        >>> by_token = marginal_loss(likelihood_BKT, label_BT, log_retriever_BK, level="token")
        >>> round((2 * by_token).exp().item(), 4)  # 1 / ((1/4 + 1/8) (1/4 + 1/4))
        5.3333
    """
    likelihood_BKT, log_retriever_BK = likelihood_BKT.detach().float(), log_retriever_BK.float()
    if level == "sequence":
        return -torch.logsumexp(likelihood_BKT.sum(dim=-1) + log_retriever_BK, dim=-1).mean()
    is_learnt_BT = label_BT >= 0
    total_BT = torch.logsumexp(likelihood_BKT + log_retriever_BK.unsqueeze(-1), dim=1)
    return -total_BT.masked_fill(~is_learnt_BT, 0.0).sum() / is_learnt_BT.sum()


def emdr2_loss(
    logit_BKTV: Tensor,
    label_BT: Tensor,
    log_retriever_BK: Tensor,
    *,
    level: Emdr2Level = "sequence",
    temperature: float = 1.0,
) -> Tensor:
    """EMDR2 from the reader's logits: `marginal_loss` of the likelihoods that they give.

    Args:
        logit_BKTV: logits of the target given each passage alone; no gradient flows into them.
        label_BT: int64 token numbers of the targets; negative ones are ignored. Each row needs a token that counts.
        log_retriever_BK: the retriever's log-probability of each passage, with gradient.
        level: see `marginal_loss`.
        temperature: divides the logits before the softmax over the vocabulary. The model's own likelihood has 1;
            Atlas' default for the other objectives, 0.01, makes this loss explode.

    Returns:
        A scalar, at least 0.

    Example:
        >>> logit_BKTV = torch.tensor([[[[0.0, 0.0]], [[0.0, 0.0]]]])
        >>> loss = emdr2_loss(logit_BKTV, torch.tensor([[1]]), torch.tensor([[0.25, 0.75]]).log())
        >>> round(loss.item(), 4)  # log 2
        0.6931
    """
    likelihood_BKT = passage_log_likelihood(logit_BKTV.detach(), label_BT, temperature=temperature)
    return marginal_loss(likelihood_BKT, label_BT, log_retriever_BK, level=level)
