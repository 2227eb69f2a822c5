"""Settings of what is decided from evaluations. Only the standard library is imported here."""

from __future__ import annotations

from dataclasses import dataclass

from ralm.errors import ConfigError

MIN_RESAMPLES = 100


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When a challenger may take the champion's place.

    It may if the lower bound of the mean gain per question is at least `-max_loss`, and no guard objects. The bound is
    the lower end of a one-sided interval: the `1 - confidence` quantile of the means of a paired bootstrap.
    """

    metric: str = "auto"
    """The figure that decides, one that every question has: a metric of the task such as `exact_match`, or
    `recall_at_10`, `recall_title_at_10`, `mrr`. auto: the task's main metric."""

    max_loss: float = 0.01
    """How much worse than the champion the challenger may be, as a fraction of questions."""

    confidence: float = 0.95
    """How sure it has to be that the loss is no greater."""

    resamples: int = 10_000
    """Draws of the paired bootstrap behind the bound."""

    seed: int = 0
    """Seed of these draws."""

    max_latency_ratio: float = 0.0
    """Milliseconds per question of the challenger (encode, search and read together) over those of the champion; 0: not
    looked at."""

    max_memory_ratio: float = 0.0
    """Resident bytes of the challenger's index over those of the champion's; 0: not looked at."""

    min_fresh_gain: float = 0.0
    """Least mean gain on the questions about changed pages, where there are such; 0: it must not be worse there."""

    def __post_init__(self) -> None:
        if not self.metric:
            raise ConfigError("metric: expected auto or the name of a figure, found an empty text")
        if not 0 <= self.max_loss < 1:
            raise ConfigError(f"max_loss: expected at least 0 and less than 1, found {self.max_loss}")
        if not 0.5 < self.confidence < 1:
            raise ConfigError(f"confidence: expected more than 0.5 and less than 1, found {self.confidence}")
        if not -1 <= self.min_fresh_gain <= 1:
            raise ConfigError(f"min_fresh_gain: expected -1 to 1, found {self.min_fresh_gain}")
        for name, least in (
            ("resamples", MIN_RESAMPLES),
            ("seed", 0),
            ("max_latency_ratio", 0),
            ("max_memory_ratio", 0),
        ):
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name}: expected at least {least}, found {getattr(self, name)}")
