"""Settings of the register stage."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ralm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    """Under which name a pair of model and index is registered, and what makes it the champion."""

    recipe: str = "custom"
    """The registered model is called `ralm-<recipe>`."""

    metric: str = "auto"
    """Figure of the predictions' metrics.json; the higher one wins. Nested figures are named with dots. auto: the
    task's main figure, such as `exact_match` for qa and `debiased_accuracy` for multiple_choice."""

    parent_version: str = ""
    """Version whose model was given another index; empty: the champion that the decision was measured against."""

    def __post_init__(self) -> None:
        """Check names."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.recipe):
            raise ConfigError(f"recipe: expected letters, digits, dots and dashes, found {self.recipe!r}")
        if not self.metric:
            raise ConfigError("metric: expected the name of a figure, found an empty text")
