"""Named complete runs: where everything comes from, and the config of every stage."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from components.download.config import DownloadConfig
from components.embed.config import EmbedConfig
from components.evaluate.config import EvaluateConfig
from components.index.config import IndexConfig
from components.register.config import RegisterConfig
from components.report.config import ReportConfig
from components.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where a run's inputs come from: a path, a URL, or `asset:`, `pypi://`, `hf://`, `wiki:`."""

    passages: str
    """The corpus."""
    questions: str = ""
    """A folder of train.jsonl, dev.jsonl and test.jsonl; empty: every run has to name one."""
    model: str = ""
    """A bundle of both halves of the model."""
    retriever: str = ""
    reader: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete run."""

    sources: Sources
    num_shards: int = 1
    """Tasks that share the encoding of the passages."""
    download: DownloadConfig = field(default_factory=DownloadConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    register: RegisterConfig = field(default_factory=RegisterConfig)


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


RECIPES: dict[str, Callable[[], Recipe]] = {"quickstart": quickstart, "nq-base": nq_base}


def recipe_plain(name: str) -> dict[str, Any]:
    """A recipe as JSON types, with every setting of every stage.

    `wiki_base_url` is left out: the mirror is a fact of the machine, which a task reads from its environment.
    """
    plain = dataclasses.asdict(dataclasses.replace(RECIPES[name](), register=RegisterConfig(recipe=name)))
    del plain["download"]["wiki_base_url"]
    return plain


def recipes_json() -> str:
    """All recipes as one JSON object, the constant that the compiler hands to the plan task."""
    return json.dumps({name: recipe_plain(name) for name in sorted(RECIPES)}, sort_keys=True)
