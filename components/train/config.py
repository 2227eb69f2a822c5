"""Settings of the train stage."""

from __future__ import annotations

from dataclasses import dataclass

from ralm.errors import ConfigError
from ralm.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainingConfig):
    """Which questions are learnt, and how."""

    split: str = "train"
    """Table of the questions artifact: train, dev or another."""

    max_questions: int | None = None
    """Learn only the first ones (few-shot); all by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_questions is not None and self.max_questions < 1:
            raise ConfigError(f"max_questions: expected at least 1, found {self.max_questions}")
        if not self.split:
            raise ConfigError("split: expected the name of a table, found an empty text")
