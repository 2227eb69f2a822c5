"""Champion or challenger: whether the numbers of two evaluations allow a promotion.

`decide` only computes; the pages are in `decision_page.py`, and what it leads to in the registry in `ralm/registry.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Final

from ralm.errors import ArtifactError, ConfigError
from ralm.evaluation.compare import METRIC_WORDS, Evaluation
from ralm.evaluation.config import Rule
from ralm.evaluation.contender import Contender, check_same_asking, question_scores
from ralm.evaluation.metrics import Difference, paired_difference

ROUNDING: Final = 1e-9
"""A mean that is off its limit by less than this is on it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One figure of both sides, over the questions that count for it on both."""

    champion: float | None
    """None where there is no champion."""
    challenger: float
    questions: int
    difference: Difference | None
    """Mean gain of the challenger; `low` is the rule's one-sided bound, `high` the one on the other side."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether the challenger takes the champion's place, and what that rests on."""

    promote: bool
    reason: str
    """One sentence with the figures."""
    metric: str
    """The figure that decided."""
    needed_questions: int | None
    """About how many questions would be needed to tell, where only their number stood in the way."""
    metrics: Mapping[str, Comparison]
    fresh: Mapping[str, Comparison]
    """On the questions about changed pages; empty where there are none."""
    latency_ms: Mapping[str, Mapping[str, float]]
    """By side, see `Contender.latency_ms`."""
    memory_bytes: Mapping[str, Mapping[str, int]]
    """By side, see `Contender.memory_bytes`."""
    rule: Rule

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return dataclasses.asdict(self)


def decide(champion: Contender | None, challenger: Contender, rule: Rule) -> Decision:
    """Whether the challenger takes the champion's place.

    Args:
        champion: None where there is no champion yet.
        challenger: asked the same questions in the same way.
        rule: what is allowed.

    Raises:
        ArtifactError: the two were not asked the same questions in the same way, or only one of them the fresh ones.
        ConfigError: the rule names a figure that is not there, or limits what was not measured.
    """
    metrics = _compare(champion.evaluation if champion else None, challenger.evaluation, rule)
    metric = challenger.evaluation.compared[0] if rule.metric == "auto" else rule.metric
    if metric not in metrics:
        raise ConfigError(f"metric: expected one of {', '.join(metrics)}, found {metric!r}")
    objections: list[str] = []
    fresh: dict[str, Comparison] = {}
    needed = None
    if champion is None:
        reason = f"the first version: {metric_words(metric)} {_percent(metrics[metric].challenger)}"
    else:
        reason, objections, needed = _judge(metric, metrics[metric], rule)
        fresh = _compare_fresh(champion, challenger, rule)
        objections = [*objections, *_judge_fresh(challenger, fresh, rule), *_judge_costs(champion, challenger, rule)]
    sides = {"champion": champion, "challenger": challenger}
    return Decision(
        promote=not objections,
        reason="; ".join([f"{reason}; refused: {objections[0]}", *objections[1:]] if objections else [reason]),
        metric=metric,
        needed_questions=needed if len(objections) == 1 else None,
        metrics=metrics,
        fresh=fresh,
        latency_ms={name: side.latency_ms for name, side in sides.items() if side},
        memory_bytes={name: side.memory_bytes for name, side in sides.items() if side},
        rule=rule,
    )


def _judge(metric: str, found: Comparison, rule: Rule) -> tuple[str, list[str], int | None]:
    """The sentence on the deciding figure, what speaks against a promotion, and how many questions would tell."""
    gain = found.difference
    assert gain is not None  # there is a champion
    assert found.champion is not None
    sentence = (
        f"{metric_words(metric)} of the challenger {_percent(found.challenger)}, "
        f"of the champion {_percent(found.champion)} on {found.questions:,} questions: {points(gain.value)} points, "
        f"with {100 * rule.confidence:g} % confidence at least {points(gain.low)}, allowed is {points(-rule.max_loss)}"
    )
    if gain.low >= -rule.max_loss - ROUNDING:
        return sentence, [], None
    margin = gain.value + rule.max_loss
    if margin <= ROUNDING:
        return sentence, ["it loses more than is allowed, or as much"], None
    needed = math.ceil(found.questions * ((gain.value - gain.low) / margin) ** 2)  # the interval shrinks with the root
    return sentence, [f"it may lose more than is allowed; about {needed:,} questions could tell"], needed


def _compare_fresh(champion: Contender, challenger: Contender, rule: Rule) -> dict[str, Comparison]:
    if champion.fresh is None and challenger.fresh is None:
        return {}
    for side, other in ((champion, challenger), (challenger, champion)):
        if side.fresh is None and other.fresh is not None:
            found = f"but {other.evaluation.location} has {other.fresh.location}"
            raise ArtifactError(f"{side.evaluation.location}: no evaluation of fresh facts beside it, {found}")
    assert challenger.fresh is not None
    fresh = _compare(champion.fresh, challenger.fresh, rule)
    if challenger.fresh.compared[0] not in fresh:
        raise ArtifactError(f"{challenger.fresh.location}: no question has a score for {challenger.fresh.compared[0]}")
    return fresh


def _judge_fresh(challenger: Contender, fresh: Mapping[str, Comparison], rule: Rule) -> list[str]:
    if challenger.fresh is None:
        return []
    metric = challenger.fresh.compared[0]
    gain = fresh[metric].difference
    assert gain is not None  # there is a champion
    if gain.value >= rule.min_fresh_gain - ROUNDING:
        return []
    return [
        f"on {fresh[metric].questions:,} questions about changed pages it gains {points(gain.value)} points of "
        f"{metric_words(metric)}, expected at least {points(rule.min_fresh_gain)}"
    ]


def _judge_costs(champion: Contender, challenger: Contender, rule: Rule) -> list[str]:
    latency = champion.latency_ms.get("total_ms", 0.0), challenger.latency_ms.get("total_ms", 0.0)
    memory = champion.memory_bytes.get("index_bytes", 0), challenger.memory_bytes.get("index_bytes", 0)
    return [
        *_judge_cost("max_latency_ratio", rule.max_latency_ratio, "ms per question", *latency),
        *_judge_cost("max_memory_ratio", rule.max_memory_ratio, "bytes of index in memory", *memory),
    ]


def _judge_cost(setting: str, limit: float, unit: str, before: float, after: float) -> list[str]:
    if not limit:
        return []
    if not before or not after:
        raise ConfigError(f"{setting}: expected 0 where {unit} of both sides are not known, found {limit:g}")
    if after <= limit * before:
        return []
    return [f"{after:,.10g} {unit} are more than {limit:g} times the champion's {before:,.10g}"]


def _compare(champion: Evaluation | None, challenger: Evaluation, rule: Rule) -> dict[str, Comparison]:
    """The figures that both have, by name; the task's own first."""
    ours = question_scores(challenger)
    if champion is None:
        return {name: _only(values) for name, values in ours.items() if any(value is not None for value in values)}
    check_same_asking(champion, challenger)
    theirs = question_scores(champion)
    found = {}
    for name in ours:
        if name not in theirs:  # recall at a k that one corpus is too small for
            continue
        pairs = [
            (before, after)
            for before, after in zip(theirs[name], ours[name], strict=True)
            if before is not None and after is not None
        ]
        if pairs:
            found[name] = _both(pairs, rule)
    return found


def _only(values: list[float | None]) -> Comparison:
    known = [value for value in values if value is not None]
    return Comparison(champion=None, challenger=sum(known) / len(known), questions=len(known), difference=None)


def _both(pairs: list[tuple[float, float]], rule: Rule) -> Comparison:
    """The two-sided interval of confidence 2c - 1 has the one-sided bound of confidence c as its lower end."""
    before, after = [first for first, _ in pairs], [second for _, second in pairs]
    confidence = round(2 * rule.confidence - 1, 12)
    return Comparison(
        champion=sum(before) / len(pairs),
        challenger=sum(after) / len(pairs),
        questions=len(pairs),
        difference=paired_difference(before, after, resamples=rule.resamples, seed=rule.seed, confidence=confidence),
    )


def metric_words(metric: str) -> str:
    """What people call a figure: `recall_at_10` is recall@10."""
    return METRIC_WORDS.get(metric, metric.replace("_at_", "@").replace("_", " "))


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def points(value: float) -> str:
    """A difference of fractions in percentage points, with sign.

    Example:
        >>> points(0.0038), points(-0.01), points(-1e-9)
        ('+0.38', '-1.00', '+0.00')
    """
    return f"{100 * value:+.2f}".replace("-0.00", "+0.00")
