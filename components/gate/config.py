"""Settings of the gate stage."""

from __future__ import annotations

from dataclasses import dataclass

from ralm.evaluation.config import Rule


@dataclass(frozen=True, kw_only=True)
class GateConfig(Rule):
    """When a challenger may take the champion's place; a promotion under competition decides by the same rule."""
