"""Named complete runs, and how the compiler hands them to the plan task."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from components.evaluate.config import EvaluateConfig
from components.report.config import ReportConfig
from components.train.config import TrainConfig
from pipelines.atlas_recipes import ATLAS_RECIPES
from pipelines.recipe import Recipe, Sources


def quickstart() -> Recipe:
    """64-shot training on a real Wikipedia slice with small models; minutes on two cores, PyPI is enough."""
    return Recipe(
        sources=Sources(
            passages="asset:enwiki-2016-slice", questions="examples/quickstart/questions", model="asset:quickstart"
        ),
        train=TrainConfig(
            num_steps=16, num_passages=5, learning_rate=5e-4, warmup_steps=2, dropout=0.0, micro_batch_size=1
        ),
        evaluate=EvaluateConfig(num_passages=5),
        report=ReportConfig(title="Quickstart: 64-shot training on a Wikipedia slice"),
    )


def nq_base() -> Recipe:
    """Few-shot question answering on the whole English Wikipedia with base-size models from the hub."""
    return Recipe(
        sources=Sources(
            passages="wiki:enwiki/latest",
            retriever="hf://facebook/contriever",
            reader="hf://google/t5-base-lm-adapt",
        ),
        num_shards=64,
        train=TrainConfig(num_steps=64, batch_size=64, num_passages=20, num_retrieved=100),
        evaluate=EvaluateConfig(num_passages=40),
        report=ReportConfig(title="Few-shot questions on the whole English Wikipedia"),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"quickstart": quickstart, "nq-base": nq_base, **ATLAS_RECIPES}


def recipe_plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON types, with every setting of every stage.

    Base addresses are left out: the mirror is a fact of the machine, which a task reads from its environment.
    """
    plain = dataclasses.asdict(recipe)
    for name in ("wiki_base_url", "atlas_base_url", "datasets_base_url"):
        del plain["download"][name]
    return plain


def recipes_json() -> str:
    """All recipes as one JSON object, the constant that the compiler hands to the plan task.

    `defaults` holds every setting, `recipes` by name what each of them sets otherwise.
    """
    defaults = recipe_plain(Recipe(sources=Sources(passages="")))
    changes = {name: _difference(defaults, recipe_plain(make())) for name, make in sorted(RECIPES.items())}
    return json.dumps({"defaults": defaults, "recipes": changes}, sort_keys=True)


def _difference(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `other` that are not those of `base`, nested ones too."""
    found: dict[str, Any] = {}
    for name, value in other.items():
        if isinstance(value, Mapping) and isinstance(base[name], Mapping):
            if nested := _difference(base[name], value):
                found[name] = nested
        elif value != base[name]:
            found[name] = value
    return found
