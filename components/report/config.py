"""Settings of the report stage."""

from __future__ import annotations

from dataclasses import dataclass

from ralm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What the page shows and how the difference is tested."""

    title: str = "Evaluation report"
    """Heading of the page."""

    max_rows: int = 500
    """Questions in the page's table, from the first on; per_question.parquet always holds all."""

    max_passages: int = 10
    """Passages shown for one question and run, best first."""

    resamples: int = 10_000
    """Draws of the paired bootstrap behind the confidence interval."""

    seed: int = 0
    """Seed of these draws."""

    def __post_init__(self) -> None:
        for name, least in (("max_rows", 1), ("max_passages", 1), ("resamples", 100), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected at least {least}, found {getattr(self, name)}")
