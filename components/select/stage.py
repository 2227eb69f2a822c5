"""Registry or places -> the pair of model and index that a run starts from, as artifacts that later tasks take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ralm import tracking
from ralm.artifacts.files import Location
from ralm.artifacts.manifest import Artifact, open_artifact
from ralm.artifacts.store import hand_over_reference
from ralm.errors import ArtifactError, ConfigError


class Selection(NamedTuple):
    """Which pair was taken."""

    name: str
    """Of the registered model."""
    version: str
    """In the registry; empty where the places were given."""
    wiki: str
    """Wiki of the pair's passages, such as enwiki; empty where they are of no dump."""
    dump_date: str
    """Date of that dump; empty where there is none."""
    recipe: str
    """Name under which it is registered, without `ralm-`."""
    made_with: str
    """Settings of download, embed and index that it was made with, as JSON: those of its next index."""


def select(
    *,
    recipe: str,
    selected_model: Location,
    selected_index: Location,
    selected_passages: Location,
    alias: str = "champion",
    model: Location = "",
    index: Location = "",
    passages: Location = "",
    registered_as: str = "",
) -> Selection:
    """Find the pair of model and index that a run starts from, and check that it is whole and belongs together.

    Args:
        recipe: names the registered model, `ralm-RECIPE`, unless `registered_as` does.
        selected_model: output folder, a reference to the model.
        selected_index: output folder, a reference to the index.
        selected_passages: output folder, a reference to the passages.
        alias: of the version in the registry, or its number.
        model: place of the model; with `index` and `passages` instead of the registry's.
        index: place of the index.
        passages: place of the passages.
        registered_as: another name than that of the recipe.

    Raises:
        ConfigError: the registry has no such version, or only some of the three places are given.
        ArtifactError: an artifact is missing or damaged, is not the registered one, or the three do not belong
            together.
    """
    recipe = registered_as or recipe
    places = {"model": model, "index": index, "passages": passages}
    given = [name for name, place in places.items() if place]
    if given and len(given) < len(places):
        raise ConfigError(f"select: expected model, index and passages, or none of them, found {' and '.join(given)}")
    version = ""
    registered: Mapping[str, str] = {}
    if not given:
        version, places, registered = _find_registered(recipe, alias)
    opened = {name: open_artifact(place, name) for name, place in places.items()}
    _check(opened, registered)
    outputs = {"model": selected_model, "index": selected_index, "passages": selected_passages}
    for name, output in outputs.items():
        hand_over_reference(output, opened[name])
    details = opened["passages"].manifest.details
    return Selection(
        name=f"ralm-{recipe}",
        version=version,
        wiki=str(details.get("wiki", "")),
        dump_date=str(details.get("date", "")),
        recipe=recipe,
        made_with=json.dumps(_made_with(opened["index"], opened["passages"]), sort_keys=True),
    )


def _made_with(index: Artifact, passages: Artifact) -> dict[str, dict[str, Any]]:
    """What has to stay as it was, or nothing of the pair could be taken over."""
    corpus, details = passages.manifest, index.manifest.details
    is_ours = corpus.stage == "download"
    names = ("passage_words", "max_passages", "infoboxes") if is_ours else ()
    embed = {"dtype": details["storage"], "precision": details.get("precision")}
    known = {"dtype": ("f16", "f32"), "precision": ("bf16", "fp32")}
    return {
        "download": {name: corpus.config[name] for name in names},
        "embed": {name: value for name, value in embed.items() if value in known[name]},
        "index": dict(index.manifest.config),
    }


def _find_registered(recipe: str, alias: str) -> tuple[str, dict[str, Location], Mapping[str, str]]:
    """Version, places and fingerprints of the registry's pair."""
    if not tracking.is_enabled():
        raise ConfigError("select: RALM_TRACKING=off, so there is no registry; give model, index and passages")
    from ralm.serving import aliases_of, asking_registry, model_name, open_pair  # needs mlflow

    with asking_registry() as client:
        version = alias if alias.isdecimal() else aliases_of(client, model_name(recipe)).get(alias, "")
    pair = open_pair(recipe, version) if version else None
    if pair is None:
        raise ConfigError(
            f"select: the registry has no {alias} of ralm-{recipe}; train a pair first: "
            f"ralm pipeline run --recipe {recipe}"
        )
    return version, {"model": pair.model, "index": pair.index, "passages": pair.passages}, pair.fingerprints


def _check(opened: Mapping[str, Artifact], registered: Mapping[str, str]) -> None:
    model, index, passages = (opened[name] for name in ("model", "index", "passages"))
    for name, expected in registered.items():
        if opened[name].fingerprint != expected:
            found = f"{name} is {opened[name].fingerprint}"
            raise ArtifactError(f"{opened[name].location}: {found}, registered was {expected}")
    encoder = model.manifest.details["fingerprints"]["passage_encoder"]
    if (made_by := index.manifest.details["passage_encoder"]) != encoder:
        raise ArtifactError(f"{index.location}: made by passage encoder {made_by}, but {model.location} has {encoder}")
    if (made_from := index.manifest.details.get("passages")) != passages.fingerprint:
        raise ArtifactError(
            f"{index.location}: made from passages {made_from}, but {passages.location} is {passages.fingerprint}"
        )
