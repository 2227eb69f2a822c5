"""From token states to one vector: pure functions.

Shapes: `B` texts, `L` tokens, `D` values in a vector. The mask is 1 on real tokens; None means that all are real.
Everything is computed in fp32 whatever the states are in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ralm.retriever.config import Pooling


def pool_mean(states_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:
    """Mean of the states of real tokens, [B, D] (Contriever, sentence-transformers' `mean_tokens`).

    Example:
        >>> states = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
        >>> pool_mean(states, torch.tensor([[1, 1, 0]])).tolist()
        [[2.0, 3.0]]
    """
    return _sum(states_BLD, mask_BL) / _counts(states_BLD, mask_BL)


def pool_cls(states_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:
    """State of the first token, [B, D].

    Example:
        >>> pool_cls(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).tolist()
        [[1.0, 2.0]]
    """
    return states_BLD[:, 0].float()


def pool_sqrt(states_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:
    """Sum of the states of real tokens over the root of their number, [B, D] (`mean_sqrt_len_tokens`).

    Example:
        >>> states = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
        >>> pool_sqrt(states).tolist()
        [[5.0]]
    """
    return _sum(states_BLD, mask_BL) / _counts(states_BLD, mask_BL).sqrt()


POOL: dict[Pooling, Callable[[Tensor, Tensor | None], Tensor]] = {
    "mean": pool_mean,
    "cls": pool_cls,
    "sqrt": pool_sqrt,
}


def _sum(states_BLD: Tensor, mask_BL: Tensor | None) -> Tensor:
    states_BLD = states_BLD.float()
    if mask_BL is None:
        return states_BLD.sum(dim=1)
    return (states_BLD * mask_BL.unsqueeze(-1).to(states_BLD.dtype)).sum(dim=1)


def _counts(states_BLD: Tensor, mask_BL: Tensor | None) -> Tensor:
    if mask_BL is None:
        return torch.full((states_BLD.shape[0], 1), float(states_BLD.shape[1]), device=states_BLD.device)
    return mask_BL.sum(dim=1, keepdim=True).clamp(min=1).float()
