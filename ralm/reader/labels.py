"""Labels: what the decoder learns, and what it is given only to read.

A label is a token number where the token is learnt, -100 (`IGNORED_LABEL`) for padding, and below that for a token of a
decoder prompt: the decoder reads it, nothing learns it. So one tensor says all that a target is; whatever is negative
does not count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ralm.objectives.distillation import IGNORED_LABEL


def make_labels(prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Tensor:
    """Labels `[B, T]` of targets behind their prompts, padded at the end.

    Example:
        >>> make_labels([[7], []], [[5, 1], [6, 8, 1]]).tolist()
        [[-108, 5, 1], [6, 8, 1]]
        >>> make_labels([[]], [[5]]).tolist(), make_labels([[], []], [[5], [5, 1]]).tolist()
        ([[5]], [[5, -100], [5, 1]])
    """
    rows = [
        torch.tensor([*(IGNORED_LABEL - 1 - token for token in prompt), *target], dtype=torch.long)
        for prompt, target in zip(prompts, targets, strict=True)
    ]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED_LABEL)


def decoder_inputs(label_BT: Tensor, *, start_token: int, pad_token: int) -> Tensor:
    """What the decoder is given to write the targets: their tokens and those of the prompts, one place to the right.

    Example:
        >>> decoder_inputs(torch.tensor([[-108, 5, 1, -100]]), start_token=0, pad_token=0).tolist()
        [[0, 7, 5, 1]]
    """
    token_BT = torch.where(label_BT < IGNORED_LABEL, IGNORED_LABEL - 1 - label_BT, label_BT)
    token_BT = token_BT.masked_fill(label_BT == IGNORED_LABEL, pad_token)
    return torch.cat([torch.full_like(token_BT[:, :1], start_token), token_BT[:, :-1]], dim=1)
