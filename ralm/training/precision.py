"""Training in fp16: the loss is multiplied so that small gradients stay above what fp16 can hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

HIGHEST = 2.0**24
LOWEST = 2.0**-14


@dataclass
class LossScale:
    """What the loss is multiplied with: as large as gradients do not overflow.

    Where they do, the update is computed again with half of it, so none is left out. PyTorch's `GradScaler` leaves the
    update out, and asks each process about its own gradients; here the length of the gradient, which is that of all
    processes, tells them the same.

    Source: Micikevicius et al., "Mixed Precision Training" (arXiv 1710.03740), section 3.2.

    Example:
        >>> scale = LossScale(value=4.0, patience=2)
        >>> scale.lower(), scale.value
        (True, 2.0)
        >>> scale.count(), scale.count(), scale.value
        (None, None, 4.0)
    """

    value: float = 2.0**16
    num_clean: int = 0
    """Updates since it was last changed."""
    patience: int = 2000
    """It is doubled after so many."""

    def lower(self) -> bool:
        """Halve it; False if it cannot get lower: then something else is wrong."""
        if self.value <= LOWEST:
            return False
        self.value, self.num_clean = self.value / 2, 0
        return True

    def count(self) -> None:
        """One more update whose gradients did not overflow."""
        self.num_clean += 1
        if self.num_clean >= self.patience:
            self.value, self.num_clean = min(2 * self.value, HIGHEST), 0

    def take_off(self, weights: Iterable[nn.Parameter]) -> None:
        """Divide the gradients by it."""
        for weight in weights:
            if weight.grad is not None:
                weight.grad.mul_(1 / self.value)
