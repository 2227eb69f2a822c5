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

STAGE_VERSION = 1


def register(
    *,
    model: Location,
    index: Location,
    passages: Location,
    predictions: Location,
    registration: Location,
    config: RegisterConfig = RegisterConfig(),  # noqa: B008 - frozen
) -> Manifest:
    """Register a pair of model and index, and make it the champion if it is the best so far.

    The version refers to the artifacts in the store and holds no copy. Registering the same pair again gives the same
    version.

    Args:
        model: Model artifact.
        index: Index by this model's passage encoder.
        passages: Passages artifact that the index was made from.
        predictions: Evaluation of this model with this index.
        registration: Output folder: registration.json with name, version, alias and the champion it was compared with.
        config: Name and deciding metric.

    Raises:
        ArtifactError: the inputs do not belong together.
        ConfigError: the evaluation has no such metric.
        RalmError: the champion changed while this ran.
    """
    opened = {
        "model": open_artifact(model, "model"),
        "index": open_artifact(index, "index"),
        "passages": open_artifact(passages, "passages"),
    }
    scored = open_artifact(predictions, "predictions")
    _check_pair(opened, scored)
    if config.metric == "auto":
        config = dataclasses.replace(config, metric=task_named(scored.manifest.details["task"]).metrics[0])
    value = _figure(scored, config.metric)
    outcome = _register(opened, scored, config, value)
    references = {name: stored_location(artifact.manifest) for name, artifact in opened.items()}
    result = {**outcome, "metric": config.metric, "value": value, "recipe": config.recipe, **references}

    def build(folder: Path) -> Contents:
        write_json(folder / "registration.json", result)
        return Contents(details=result)

    return produce(
        registration,
        kind="registration",
        stage="register",
        stage_version=STAGE_VERSION,
        inputs={name: artifact.fingerprint for name, artifact in (opened | {"predictions": scored}).items()},
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


def _figure(scored: Artifact, name: str) -> float:
    metrics: Any = read_json(scored.file("metrics.json"))
    value = tracking.flatten(metrics).get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"metric: {scored.location} has no number {name!r}, but {', '.join(sorted(metrics))}")
    return float(value)


def _register(opened: dict[str, Artifact], scored: Artifact, config: RegisterConfig, value: float) -> dict[str, str]:
    if not tracking.is_enabled():
        reason = "RALM_TRACKING=off: there is no registry"
        return {"name": f"ralm-{config.recipe}", "version": "", "alias": "", "measured_against": "", "reason": reason}
    from ralm.serving import Pair, register_pair  # needs mlflow

    places = {name: stored_location(artifact.manifest) for name, artifact in opened.items()}
    fingerprints = {name: artifact.fingerprint for name, artifact in opened.items()}
    pair = Pair(recipe=config.recipe, fingerprints=fingerprints, **places)
    details = opened["passages"].manifest.details
    tags = {
        "ralm.model": fingerprints["model"],
        "ralm.index": fingerprints["index"],
        "ralm.index_uri": places["index"],
        "ralm.corpus": fingerprints["passages"],
        "ralm.dump_date": str(details.get("date", "")),
        "ralm.git_commit": tracking.git_commit(),
    }
    outcome = register_pair(
        pair,
        metric=config.metric,
        value=value,
        questions=scored.manifest.inputs.get("questions", ""),
        tags={name: text for name, text in tags.items() if text},
    )
    return dataclasses.asdict(outcome)
