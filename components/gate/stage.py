"""evaluations of champion and challenger -> whether the challenger takes the champion's place, and why."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from components.gate.config import GateConfig
from ralm.artifacts.files import Location, read_json, write_json
from ralm.artifacts.manifest import Artifact, Manifest, open_artifact
from ralm.artifacts.store import Contents, produce
from ralm.errors import ConfigError
from ralm.evaluation.config import Rule
from ralm.evaluation.contender import Contender, open_contender
from ralm.evaluation.decision_page import render_decision
from ralm.evaluation.gate import Decision, decide
from ralm.tracking import flatten

STAGE_VERSION = 1


def gate(
    *,
    challenger: Location,
    decision: Location,
    champion: Location = "",
    champion_index: Location = "",
    challenger_index: Location = "",
    fresh_champion: Location = "",
    fresh_challenger: Location = "",
    changes: Location = "",
    champion_version: str = "",
    config: GateConfig = GateConfig(),  # noqa: B008 - frozen
) -> Manifest:
    """Decide whether a challenger may take the champion's place.

    Args:
        challenger: Predictions of the challenger.
        decision: Output folder: decision.json, decision.md, decision.html, and metrics.json with its numbers.
        champion: Predictions of the champion for the same questions. Empty: there is no champion yet.
        champion_index: Index that the champion searched, for its size. Empty: not looked at.
        challenger_index: Index that the challenger searched. Empty: not looked at.
        fresh_champion: Predictions of the champion for questions about changed pages. Empty: none.
        fresh_challenger: Predictions of the challenger for these questions. Empty: none.
        changes: Report of what changed between the two corpora. Empty: none.
        champion_version: Version of the champion in the registry.
        config: The rule.

    Returns:
        The decision's manifest; `promote` and `reason` are among its details.

    Raises:
        ArtifactError: an input is unfinished, or the two were not asked the same questions in the same way.
        ConfigError: the rule names a figure that is not there, or limits what was not measured.
    """
    if not champion and (champion_version or champion_index or fresh_champion):
        raise ConfigError("gate: no --champion, but its version, index or fresh predictions; give its predictions too")
    theirs = open_contender(champion, index=champion_index, fresh=fresh_champion) if champion else None
    ours = open_contender(challenger, index=challenger_index, fresh=fresh_challenger)
    changed = open_artifact(changes, "changes") if changes else None
    rule = Rule(**dataclasses.asdict(config))
    return produce(
        decision,
        kind="decision",
        stage="gate",
        stage_version=STAGE_VERSION,
        inputs=_inputs(theirs, ours, changed),
        config={**dataclasses.asdict(config), "champion_version": champion_version},
        seed=config.seed,
        build=lambda folder: _build(folder, theirs, ours, changed, rule, champion_version),
    )


def _inputs(theirs: Contender | None, ours: Contender, changes: Artifact | None) -> dict[str, str]:
    found: dict[str, Artifact | None] = {"changes": changes}
    for name, side in (("champion", theirs), ("challenger", ours)):
        if side is not None:
            found[name] = side.evaluation.artifact
            found[f"{name}_index"] = side.index
            found[f"fresh_{name}"] = side.fresh.artifact if side.fresh else None
    return {name: artifact.fingerprint for name, artifact in found.items() if artifact is not None}


def _build(
    folder: Path, theirs: Contender | None, ours: Contender, changed: Artifact | None, rule: Rule, version: str
) -> Contents:
    decision = decide(theirs, ours, rule)
    counts = _numbers(read_json(changed.file("changes.json"))) if changed else {}
    sides = {name: side for name, side in (("champion", theirs), ("challenger", ours)) if side is not None}
    places = {name: side.places for name, side in sides.items()}
    outcome = {
        "champion_version": version,
        "places": places,
        "inputs": {name: dict(side.evaluation.artifact.manifest.inputs) for name, side in sides.items()},
        "changes": counts,
    }
    write_json(folder / "decision.json", {**decision.to_json(), **outcome})
    write_json(folder / "metrics.json", _figures(decision))
    facts = {"champion version": version, **flatten(places)}
    for name, is_html in (("decision.html", True), ("decision.md", False)):
        (folder / name).write_text(render_decision(decision, facts, counts, is_html=is_html), encoding="utf-8")
    main = decision.metrics[decision.metric]
    details = {"promote": decision.promote, "reason": decision.reason, "champion_version": version}
    return Contents(counts={"questions": main.questions}, details=details)


def _numbers(counts: Any) -> dict[str, float]:
    """The numbers of a report, nested ones by dotted names."""
    return {
        name: value
        for name, value in flatten(counts).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _figures(decision: Decision) -> dict[str, Any]:
    """What a tracking server shows as numbers."""
    found: dict[str, Any] = {"promote": int(decision.promote)}
    for prefix, comparisons in (("", decision.metrics), ("fresh.", decision.fresh)):
        for name, one in comparisons.items():
            found[f"{prefix}challenger.{name}"] = one.challenger
            if one.difference is not None:
                found[f"{prefix}champion.{name}"] = one.champion
                found[f"{prefix}gain.{name}"] = one.difference.value
                found[f"{prefix}gain_at_least.{name}"] = one.difference.low
    return {**found, "latency_ms": decision.latency_ms, "memory_bytes": decision.memory_bytes}
