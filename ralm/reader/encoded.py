"""Encoded passages of several questions, and the same laid side by side for the decoder.

Shapes: `B` questions, `K` passages per question, `L` tokens per passage, `S` tokens of all passages of a question
together, `D` model size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ralm.errors import DataError


@dataclass(frozen=True)
class FusedPassages:
    """The tokens of all passages of a question side by side, without the padding between them."""

    state: Tensor
    """`[B, S, D]`, S the most tokens that a question's passages have together."""
    mask: Tensor
    """`[B, S]`, 1 for tokens and 0 for padding at the end."""
    place: Tensor
    """`[B, S]`, where each token is in a question's `K * L` places; 0 for padding."""


@dataclass(frozen=True)
class EncodedPassages:
    """Encoder states of the passages of B questions; what is not a token of a passage is zero and masked."""

    state: Tensor
    """`[B, K, L, D]`."""
    mask: Tensor
    """`[B, K, L]`, 1 for tokens and 0 elsewhere."""

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Passages that were encoded apart, side by side: those of the first part come first."""
        longest = max(part.mask.shape[2] for part in parts)
        states = [functional.pad(part.state, (0, 0, 0, longest - part.state.shape[2])) for part in parts]
        masks = [functional.pad(part.mask, (0, longest - part.mask.shape[2])) for part in parts]
        return cls(state=torch.cat(states, dim=1), mask=torch.cat(masks, dim=1))

    def detach(self) -> EncodedPassages:
        """The same states, cut off from the encoder: nothing computed from them reaches its weights."""
        return EncodedPassages(state=self.state.detach(), mask=self.mask)

    def select(self, questions: slice, passages: slice = slice(None)) -> EncodedPassages:
        """Some of the passages of some of the questions."""
        return EncodedPassages(state=self.state[questions, passages], mask=self.mask[questions, passages])

    def require_all(self) -> None:
        """Refuse questions with fewer than K passages, for what is defined for passages that exist only.

        Raises:
            DataError: a question has fewer passages than another.
        """
        count_B = self.mask.any(dim=-1).sum(dim=-1)
        most = self.mask.shape[1]
        if bool((count_B < most).any()):
            short = int(count_B.argmin())
            raise DataError(f"question {short} of the batch: expected {most} passages, found {int(count_B[short])}")

    def fuse(self) -> FusedPassages:
        """All passages of a question side by side.

        The decoder's cross-attention knows no positions, so leaving masked states out changes nothing but the time.
        """
        is_token_BN = self.mask.flatten(1).bool()
        pairs = zip(self.state.flatten(1, 2), is_token_BN, strict=True)
        state_BSD = nn.utils.rnn.pad_sequence(
            [state_ND[is_token_N] for state_ND, is_token_N in pairs], batch_first=True
        )
        places = [is_token_N.nonzero().squeeze(1) for is_token_N in is_token_BN]
        length_B1 = is_token_BN.sum(dim=1, keepdim=True)
        mask_BS = (torch.arange(state_BSD.shape[1], device=length_B1.device) < length_B1).long()
        return FusedPassages(state_BSD, mask_BS, nn.utils.rnn.pad_sequence(places, batch_first=True))
