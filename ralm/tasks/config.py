"""Settings of tasks: how a row becomes what is asked, where the task leaves a choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ralm.errors import ConfigError

Permutations = Literal["single", "cyclic", "all"]


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Choices of the tasks that are made when a row is asked. The defaults are those of the published Atlas code."""

    permutations: Permutations = "single"
    """Orders in which the options of a multiple-choice question are shown, each as an example of its own: `single` as
    given, `cyclic` all rotations, `all` every order."""

    max_query_tokens: int = 356
    """Longest multiple-choice question with its options and the reader's question format, in reader tokens; the start
    of the question is cut off, never an option."""

    mlm_noise_density: float = 0.15
    """Share of a text's tokens that task `mlm` masks."""

    mlm_mean_span_length: float = 3.0
    """Mean number of tokens in a masked span of task `mlm`."""

    lm_min_context_ratio: float = 0.5
    """Smallest part of a text that task `lm` gives as the question; the rest is to be written."""

    lm_max_context_ratio: float = 0.5
    """Largest part of a text that task `lm` gives as the question."""

    min_words: int = 0
    """Tasks `mlm`, `lm` and `section` skip texts with fewer words; empty texts are always skipped."""

    def __post_init__(self) -> None:
        """Check ranges and contradictions."""
        low, high = self.lm_min_context_ratio, self.lm_max_context_ratio
        choices = ("single", "cyclic", "all")
        self._check("permutations", self.permutations in choices, f"one of {', '.join(choices)}")
        self._check("max_query_tokens", self.max_query_tokens >= 1, "at least 1")
        self._check("mlm_noise_density", 0 < self.mlm_noise_density < 1, "between 0 and 1, both excluded")
        self._check("mlm_mean_span_length", self.mlm_mean_span_length >= 1, "at least 1")
        self._check("lm_min_context_ratio", 0 <= low <= 1, "0 to 1")
        self._check("lm_max_context_ratio", low <= high <= 1, f"lm_min_context_ratio ({low}) to 1")
        self._check("min_words", self.min_words >= 0, "at least 0")

    def _check(self, name: str, is_fine: bool, expected: str) -> None:
        if not is_fine:
            raise ConfigError(f"task.{name}: expected {expected}, found {getattr(self, name)}")
