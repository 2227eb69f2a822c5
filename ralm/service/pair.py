"""What is served: a model with an index and its passages, opened and checked."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ralm.artifacts.files import Location
from ralm.artifacts.manifest import open_artifact
from ralm.errors import ConfigError

if TYPE_CHECKING:
    from ralm.answer import Answerer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A pair by its places."""

    model: Location
    index: Location
    passages: Location
    source: str
    """Who named it: `given`, the last run, or the registry's `models:/ralm-<recipe>@champion`."""
    recipe: str = ""
    version: str = ""
    """In the registry; empty where it is not from there."""
    model_id: str = ""
    """Of MLflow's logged model, which traces are linked to."""


@dataclass(frozen=True, kw_only=True)
class ServedPair:
    """A pair that can answer."""

    target: Target
    answerer: Answerer
    fingerprints: dict[str, str]
    """Of model, index and passages."""
    since: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    """When it was loaded: UTC, `2026-01-31T12:00:00Z`."""

    @property
    def name(self) -> dict[str, str]:
        """What it is called, for clients and traces."""
        return {"recipe": self.target.recipe, "version": self.target.version, "source": self.target.source}


def champion_target(recipe: str) -> Target:
    """The registry's champion, after a check that its artifacts are what was registered.

    Raises:
        ConfigError: there is none, or MLflow refuses.
        ArtifactError: a part is missing, damaged, or another one now.
        RalmError: MLflow cannot be reached.
    """
    from ralm import serving

    version = serving.find_version(recipe)
    pair = serving.open_pair(recipe, version) if version else None
    if pair is None:
        raise ConfigError(f"recipe: {serving.model_name(recipe)} has no champion in the registry")
    pair.check()
    return Target(
        model=pair.model,
        index=pair.index,
        passages=pair.passages,
        source=f"models:/{pair.name}@{serving.CHAMPION}",
        recipe=recipe,
        version=version,
        model_id=serving.logged_model(recipe, version),
    )


def load_pair(target: Target, before: ServedPair | None = None) -> ServedPair:
    """Open a pair.

    Args:
        target: where it is.
        before: the pair in service; a model that both have is not loaded again.

    Raises:
        ArtifactError: a part is missing, or they do not belong together.
    """
    from ralm.answer import Answerer

    started_at = time.monotonic()
    places = {"model": target.model, "index": target.index, "passages": target.passages}
    fingerprints = {kind: open_artifact(place, kind).fingerprint for kind, place in places.items()}
    if before is not None and before.fingerprints["model"] == fingerprints["model"]:
        answerer = before.answerer.with_index(index=target.index, passages=target.passages)
    else:
        answerer = Answerer(model=target.model, index=target.index, passages=target.passages)
    pair = ServedPair(target=target, answerer=answerer, fingerprints=fingerprints)
    logger.info("loaded %s in %.1f s", describe(pair), time.monotonic() - started_at)
    return pair


def describe(pair: ServedPair) -> str:
    """A pair for people, in a few words."""
    version = f" version {pair.target.version}" if pair.target.version else ""
    return f"{pair.target.source}{version}, index {pair.fingerprints['index'][:12]}"
