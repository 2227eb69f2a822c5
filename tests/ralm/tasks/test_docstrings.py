"""The examples in the docstrings of tasks and metrics."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "ralm.evaluation.metrics",
    "ralm.evaluation.normalise",
    "ralm.evaluation.retrieval",
    "ralm.evaluation.rouge",
    "ralm.tasks.formats",
    "ralm.tasks.lm",
    "ralm.tasks.mlm",
    "ralm.tasks.multiple_choice",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
