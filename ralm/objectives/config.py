"""Choices of the objectives that a config can name."""

from __future__ import annotations

from typing import Literal

Reduction = Literal["batchmean", "elementmean"]
"""Mean of a divergence over questions, or over questions and passages."""

Objective = Literal["pdist", "adist", "emdr2", "loop"]
"""What the reader tells the retriever: perplexity distillation, attention distillation, EMDR2, leave one out."""

Emdr2Level = Literal["sequence", "token"]
"""Where EMDR2 sums over passages: the likelihood of the whole target, or of each of its tokens."""
