"""Settings of the train stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from ralm.errors import ConfigError
from ralm.tasks.config import Permutations, TaskConfig
from ralm.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainingConfig):
    """Which questions are learnt, and how."""

    split: str = "train"
    """Table of the questions artifact: train, dev or another."""

    max_questions: int | None = None
    """Learn only the first ones (few-shot); all by default."""

    evaluate_split: str = "dev"
    """Table of the questions that are asked every `evaluate_every_steps` updates."""

    max_evaluate_questions: int | None = 200
    """Ask only the first ones of them."""

    evaluate_permutations: Permutations = "single"
    """Orders in which the options of a multiple-choice question are shown when it is asked on the way."""

    task: TaskConfig = field(default_factory=TaskConfig)
    """How rows become examples, where the task leaves a choice."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_questions", "max_evaluate_questions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: expected at least 1, found {value}")
        for name in ("split", "evaluate_split"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: expected the name of a table, found an empty text")
