"""Which registered versions keep their artifacts: a version that is retired stays in the registry, with a tag."""

from __future__ import annotations

import time

from ralm.errors import ConfigError
from ralm.serving import (
    CHAMPION,
    REPLACED_TAG,
    RETIRED_TAG,
    RegisteredVersion,
    model_name,
    recipes,
    tag_version,
    versions,
)


def surplus_versions(keep: int) -> list[tuple[str, RegisteredVersion]]:
    """Versions beyond the newest `keep` of each recipe, with the recipe.

    Never among them: a version with an alias, and the one that a rollback of the champion goes to.

    Raises:
        ConfigError: fewer than one is to be kept.
    """
    if keep < 1:
        raise ConfigError(f"keep_versions: expected at least 1, found {keep}")
    surplus = []
    for recipe in recipes():
        found = [version for version in versions(recipe) if not version.tags.get(RETIRED_TAG)]
        before = {version.tags.get(REPLACED_TAG, "") for version in found if version.alias == CHAMPION}
        surplus += [
            (recipe, version) for version in found[:-keep] if not version.alias and version.version not in before
        ]
    return surplus


def retire(recipe: str, version: RegisteredVersion) -> None:
    """Note that a version's artifacts may be removed; from then on the store does not keep them for it."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    tag_version(model_name(recipe), version.version, RETIRED_TAG, now)
