"""The content-addressed store: each finished artifact under a name made of its stage, inputs, config and seed.

`produce` is the one way to make an artifact. It reuses what is there, builds elsewhere, publishes whole or not at all,
and hands the result over to the folder the caller asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import psutil

from ralm.artifacts import remote
from ralm.artifacts.files import (
    Location,
    atomic_file,
    encode_json,
    is_remote,
    join,
    local_path,
    ralm_home,
    remove,
    sha256_file,
    write_json,
)
from ralm.artifacts.lock import only_one
from ralm.artifacts.manifest import (
    MANIFEST,
    TIMINGS,
    Artifact,
    FileEntry,
    Manifest,
    artifact_key,
    content_fingerprint,
    open_artifact,
    read_artifact,
)
from ralm.errors import ArtifactError, StorageError

logger = logging.getLogger(__name__)
UNFINISHED = ".ralm-unfinished"
_by_reference: ContextVar[bool] = ContextVar("by_reference", default=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """What a `build` function put into its folder."""

    rows: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Rows of each table, by path inside the folder."""
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    timings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Wall times and rates; written to `timings.json`, outside the fingerprint."""


Build = Callable[[Path], Contents]


def store_uri() -> Location:
    """Where finished artifacts are kept: `$RALM_STORE_URI` (a path or fsspec URL), by default `$RALM_HOME/store`."""
    return os.environ.get("RALM_STORE_URI") or str(ralm_home() / "store")


def checkpoint_folder(key: str) -> Path:
    """Where a stage keeps what lets it go on after a kill; `key` names what it is making (`artifact_key`)."""
    folder = ralm_home() / "checkpoints" / key
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def lock_file(key: str) -> Path:
    """The lock that is held while the artifact with this key is made; all who share a local store share its locks."""
    store = store_uri()
    base = ralm_home() / "locks" if is_remote(store) else local_path(store) / ".locks"
    return base / f"{key}.lock"


def work_folder() -> Path:
    """Where artifacts are made, each in a folder named by its key."""
    store = store_uri()
    return ralm_home() / "work" if is_remote(store) else local_path(store) / ".work"


def stored_location(manifest: Manifest) -> Location:
    """Where the store keeps this artifact: stable, unlike the folder it was handed to."""
    return join(store_uri(), manifest.kind, manifest.key)


def files_location(manifest: Manifest) -> Location:
    """Where the files of this artifact are, which is below `stored_location` in a remote store."""
    return manifest.data_uri or stored_location(manifest)


@contextlib.contextmanager
def handing_over_by_reference() -> Iterator[None]:
    """Inside, `produce` writes only a manifest with a `data_uri` into the output folder.

    Pipeline tasks use it: what they output is uploaded and downloaded by the launcher, kilobytes instead of gigabytes.
    """
    token = _by_reference.set(True)
    try:
        yield
    finally:
        _by_reference.reset(token)


def plain_config(config: Any) -> dict[str, Any]:
    """A config dataclass (or mapping) as JSON types."""
    return dict(dataclasses.asdict(config)) if dataclasses.is_dataclass(config) else dict(config)  # type: ignore[arg-type]


def produce(
    output: Location,
    *,
    kind: str,
    stage: str,
    stage_version: int,
    inputs: Mapping[str, str],
    config: Any,
    build: Build,
    version: int = 1,
    seed: int = 0,
) -> Manifest:
    """Make an artifact, or take it from the store if the same one was made before.

    Args:
        output: folder that receives it; new, empty, or holding an earlier artifact.
        kind: artifact kind, see `Manifest`.
        stage: name of the stage.
        stage_version: raised by hand when the stage's meaning changes.
        inputs: fingerprint of each input.
        config: the stage's config dataclass: only what changes the result.
        build: writes the files into the folder it is given.
        version: version of the kind's layout.
        seed: of the stage's random choices.

    Raises:
        ArtifactError: the output folder holds something else; or the disk is full.
    """
    plain = plain_config(config)
    key = artifact_key(stage=stage, stage_version=stage_version, inputs=inputs, config=plain, seed=seed)
    place = join(store_uri(), kind, key)
    _check_output(output)
    with only_one(lock_file(key), f"making {key}"):
        manifest = _finished(place, kind)
        if manifest is None:
            work = work_folder() / key
            try:
                manifest = _built_before(work, place) or build_artifact(
                    work,
                    build,
                    kind=kind,
                    version=version,
                    config=plain,
                    inputs=dict(inputs),
                    stage=stage,
                    stage_version=stage_version,
                    seed=seed,
                )
                if not is_remote(place):
                    _move(work, local_path(place))
            except BaseException as error:
                remove(work)
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise ArtifactError(f"{work}: disk full while making {kind}; nothing was published") from error
                raise
            if is_remote(place):
                manifest = _upload(work, place, manifest)
        else:
            logger.info("%s: reused %s %s, made before from the same inputs and config", stage, kind, key)
    _hand_over(output, manifest.data_uri or place, manifest)
    return manifest


def take_finished(output: Location, kind: str, key: str) -> Manifest | None:
    """Hand over what the store has under this key; None if it is not there.

    Raises:
        ArtifactError: the output folder holds something else.
    """
    _check_output(output)
    place = join(store_uri(), kind, key)
    manifest = _finished(place, kind)
    if manifest is not None:
        _hand_over(output, manifest.data_uri or place, manifest)
    return manifest


def hand_over_reference(output: Location, artifact: Artifact) -> None:
    """Put a manifest into the output folder that refers to a finished artifact, wherever its files are.

    Raises:
        ArtifactError: the output folder holds something else.
    """
    _check_output(output)
    place = artifact.base if is_remote(artifact.base) else str(local_path(artifact.base))
    with handing_over_by_reference():
        _hand_over(output, place, artifact.manifest)


def build_artifact(
    work: Path,
    build: Build,
    *,
    kind: str,
    version: int,
    config: dict[str, Any],
    inputs: dict[str, str],
    stage: str,
    stage_version: int,
    seed: int,
) -> Manifest:
    """Make an artifact in a work folder, outside the store; whoever calls it renames the folder when it is done."""
    remove(work)
    work.mkdir(parents=True)
    started_at = time.monotonic()
    contents = build(work)
    elapsed_s = time.monotonic() - started_at
    paths = sorted(path for path in work.rglob("*") if path.is_file())
    names = [path.relative_to(work).as_posix() for path in paths]
    if unknown := set(contents.rows) - set(names):
        raise ArtifactError(f"{stage}: reported rows of files it did not write: {sorted(unknown)}")
    files = tuple(
        FileEntry(path=name, bytes=path.stat().st_size, rows=contents.rows.get(name), sha256=sha256_file(path))
        for name, path in zip(names, paths, strict=True)
    )
    details = dict(contents.details)
    peak_gib = psutil.Process().memory_info().rss / 2**30
    write_json(work / TIMINGS, {"elapsed_s": round(elapsed_s, 3), "memory_gib": round(peak_gib, 3), **contents.timings})
    manifest = Manifest(
        kind=kind,
        version=version,
        files=files,
        inputs=inputs,
        config=config,
        stage=stage,
        stage_version=stage_version,
        seed=seed,
        counts=dict(contents.counts),
        details=details,
        fingerprint=content_fingerprint(kind, version, files, details),
    )
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.chmod(0o444)  # hard links share the bytes: a slip in one folder must not change the others
    write_json(work / MANIFEST, manifest.to_json())
    return manifest


def _finished(place: Location, kind: str) -> Manifest | None:
    try:
        manifest = open_artifact(place, kind).manifest
    except ArtifactError as error:
        if "damaged" in str(error):
            logger.warning("%s; it is made again", error)
            _remove_stored(place)
        return None
    return dataclasses.replace(manifest, reused=True)


def _built_before(work: Path, place: Location) -> Manifest | None:
    """What an earlier call made for a remote store and could not upload to its end."""
    if not is_remote(place) or not (work / MANIFEST).exists():
        return None
    logger.info("%s: made before; only the upload to %s is left", work, place)
    return read_artifact(str(work)).manifest


def _move(work: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    work.rename(target)


def _upload(work: Path, place: Location, manifest: Manifest) -> Manifest:
    """Publish a work folder in a remote store, the manifest last; the folder goes when that is done.

    The files lie in a folder named by their content, an artifact of its own, so that two machines that make the same
    artifact at once never mix theirs. The first manifest at `place` stays: what it names may be in use already.
    """
    base = join(place, manifest.fingerprint[:16])
    try:
        stored = remote.file_sizes(base)  # of an upload that broke off
        for name in [*(entry.path for entry in manifest.files), TIMINGS, MANIFEST]:
            if stored.get(name) != (work / name).stat().st_size:
                remote.upload(work / name, join(base, name))
        manifest = dataclasses.replace(manifest, data_uri=base)
        is_first = remote.write_new(join(place, MANIFEST), encode_json(manifest.to_json()))
    except StorageError as error:
        raise type(error)(f"{error}; {work} keeps what was made, and the same command uploads it") from error
    if not is_first:
        logger.info("%s: another machine published it meanwhile; that one is used", place)
        manifest = dataclasses.replace(open_artifact(place, manifest.kind, manifest.version).manifest, reused=True)
    remove(work)
    return manifest


def _check_output(output: Location) -> None:
    if is_remote(output):
        return
    folder = local_path(output)
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{output}: expected a folder for the artifact, found a file")
    is_ours = (folder / MANIFEST).exists() or (folder / UNFINISHED).exists()
    if folder.is_dir() and any(folder.iterdir()) and not is_ours:
        raise ArtifactError(f"{output}: the folder holds files that are no artifact; give a new or empty folder")


def _hand_over(output: Location, place: Location, manifest: Manifest) -> None:
    """Put the artifact's files into the output folder (hard links where possible), or a manifest that names them."""
    if is_remote(output) or is_remote(place) or _by_reference.get():
        reference = encode_json(dataclasses.replace(manifest, data_uri=place).to_json())
        if is_remote(output):
            remote.write_file(join(output, MANIFEST), reference)
            return
        files: list[str] = []
    else:
        reference = encode_json(manifest.to_json())
        files = [*(entry.path for entry in manifest.files), TIMINGS]
    folder = local_path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / UNFINISHED).touch()
    _clear(folder)
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            (folder / name).unlink(missing_ok=True)
            os.link(local_path(place) / name, folder / name)
        except OSError:  # another file system, one without hard links, or another node was faster
            with contextlib.suppress(shutil.SameFileError):
                shutil.copy2(local_path(place) / name, folder / name)
    with atomic_file(folder / MANIFEST) as file:
        file.write(reference)
    (folder / UNFINISHED).unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Remove an earlier artifact from an output folder, its manifest first; other files stay."""
    if not (folder / MANIFEST).exists():
        return
    old = read_artifact(str(folder)).manifest
    (folder / MANIFEST).unlink()
    for name in [*(entry.path for entry in old.files), TIMINGS]:
        (folder / name).unlink(missing_ok=True)


def _remove_stored(place: Location) -> None:
    if is_remote(place):
        remote.remove_file(join(place, MANIFEST))  # another machine may be putting its files there
    else:
        folder = local_path(place)
        (folder / MANIFEST).unlink(missing_ok=True)
        remove(folder)
