"""Choices of the objectives that a config can name."""

from __future__ import annotations

from typing import Literal

Reduction = Literal["batchmean", "elementmean"]
"""Mean of a divergence over questions, or over questions and passages."""
