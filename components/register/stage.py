"""model + index + their evaluation -> a version in the model registry."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from components.register.config import RegisterConfig
from ralm import tracking
from ralm.artifacts.files import Location, read_json, write_json
from ralm.artifacts.manifest import Artifact, Manifest, open_artifact
from ralm.artifacts.store import Contents, produce, stored_location
from ralm.errors import ArtifactError, ConfigError
from ralm.tasks.catalog import task_named

STAGE_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Registered:
    """What a registration rests on."""

    pair: dict[str, Artifact]
    """Model, index and passages."""
    scored: Artifact
    decided: Artifact | None


def register(
    *,
    model: Location,
    index: Location,
    passages: Location,
    predictions: Location,
    registration: Location,
    decision: Location = "",
    config: RegisterConfig = RegisterConfig(),  # noqa: B008 - frozen
) -> Manifest:
    """Register a pair of model and index, and promote it if it beats the champion.

    The version refers to the artifacts in the store and holds no copy. Registering the same pair again gives the same
    version. Where another champion came up since the decision, the pair is measured against that one by the same rule;
    where that cannot be, it is not promoted. A version that a person rolled back is not promoted either.

    Args:
        model: Model artifact.
        index: Index by this model's passage encoder.
        passages: Passages artifact that the index was made from.
        predictions: Evaluation of this model with this index.
        registration: Output folder: registration.json with name, version, alias, whether it was promoted and why, the
            champion it was measured against and the one it replaced.
        decision: Decision of the gate about these predictions. Empty: the higher figure wins.
        config: Name, and the deciding metric where there is no decision.

    Raises:
        ArtifactError: the inputs do not belong together.
        ConfigError: the evaluation has no such metric, or MLflow refuses.
        RalmError: MLflow cannot be reached.
    """
    opened = {
        "model": open_artifact(model, "model"),
        "index": open_artifact(index, "index"),
        "passages": open_artifact(passages, "passages"),
    }
    scored = open_artifact(predictions, "predictions")
    decided = open_artifact(decision, "decision") if decision else None
    _check_pair(opened, scored)
    _check_decision(decided, scored)
    if config.metric == "auto":
        config = dataclasses.replace(config, metric=task_named(scored.manifest.details["task"]).metrics[0])
    value = _figure(scored, config.metric)
    outcome = _register(Registered(opened, scored, decided), config, value)
    references = {name: stored_location(artifact.manifest) for name, artifact in opened.items()}
    result = {**outcome, "metric": config.metric, "value": value, "recipe": config.recipe, **references}
    state = "promoted" if outcome["promoted"] else "refused"
    tracking.tag_parent_run("ralm.promotion", f"{state}: {outcome['name']} {outcome['version']}: {outcome['reason']}")

    def build(folder: Path) -> Contents:
        write_json(folder / "registration.json", result)
        return Contents(details=result)

    given = {**opened, "predictions": scored, **({"decision": decided} if decided else {})}
    return produce(
        registration,
        kind="registration",
        stage="register",
        stage_version=STAGE_VERSION,
        inputs={name: artifact.fingerprint for name, artifact in given.items()},
        config={**dataclasses.asdict(config), "outcome": result},
        build=build,
    )


def _check_pair(opened: dict[str, Artifact], scored: Artifact) -> None:
    """The index is by the model's passage encoder and of these passages, and the evaluation is of this pair."""
    model, index, passages = (opened[name] for name in ("model", "index", "passages"))
    encoder = model.manifest.details["fingerprints"]["passage_encoder"]
    found = index.manifest.details["passage_encoder"]
    if found != encoder:
        raise ArtifactError(f"{index.location}: made by passage encoder {found}, but {model.location} has {encoder}")
    for kind, artifact in opened.items():
        expected = scored.manifest.inputs.get(kind)
        if expected is not None and expected != artifact.fingerprint:
            raise ArtifactError(
                f"{scored.location}: evaluates {kind} {expected}, but {artifact.location} is {artifact.fingerprint}"
            )
    made_from = index.manifest.details.get("passages", passages.fingerprint)
    if made_from != passages.fingerprint:
        raise ArtifactError(f"{index.location}: made from passages {made_from}, but found {passages.fingerprint}")


def _check_decision(decided: Artifact | None, scored: Artifact) -> None:
    if decided is None:
        return
    found = decided.manifest.inputs["challenger"]
    if found != scored.fingerprint:
        raise ArtifactError(f"{decided.location}: decides on {found}, but {scored.location} is {scored.fingerprint}")


def _figure(scored: Artifact, name: str) -> float:
    metrics: Any = read_json(scored.file("metrics.json"))
    value = tracking.flatten(metrics).get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"metric: {scored.location} has no number {name!r}, but {', '.join(sorted(metrics))}")
    return float(value)


def _register(given: Registered, config: RegisterConfig, value: float) -> dict[str, Any]:
    if not tracking.is_enabled():
        reason = "RALM_TRACKING=off: there is no registry"
        unknown = dict.fromkeys(("version", "alias", "measured_against", "replaced"), "")
        return {"name": f"ralm-{config.recipe}", **unknown, "promoted": False, "reason": reason}
    from components.register.judges import by_decision, by_figure  # need mlflow
    from ralm.registry import register_pair
    from ralm.serving import Pair

    places = {name: stored_location(artifact.manifest) for name, artifact in given.pair.items()}
    fingerprints = {name: artifact.fingerprint for name, artifact in given.pair.items()}
    pair = Pair(recipe=config.recipe, fingerprints=fingerprints, **places)
    if given.decided is not None:
        judge = by_decision(given.decided, predictions=given.scored.location, index=given.pair["index"].location)
    else:
        judge = by_figure(config.metric, value, given.scored.manifest.inputs.get("questions", ""))
    return dataclasses.asdict(register_pair(pair, tags=_tags(given, config, value), judge=judge))


def _tags(given: Registered, config: RegisterConfig, value: float) -> dict[str, str]:
    """What the version was made from and measured with."""
    from ralm import serving

    model, index, passages = (given.pair[name] for name in ("model", "index", "passages"))
    outcome = read_json(given.decided.file("decision.json")) if given.decided else {}
    tags = {
        serving.METRIC_TAG: f"{config.metric}={value!r}",
        serving.QUESTIONS_TAG: given.scored.manifest.inputs.get("questions", ""),
        serving.MODEL_TAG: model.fingerprint,
        serving.INDEX_TAG: index.fingerprint,
        serving.INDEX_PLACE_TAG: stored_location(index.manifest),
        serving.PREDICTIONS_TAG: stored_location(given.scored.manifest),
        serving.FRESH_TAG: outcome["places"]["challenger"].get("fresh", "") if outcome else "",
        serving.DECISION_TAG: stored_location(given.decided.manifest) if given.decided else "",
        serving.PARENT_TAG: config.parent_version or outcome.get("champion_version", ""),
        serving.DUMP_TAG: passages.manifest.details.get("date", ""),
        "ralm.wiki": passages.manifest.details.get("wiki", ""),
        "ralm.corpus": passages.fingerprint,
        "ralm.passage_encoder": index.manifest.details["passage_encoder"],
        "ralm.git_commit": tracking.git_commit(),
    }
    return {name: str(text) for name, text in tags.items() if text}
