"""How a pair is compared with the present champion: by one figure, or by the rule of a decision."""

from __future__ import annotations

from typing import Any

from ralm.artifacts.files import Location, read_json
from ralm.artifacts.manifest import Artifact
from ralm.errors import ArtifactError, ConfigError
from ralm.evaluation.config import Rule
from ralm.evaluation.contender import open_contender
from ralm.evaluation.gate import decide
from ralm.registry import Judge, Verdict
from ralm.serving import (
    FRESH_TAG,
    INDEX_PLACE_TAG,
    INDEX_TAG,
    METRIC_TAG,
    MODEL_TAG,
    PREDICTIONS_TAG,
    QUESTIONS_TAG,
    RegisteredVersion,
)


def by_figure(metric: str, value: float, questions: str) -> Judge:
    """The higher figure wins.

    Args:
        metric: name of the figure.
        value: the pair's.
        questions: fingerprint of the questions it was measured on; figures on others are not compared.
    """

    def judge(champion: RegisteredVersion | None) -> Verdict:
        if champion is None:
            return Verdict(promote=True, reason="the first version")
        measured, _, text = champion.tags.get(METRIC_TAG, "").partition("=")
        if measured != metric or champion.tags.get(QUESTIONS_TAG, "") != questions:
            reason = f"champion {champion.version} was measured on other questions or by another metric"
            return Verdict(promote=False, reason=reason)
        best = float(text)
        reason = f"{metric} {value:.4f}, champion {champion.version} has {best:.4f}"
        return Verdict(promote=value > best, reason=reason)

    return judge


def by_decision(decided: Artifact, *, predictions: Location, index: Location) -> Judge:
    """What was decided, where that was about the present champion; else the same rule on the present champion.

    Args:
        decided: decision artifact.
        predictions: of the pair.
        index: of the pair.
    """
    outcome: dict[str, Any] = read_json(decided.file("decision.json"))
    expected = outcome["champion_version"]

    def judge(champion: RegisteredVersion | None) -> Verdict:
        if champion is None:
            return Verdict(promote=True, reason="there is no champion")
        if champion.version == expected and _is_about(champion, outcome["inputs"].get("champion", {})):
            return Verdict(promote=outcome["promote"], reason=outcome["reason"])
        measured = f"champion {expected}" if expected else "no registered champion"
        met = f"decided against {measured}, but champion is {champion.version}"
        try:
            again = decide(
                open_contender(
                    _place(champion, PREDICTIONS_TAG),
                    index=champion.tags.get(INDEX_PLACE_TAG, ""),
                    fresh=champion.tags.get(FRESH_TAG, ""),
                ),
                open_contender(predictions, index=index, fresh=outcome["places"]["challenger"].get("fresh", "")),
                Rule(**outcome["rule"]),
            )
        except (ArtifactError, ConfigError) as error:
            return Verdict(promote=False, reason=f"{met}, and the two cannot be compared: {error}")
        return Verdict(promote=again.promote, reason=f"{met}; measured again: {again.reason}")

    return judge


def _is_about(champion: RegisteredVersion, inputs: dict[str, str]) -> bool:
    """True if the champion's predictions were those of this very pair."""
    tags = {"model": MODEL_TAG, "index": INDEX_TAG}
    return all(name in inputs and inputs[name] == champion.tags.get(tag) for name, tag in tags.items())


def _place(champion: RegisteredVersion, tag: str) -> Location:
    if not champion.tags.get(tag):
        raise ArtifactError(f"champion {champion.version} has no tag {tag}: it was registered without an evaluation")
    return champion.tags[tag]
