"""From a recipe and the inputs of one run to the config of each stage and the list of shards.

The recipes come in as JSON that the compiler put into the pipeline, so this task needs no other code than its own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ralm.cli import parse_config
from ralm.errors import ConfigError
from ralm.evaluation.config import Rule

STAGES: Final = ("download", "embed", "index", "train", "evaluate", "report", "compare", "gate", "register")
SOURCES: Final = ("passages", "questions", "model", "retriever", "reader")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changes:
    """What a run changes in its recipe. Empty, 0, and for the seed -1, mean: as in the recipe."""

    passages: str = ""
    """Source of the corpus."""
    questions: str = ""
    """Source of the questions to train on and to evaluate on: a folder of train, dev and test.jsonl."""
    model: str = ""
    """Source of a retriever and a reader in one bundle."""
    retriever: str = ""
    """Source of a retriever, in place of the bundle's."""
    reader: str = ""
    """Source of a reader, in place of the bundle's."""
    num_shards: int = 0
    """Tasks that share the encoding of the passages."""
    num_processes: int = 0
    """Processes of the training on each node."""
    nodes: int = 0
    """Machines that the training takes."""
    num_passages: int = 0
    """K, passages per question, in training and evaluation."""
    num_steps: int = 0
    """Training steps."""
    learning_rate: float = 0.0
    """Of the reader."""
    seed: int = -1
    """Of training."""
    mirrors: str = ""
    """Sites that dumps are fetched from, with commas between; empty: as the task's environment says."""
    max_loss: float = -1.0
    """How much worse a new index may be, as a fraction of questions; -1: as in the recipe."""
    confidence: float = 0.0
    """How sure it has to be that the loss is no greater."""
    registered_as: str = ""
    """Name of the registered model, without `ralm-`; empty: that of the recipe."""
    made_with: str = "{}"
    """JSON object of stage names with the settings that an earlier index was made with; they go before the recipe's."""
    settings: str = "{}"
    """JSON object of stage names with settings of that stage: `{"train": {"num_steps": 10}}`."""

    def __post_init__(self) -> None:
        for name in (
            "num_shards",
            "num_processes",
            "nodes",
            "num_passages",
            "num_steps",
            "learning_rate",
            "confidence",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected a positive number, found {getattr(self, name)}")
        for name in ("seed", "max_loss"):
            if getattr(self, name) < 0 and getattr(self, name) != -1:
                expected = "expected at least 0, or -1 for that of the recipe"
                raise ConfigError(f"{name}: {expected}, found {getattr(self, name)}")


class Plan(NamedTuple):
    """What the tasks of a run are given; the fields named like stages hold their config as JSON."""

    Output: list[int]
    num_shards: int
    num_processes: int
    nodes: int
    train_gpus: str
    """GPUs of the train task, one for each process; none where it only waits for a job. A text, as kfp wants it."""
    passages: str
    questions: str
    model: str
    retriever: str
    reader: str
    download: str
    embed: str
    index: str  # type: ignore[assignment]  # tuple.index is not used
    train: str
    evaluate: str
    report: str
    compare: str
    gate: str
    register: str


def plan(*, recipes: str, recipe: str, changes: Changes) -> Plan:
    """Merge a recipe with the changes of one run.

    Args:
        recipes: JSON object with `defaults` (sources, numbers of tasks and processes, the complete config of every
            stage) and, by name, the `recipes`: what each of them sets otherwise.
        recipe: name of the one to take.
        changes: what this run changes in it.

    Raises:
        ConfigError: unknown recipe, stage or setting, or a rule of the gate that cannot be.
    """
    known = json.loads(recipes)
    if recipe not in known["recipes"]:
        raise ConfigError(f"recipe: expected one of {', '.join(sorted(known['recipes']))}, found {recipe!r}")
    chosen = merge(known["defaults"], known["recipes"][recipe], recipe)
    stages = {stage: dict(chosen[stage]) for stage in STAGES}
    stages["register"]["recipe"] = changes.registered_as or recipe
    _apply(stages, _parse_settings(changes.made_with, "made_with"))
    _apply(stages, _shortcuts(changes))
    _apply(stages, _parse_settings(changes.settings, "settings"))
    if changes.mirrors:
        stages["download"]["wiki_base_url"] = changes.mirrors
    parse_config(Rule, json.dumps(stages["gate"]))  # known here, and not when all passages have been encoded
    sources = _choose_sources(chosen["sources"], changes)
    num_shards = changes.num_shards or int(chosen["num_shards"])
    num_processes = changes.num_processes or int(chosen["num_processes"])
    nodes = changes.nodes or int(chosen["nodes"])
    return Plan(
        Output=list(range(num_shards)),
        num_shards=num_shards,
        num_processes=num_processes,
        nodes=nodes,
        train_gpus=str(num_processes if nodes == 1 else 0),
        **sources,
        **{stage: json.dumps(config, sort_keys=True) for stage, config in stages.items()},
    )


def _shortcuts(changes: Changes) -> dict[str, dict[str, Any]]:
    """The inputs that set the same thing in one or more stages."""
    train: dict[str, Any] = {}
    evaluate: dict[str, Any] = {}
    if changes.num_passages:
        train["num_passages"] = evaluate["num_passages"] = changes.num_passages
    if changes.num_steps:
        train["num_steps"] = changes.num_steps
    if changes.learning_rate:
        train["learning_rate"] = changes.learning_rate
    if changes.seed >= 0:
        train["seed"] = changes.seed
    gate: dict[str, Any] = {}
    if changes.max_loss >= 0:
        gate["max_loss"] = changes.max_loss
    if changes.confidence:
        gate["confidence"] = changes.confidence
    return {"train": train, "evaluate": evaluate, "gate": gate}


def _parse_settings(text: str, name: str) -> dict[str, Any]:
    try:
        settings = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}: no JSON: {error}") from error
    if not isinstance(settings, dict) or not all(isinstance(part, dict) for part in settings.values()):
        raise ConfigError(f'{name}: expected an object of objects such as {{"train": {{"num_steps": 10}}}}')
    if unknown := sorted(set(settings) - set(STAGES)):
        raise ConfigError(f"{name}: unknown stage {unknown[0]!r}, expected one of {', '.join(STAGES)}")
    return settings


def _apply(stages: dict[str, dict[str, Any]], settings: Mapping[str, Mapping[str, Any]]) -> None:
    for stage, part in settings.items():
        stages[stage] = merge(stages[stage], part, stage)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A config with some values replaced, nested ones too.

    Raises:
        ConfigError: a key that the config does not have.
    """
    merged = dict(base)
    for key, value in changes.items():
        if key not in base:
            raise ConfigError(f"{where}.{key}: unknown setting, expected one of {', '.join(sorted(base))}")
        nested = base[key] and isinstance(base[key], Mapping) and isinstance(value, Mapping)  # {} takes any names
        merged[key] = merge(base[key], value, f"{where}.{key}") if nested else value
    return merged


def _choose_sources(sources: Mapping[str, str], changes: Changes) -> dict[str, str]:
    chosen = {name: getattr(changes, name) or sources[name] for name in SOURCES}
    if changes.retriever and changes.reader:
        chosen["model"] = changes.model
    elif changes.model:  # halves that the run names itself stay in place of the bundle's
        chosen |= {"retriever": changes.retriever, "reader": changes.reader}
    if not chosen["questions"]:
        raise ConfigError("questions: this recipe names none; give a folder of train.jsonl and test.jsonl")
    return chosen
