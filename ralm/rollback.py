"""Changing the champion by hand: back to an earlier version, or on to one that was refused."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping

from ralm.errors import ArtifactError, ConfigError
from ralm.registry import move_alias
from ralm.serving import (
    CHAMPION,
    MEASURED_TAG,
    REASON_TAG,
    REPLACED_TAG,
    RESTORED_TAG,
    ROLLED_BACK_TAG,
    RegisteredVersion,
    aliases_of,
    asking_registry,
    model_name,
    open_pair,
    versions,
)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Move:
    """The champion was changed by hand."""

    name: str
    before: str
    after: str
    reason: str


def rollback(recipe: str, *, to: str = "", because: str = "") -> Move:
    """Make an earlier version the champion again.

    Args:
        recipe: whose champion.
        to: a version; empty: the one whose place the champion took, or, where that was rolled back too, the one before.
        because: why, for people.

    Raises:
        ArtifactError: what the version refers to is no longer there; nothing was changed.
        ConfigError: there is nothing to go back to, or the champion changed meanwhile.
    """
    known = {version.version: version for version in versions(recipe)}
    champion = _champion_of(recipe, known)
    target = to or _predecessor(recipe, known, champion)
    why = f"{_now()}: {because or 'no reason given'}"
    notes = {
        target: {RESTORED_TAG: f"in place of version {champion.version}, {why}", ROLLED_BACK_TAG: ""},
        champion.version: {ROLLED_BACK_TAG: f"in favour of version {target}, {why}"},
    }
    return _move_by_hand(recipe, known, champion.version, target, notes, f"rolled back: {because}".rstrip(": "))


def promote(recipe: str, version: str, *, because: str) -> Move:
    """Make a version the champion whatever was measured.

    Raises:
        ArtifactError: what the version refers to is no longer there; nothing was changed.
        ConfigError: no such version, no reason given, or the champion changed meanwhile.
    """
    if not because.strip():
        raise ConfigError("because: expected why this version is promoted, found an empty text")
    known = {found.version: found for found in versions(recipe)}
    champion = next((found.version for found in known.values() if found.alias == CHAMPION), "")
    reason = f"promoted by hand, {_now()}: {because}"
    tags = {REASON_TAG: reason, MEASURED_TAG: "", REPLACED_TAG: champion, ROLLED_BACK_TAG: ""}
    return _move_by_hand(recipe, known, champion, version, {version: tags}, reason)


def _move_by_hand(
    recipe: str,
    known: Mapping[str, RegisteredVersion],
    champion: str,
    target: str,
    notes: Mapping[str, Mapping[str, str]],
    reason: str,
) -> Move:
    name = model_name(recipe)
    if target not in known:
        raise ConfigError(f"{name}: expected one of the versions {', '.join(known) or '(none)'}, found {target!r}")
    if target == champion:
        raise ConfigError(f"{name}: version {target} is the champion already")
    pair = open_pair(recipe, target)
    if pair is None:
        raise ConfigError(f"{name}: version {target} is no longer there")
    try:
        pair.check()
    except ArtifactError as error:
        raise ArtifactError(
            f"{name}: version {target} cannot be served, the champion stays as it is: {error}"
        ) from error
    with asking_registry() as client:
        if not move_alias(client, name, CHAMPION, target, champion=champion, notes=notes):
            now = aliases_of(client, name).get(CHAMPION, "none")
            raise ConfigError(f"{name}: the champion was {champion or 'none'} and is now {now}; nothing was changed")
    logger.info("%s: champion is version %s, was %s", name, target, champion or "none")
    return Move(name=name, before=champion, after=target, reason=reason)


def _champion_of(recipe: str, known: Mapping[str, RegisteredVersion]) -> RegisteredVersion:
    champion = next((version for version in known.values() if version.alias == CHAMPION), None)
    if champion is None:
        raise ConfigError(f"{model_name(recipe)}: no champion to roll back; versions: {', '.join(known) or '(none)'}")
    return champion


def _predecessor(recipe: str, known: Mapping[str, RegisteredVersion], champion: RegisteredVersion) -> str:
    """The last champion before this one that was not rolled back itself."""
    passed = {champion.version}
    version = champion.tags.get(REPLACED_TAG, "")
    while version in known and version not in passed:
        if not known[version].tags.get(ROLLED_BACK_TAG):
            return version
        passed.add(version)
        version = known[version].tags.get(REPLACED_TAG, "")
    others = ", ".join(other for other in known if other != champion.version)
    raise ConfigError(
        f"{model_name(recipe)}: champion {champion.version} took the place of no version that could come back; "
        f"name one with --to: {others or '(there are no others)'}"
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
