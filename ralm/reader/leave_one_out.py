"""Masks for reading all passages but one, for every passage at once.

Copies of the target are laid behind each other as one decoder input. A copy attends to itself only, and copy c reads
all passages but passage c. T5's position bias depends on distances only and its cross-attention has none, so each copy
gets the logits it would get alone, while keys and values of the passages are computed once, not once for each copy.

Shapes: `B` questions, `C` copies of a target, `T` target tokens, `S` tokens of all passages of a question side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

HIDDEN = torch.finfo(torch.bfloat16).min
"""Added to a score, it hides the key; the lowest number that bf16 and fp32 both have."""


def copies_mask(num_copies: int, length: int, *, device: torch.device | None = None) -> Tensor:
    """What a position of the copies may attend to among the copies: additive, `[1, 1, C * T, C * T]`.

    Example:
        >>> (copies_mask(2, 2)[0, 0] == 0).int().tolist()
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    """
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    allowed = torch.block_diag(*[causal_TT] * num_copies).bool()
    return _additive(allowed)[None, None]


def all_but_one_mask(passage_BS: Tensor, mask_BS: Tensor, left_out_C: Tensor, length: int) -> Tensor:
    """What a position of the copies may attend to among the passages' tokens: additive, `[B, 1, C * T, S]`.

    Args:
        passage_BS: number of the passage that a token belongs to.
        mask_BS: 1 for tokens, 0 for padding.
        left_out_C: the passage that each copy does not see.
        length: T.

    Example:
        >>> mask = all_but_one_mask(torch.tensor([[0, 0, 1, 0]]), torch.tensor([[1, 1, 1, 0]]), torch.tensor([0, 1]), 1)
        >>> (mask[0, 0] == 0).int().tolist()
        [[0, 0, 1, 0], [1, 1, 0, 0]]
    """
    allowed_BCS = (passage_BS[:, None] != left_out_C[None, :, None]) & mask_BS[:, None].bool()
    return _additive(allowed_BCS.repeat_interleave(length, dim=1))[:, None]


def _additive(allowed: Tensor) -> Tensor:
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, HIDDEN)
