"""Settings of the compare stage."""

from __future__ import annotations

from dataclasses import dataclass

from ralm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What the page on the changes shows."""

    max_pages: int = 50
    """Pages listed in changes.md, those with the most new passages first; pages.parquet always holds all."""

    def __post_init__(self) -> None:
        """Check the limit."""
        if self.max_pages < 0:
            raise ConfigError(f"max_pages: expected 0 or more, found {self.max_pages}")
