"""The examples in the docstrings of reader, objectives and training run."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "ralm.objectives.attention",
    "ralm.objectives.distillation",
    "ralm.objectives.divergence",
    "ralm.objectives.marginal",
    "ralm.objectives.reader_loss",
    "ralm.reader.fusion",
    "ralm.reader.labels",
    "ralm.reader.leave_one_out",
    "ralm.reader.options",
    "ralm.reader.prompts",
    "ralm.reader.scores",
    "ralm.training.examples",
    "ralm.training.schedule",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
