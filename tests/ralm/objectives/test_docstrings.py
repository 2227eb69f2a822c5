"""The examples in the docstrings of reader, objectives and training run."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "ralm.objectives.distillation",
    "ralm.objectives.divergence",
    "ralm.objectives.reader_loss",
    "ralm.reader.fusion",
    "ralm.reader.prompts",
    "ralm.training.examples",
    "ralm.training.schedule",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
