"""Settings of the embed stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ralm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """How passages are turned into vectors."""

    dtype: Literal["f16", "f32"] = "f16"
    """Stored number format; f16 halves size and memory traffic."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the encoder's weights; auto: bf16 where the hardware computes in it, else fp32."""

    token_budget: int = 0
    """Tokens in a batch, padding included; 0: 4,096 on a CPU, 98,304 on a GPU. It changes the speed, not the result."""

    block_passages: int = 8192
    """Passages held in memory and sorted by length at a time."""

    def __post_init__(self) -> None:
        """Check the limits."""
        if self.dtype not in ("f16", "f32"):
            raise ConfigError(f"dtype: expected f16 or f32, found {self.dtype!r}")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ConfigError(f"precision: expected auto, bf16 or fp32, found {self.precision!r}")
        if self.token_budget < 0:
            raise ConfigError(f"token_budget: expected 0 or more tokens, found {self.token_budget}")
        if self.block_passages < 1:
            raise ConfigError(f"block_passages: expected at least 1, found {self.block_passages}")
