"""The reader's own loss: cross-entropy of the target given all passages."""

from __future__ import annotations

from torch import Tensor

from ralm.objectives.distillation import target_log_likelihood


def reader_loss(logit_BTV: Tensor, label_BT: Tensor) -> Tensor:
    """Cross-entropy of the target tokens, averaged over all tokens of the batch that count.

    Args:
        logit_BTV: logits of B targets of T tokens over V words.
        label_BT: int64 token numbers; negative ones are not learnt (padding, decoder prompts).

    Returns:
        A scalar, in nats for each token.

    Source: Izacard and Grave, arXiv 2007.01282, section 3; the mean over tokens as in Atlas (arXiv 2208.03299), 2.2.

    Example:
        >>> import torch
        >>> logit_BTV = torch.zeros(1, 3, 4)
        >>> label_BT = torch.tensor([[2, 0, -100]])
        >>> round(reader_loss(logit_BTV, label_BT).item(), 4)  # log 4
        1.3863
    """
    return -target_log_likelihood(logit_BTV, label_BT).sum() / (label_BT >= 0).sum()
