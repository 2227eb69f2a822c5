"""A corpus source and the champion's passages -> whether there is anything new to index, and what exactly."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ralm import tracking
from ralm.artifacts.files import Location
from ralm.artifacts.manifest import Manifest, open_artifact, read_artifact
from ralm.corpus.formats import open_corpus
from ralm.corpus.wikimedia import PREFIX, UnfinishedError, find_dump
from ralm.errors import ArtifactError
from ralm.fetch.http import remote_state
from ralm.fetch.mirrors import wiki_mirrors

if TYPE_CHECKING:
    from ralm.serving import RegisteredVersion

logger = logging.getLogger(__name__)
_DATE = re.compile(r"\d{8}")


class Watch(NamedTuple):
    """What the watcher found."""

    is_new: bool
    """True if the run is to go on."""
    source: str
    """What to index: a dump by its date, so that one which appears during the run changes nothing."""
    date: str
    """Of the dump, YYYYMMDD; empty where the source is none."""
    reason: str


class _Found(NamedTuple):
    """What the source holds now."""

    source: str
    inputs: Mapping[str, str]
    details: Mapping[str, Any]
    passed_over: tuple[str, ...] = ()
    """Newer dumps that are not finished, with the reason."""

    @property
    def is_dump(self) -> bool:
        return self.source.startswith(PREFIX)


def watch(
    *,
    recipe: str,
    source: str,
    passages: Location,
    model: Location,
    mirrors: str = "",
    force: bool = False,
) -> Watch:
    """Tell whether a source holds something that the champion's passages do not; reads status files, changes nothing.

    A dump is new if it is finished and later than the champion's of the same wiki, another source if its content is
    another one. Neither is new if the registry has a version of it with the same model, which was weighed already.

    Args:
        recipe: names the registered model, `ralm-RECIPE`.
        source: `wiki:enwiki/latest`, `wiki:enwiki/20261101`, or any other source of a corpus.
        passages: the champion's passages artifact.
        model: the champion's model artifact.
        mirrors: addresses of the dump site and its mirrors, with commas between; empty: `$RALM_WIKI_BASE_URL`, else
            Wikimedia's own.
        force: go on with what is there though it is not new.

    Raises:
        UnreachableError: no site answers, so that nobody knows; try again later.
        DataError: no such wiki, date or file, or its status cannot be understood.
        ConfigError: the source or an address is malformed.
        ArtifactError: passages or model are missing.
    """
    champion = open_artifact(passages, "passages").manifest
    with_model = read_artifact(model).fingerprint
    try:
        found = _find(source, mirrors or wiki_mirrors(), champion)
    except UnfinishedError as error:
        return _tell(Watch(False, source, "", f"there is no finished dump: {error}"))
    is_new, reason = _compare(found, champion)
    if is_new and (version := _weighed_version(recipe, with_model, found)):
        is_new, reason = False, f"{reason}, but version {version} of ralm-{recipe} is of it too and was weighed already"
    if force and not is_new:
        is_new, reason = True, f"{reason}; forced"
    reason += "".join(f"; passed over: {problem}" for problem in found.passed_over)
    return _tell(Watch(is_new, found.source, str(found.details.get("date", "")), reason))


def _tell(found: Watch) -> Watch:
    if not found.is_new:
        tracking.tag_pipeline_run(tracking.PROMOTION_TAG, f"nothing new: {found.reason}")
    logger.info("%s: %s", f"{found.source} is new" if found.is_new else "nothing new", found.reason)
    return found


def _find(source: str, mirrors: str, champion: Manifest) -> _Found:
    if source.startswith(PREFIX):
        dump = find_dump(source, mirrors)
        pinned = f"{PREFIX}{dump.wiki}/{dump.date}"
        return _Found(pinned, dump.inputs, {"wiki": dump.wiki, "date": dump.date}, dump.passed_over)
    if source.startswith(("http://", "https://")):
        remote_state(source)  # raises where the site is down; a corpus would be what was fetched before
    infoboxes = bool(champion.config.get("infoboxes", True))  # of an Atlas corpus, a file of its own
    corpus = open_corpus(source, format="auto", base_url=mirrors, with_infoboxes=infoboxes)
    return _Found(source, corpus.inputs, corpus.details)


def _compare(found: _Found, champion: Manifest) -> tuple[bool, str]:
    """Whether it is new, and why."""
    if not found.is_dump:
        is_new = not _is_of(champion, found)
        return is_new, f"the content of {found.source} is {'not ' if is_new else ''}that of the champion's passages"
    wiki, date = found.details["wiki"], found.details["date"]
    known = str(champion.details.get("date", ""))
    if champion.details.get("wiki") != wiki or not _DATE.fullmatch(known):
        return True, f"the champion is of no dump of {wiki}, the finished one is of {date}"
    return date > known, f"the champion is of {wiki} {known}, the finished dump is of {date}"


def _is_of(passages: Manifest, found: _Found) -> bool:
    """Whether these passages were made from what was found."""
    if found.is_dump:
        return all(passages.details.get(name) == value for name, value in found.details.items())
    return passages.inputs == found.inputs


def _weighed_version(recipe: str, model: str, found: _Found) -> str:
    """Number of a version of this model and corpus that was promoted, refused or rolled back; empty where none was."""
    if not tracking.has_registry():
        return ""
    from ralm.serving import MODEL_TAG, PLACES_TAG, versions  # needs mlflow

    known = versions(recipe)
    for version in reversed(known):
        if version.tags.get(MODEL_TAG) != model or not _is_settled(version, known):
            continue
        try:
            *_, passages = json.loads(version.tags[PLACES_TAG])
            if _is_of(read_artifact(passages).manifest, found):
                return version.version
        except (ArtifactError, KeyError, ValueError) as error:
            logger.warning("version %s of ralm-%s cannot be compared: %s", version.version, recipe, error)
    return ""


def _is_settled(version: RegisteredVersion, known: Sequence[RegisteredVersion]) -> bool:
    """False for a version whose run broke off before it had its alias: the next run goes on with it.

    The registry writes why a version is promoted or refused first, and moves the alias last.
    """
    from ralm.serving import REASON_TAG, REPLACED_TAG, ROLLED_BACK_TAG

    if version.tags.get(ROLLED_BACK_TAG):
        return True
    if REPLACED_TAG in version.tags:  # it was to be promoted, and it was if another one took its place
        return version.version in {other.tags.get(REPLACED_TAG) for other in known}
    return bool(version.tags.get(REASON_TAG)) and (bool(version.alias) or version is not known[-1])
