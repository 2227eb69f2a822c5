"""Settings of the index stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ralm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """How passage vectors are laid out for search."""

    kind: Literal["exact"] = "exact"
    """exact: every vector is compared; the result is the true top k."""

    dtype: Literal["f16", "f32"] = "f16"
    """Stored number format; f16 halves size and memory traffic."""

    num_probes: int = 64
    """Stored vectors used as questions when the finished index is compared with a brute-force reference."""

    def __post_init__(self) -> None:
        if self.num_probes < 1:
            raise ConfigError(f"num_probes: expected at least 1, found {self.num_probes}")
