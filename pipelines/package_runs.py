"""Runs of any compiled pipeline from the command line, and what they made, stage by stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.compile import Runner
from pipelines.package import Package
from pipelines.runs import FIGURES, check_configs, find_questions
from ralm.artifacts.files import join, read_json


@dataclass(frozen=True, kw_only=True)
class StagesRun:
    """What a run of any pipeline made, stage by stage."""

    pipeline: str
    run_id: str
    artifacts: list[dict[str, Any]]
    """One for each stage, as they ended: stage, kind, uri, fingerprint, counts, reused, elapsed_s."""
    changes: dict[str, Any]
    """Of a re-index: pages and passages by what became of them."""
    decision: dict[str, Any]
    """Of a re-index: whether the new index takes over, why, and the figures."""
    registered: dict[str, Any]
    """Name, version, alias and reason, where something was registered."""
    metrics: dict[str, Any]
    """Of the evaluation; of a re-index those of the challenger on the main questions."""
    elapsed_s: float


def run_package(package: Package, parameters: Mapping[str, Any], *, runner: Runner = "subprocess") -> StagesRun:
    """Run any compiled pipeline here.

    Raises:
        ConfigError: a setting that a task would refuse; known before anything runs.
        PipelineError: a task failed.
    """
    from pipelines.local import run_pipeline

    recipe = str(parameters.get("recipe", package.inputs["recipe"].get("defaultValue", "")))
    given = {**parameters, "questions": find_questions(recipe, str(parameters.get("questions", "")))}
    _check_settings(recipe, given)
    finished = run_pipeline(given, runner=runner, file=package.path)
    found = {kind: _read(finished.last(kind), name) for kind, name in _SHOWN.items()}
    if found["decision"]:
        challenger = found["decision"]["places"]["challenger"]["predictions"]
        found["predictions"] = _read(challenger, _SHOWN["predictions"])
    return StagesRun(
        pipeline=package.name,
        run_id=finished.run_id,
        artifacts=finished.events,
        changes=found["changes"],
        decision=found["decision"],
        registered=found["registration"],
        metrics=found["predictions"],
        elapsed_s=round(finished.elapsed_s, 1),
    )


def _check_settings(recipe: str, given: Mapping[str, Any]) -> None:
    from components.plan.stage import Changes, plan
    from pipelines.recipes import recipes_json

    known = {field.name for field in dataclasses.fields(Changes)}
    changes = Changes(**{name: value for name, value in given.items() if name in known})
    check_configs(plan(recipes=recipes_json(), recipe=recipe, changes=changes)._asdict())


def _read(place: str, name: str) -> dict[str, Any]:
    return dict(read_json(join(place, name))) if place else {}


_SHOWN = {
    "changes": "changes.json",
    "decision": "decision.json",
    "registration": "registration.json",
    "predictions": "metrics.json",
}


def show_stages(result: dict[str, Any]) -> str:
    """A run of any pipeline for people."""
    lines = [f"pipeline           {result['pipeline']}, {result['elapsed_s']:.0f} s"]
    if result["changes"]:
        passages = result["changes"]["passages"]
        lines.append(f"passages           {passages['after']:,}, {passages['encoded']:,} of them encoded")
    if not result["artifacts"]:
        lines.append("nothing new        the log says why")
    both = result["decision"].get("metrics", {})
    for name, label in FIGURES:
        if name in both:
            figures = both[name]
            lines.append(f"{label:<18} {figures['champion']:.3f} champion, {figures['challenger']:.3f} challenger")
        elif name in result["metrics"]:
            lines.append(f"{label:<18} {result['metrics'][name]:.3f}")
    registered = result["registered"]
    if registered.get("version"):
        lines.append(f"registered         {registered['name']} version {registered['version']} ({registered['alias']})")
    if registered:
        lines.append(f"because            {registered['reason']}")
    return "\n".join(lines)
