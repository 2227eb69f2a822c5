"""What the store holds, and removing what nothing refers to."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Collection
from pathlib import Path

from ralm.artifacts.files import Location, is_remote, local_path, ralm_home, remove
from ralm.artifacts.lock import if_free
from ralm.artifacts.manifest import MANIFEST, Manifest, read_artifact
from ralm.artifacts.store import lock_file, store_uri, work_folder
from ralm.errors import ArtifactError, ConfigError

logger = logging.getLogger(__name__)
REPEATED_KINDS = ("embeddings",)
"""Nothing is lost without them: an index holds the vectors, and a re-index takes them from there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredArtifact:
    """A finished artifact in the store."""

    uri: Location
    kind: str
    fingerprint: str
    bytes: int
    age_days: float
    """Since it was made."""
    inputs: tuple[str, ...]
    """Fingerprints of what it was made from."""


def list_store() -> list[StoredArtifact]:
    """All finished artifacts, oldest first.

    Raises:
        ConfigError: the store is remote; use the object store's own tools and lifecycle rules there.
    """
    store = store_uri()
    if is_remote(store):
        raise ConfigError(f"{store}: only a local store can be listed; use the object store's own tools")
    found = [
        _describe(place.parent, read_artifact(str(place.parent)).manifest)
        for place in local_path(store).glob(f"[!.]*/*/{MANIFEST}")
    ]
    return sorted(found, key=lambda artifact: (-artifact.age_days, artifact.uri))


def collect_garbage(*, roots: Collection[Location], keep_days: float, is_dry_run: bool) -> list[StoredArtifact]:
    """Remove artifacts that are at least `keep_days` old and that no root needs, and what killed stages left.

    Artifacts in a remote store stay: who else uses them is not known here. What this machine keeps of them (work that
    was not uploaded, local copies) goes when it is as old.

    Args:
        roots: store locations that are in use: those of the registry's versions and of the last run. What they were
            made from is kept too, but for embeddings.
        keep_days: younger artifacts stay whatever refers to them.
        is_dry_run: only tell.

    Returns:
        What was, or would be, removed.

    Raises:
        ArtifactError: a root is not in the store, so that the references cannot be trusted.
        ConfigError: negative age.
    """
    if keep_days < 0:
        raise ConfigError(f"keep_days: expected 0 or more, found {keep_days}")
    if is_remote(store_uri()):
        logger.info("%s: artifacts in a remote store are left to its own tools and lifecycle rules", store_uri())
        unused = []
    else:
        unused = _unused(roots, keep_days)
    if not is_dry_run:
        for artifact in unused:
            folder = local_path(artifact.uri)
            (folder / MANIFEST).unlink()  # first, so that a broken removal leaves nothing that looks finished
            remove(folder)
        _remove_old(ralm_home() / "checkpoints", keep_days)
        _remove_old(ralm_home() / "cache" / "remote", keep_days)
        _remove_left_work(keep_days)
    return unused


def _unused(roots: Collection[Location], keep_days: float) -> list[StoredArtifact]:
    stored = list_store()
    by_uri = {artifact.uri: artifact for artifact in stored}
    if missing := sorted(root for root in roots if root not in by_uri):
        raise ArtifactError(f"{missing[0]}: in use, but not in the store; nothing was removed")
    by_fingerprint: dict[str, list[StoredArtifact]] = {}
    for artifact in stored:
        by_fingerprint.setdefault(artifact.fingerprint, []).append(artifact)
    needed, todo = set(), [by_uri[root] for root in roots]
    while todo:
        artifact = todo.pop()
        if artifact.uri not in needed:
            needed.add(artifact.uri)
            sources = [source for fingerprint in artifact.inputs for source in by_fingerprint.get(fingerprint, [])]
            todo += [source for source in sources if source.kind not in REPEATED_KINDS]
    return [artifact for artifact in stored if artifact.uri not in needed and artifact.age_days >= keep_days]


def _describe(folder: Path, manifest: Manifest) -> StoredArtifact:
    return StoredArtifact(
        uri=str(folder),
        kind=manifest.kind,
        fingerprint=manifest.fingerprint,
        bytes=sum(entry.bytes for entry in manifest.files),
        age_days=round((time.time() - (folder / MANIFEST).stat().st_mtime) / 86400, 4),
        inputs=tuple(manifest.inputs.values()),
    )


def _remove_old(place: Path, keep_days: float) -> None:
    for folder in place.iterdir() if place.is_dir() else ():
        if time.time() - folder.stat().st_mtime >= keep_days * 86400:
            remove(folder)


def _remove_left_work(keep_days: float) -> None:
    """Work folders of stages that were killed and not run again; what is being made is locked."""
    work = work_folder()
    for folder in work.iterdir() if work.is_dir() else ():
        with if_free(lock_file(folder.name)) as is_left:
            if is_left and time.time() - folder.stat().st_mtime >= keep_days * 86400:
                remove(folder)
