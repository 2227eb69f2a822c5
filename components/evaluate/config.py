"""Settings of the evaluate stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ralm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which questions are asked, with how many passages, and at which ranks retrieval is measured."""

    split: str = "test"
    """Table of the questions artifact: train, dev or test."""

    max_questions: int | None = None
    """Ask only the first ones; all by default."""

    closed_book: bool = False
    """Ask the reader without passages; passages and index are then not used."""

    num_passages: int | Literal["auto"] = "auto"
    """Passages the reader gets for one question; auto: as many as its own configuration says."""

    recall_at: tuple[int, ...] = (1, 5, 10, 20, 50)
    """Cut-offs k of recall at k, each at most the number of passages in the corpus."""

    batch_size: int = 16
    """Questions read at a time."""

    max_batch_tokens: int = 65_536
    """Reader input tokens at a time (questions x passages x longest input); makes batches smaller, never empty."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of both models; auto: bf16 where the hardware has it, else fp32."""

    def __post_init__(self) -> None:
        for name in ("max_questions", "num_passages", "batch_size", "max_batch_tokens"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"{name}: expected at least 1, found {value}")
        if not self.recall_at or min(self.recall_at) < 1 or len(set(self.recall_at)) != len(self.recall_at):
            raise ConfigError(f"recall_at: expected different numbers of at least 1, found {list(self.recall_at)}")
        if not self.split:
            raise ConfigError("split: expected the name of a table, found an empty text")
