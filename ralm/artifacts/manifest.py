"""Artifacts: folders whose `manifest.json`, written last, says what they hold and what they were made from."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ralm.artifacts import remote
from ralm.artifacts.files import (
    Location,
    encode_json,
    exists,
    is_folder,
    is_remote,
    join,
    local_copy,
    local_folder,
    local_path,
    read_json,
)
from ralm.errors import ArtifactError, DataError

MANIFEST = "manifest.json"
TIMINGS = "timings.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of an artifact."""

    path: str
    """Path inside the folder, with `/`."""
    bytes: int
    rows: int | None
    """Rows of a table, None for other files."""
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artifact holds. Everything in it is equal between equal runs; times live in `timings.json`."""

    kind: str
    """passages, questions, model, embeddings, index, predictions, report or registration."""
    version: int
    """Version of the kind's layout."""
    files: tuple[FileEntry, ...]
    inputs: Mapping[str, str]
    """Fingerprint of each input by its name."""
    config: Mapping[str, Any]
    stage: str
    stage_version: int
    seed: int
    counts: Mapping[str, int]
    """What was made, and what was skipped."""
    details: Mapping[str, Any]
    """Facts of the kind: encoder fingerprints, dimension, metric, recall."""
    fingerprint: str
    """sha256 over kind, version, files and details: equal content has an equal fingerprint whatever made it."""
    data_uri: Location | None = None
    """Where the files are when they are not beside the manifest."""
    reused: bool = dataclasses.field(default=False, compare=False)
    """True if the store already held it. Not written to the file."""

    @property
    def rows(self) -> int:
        """Rows over all tables."""
        return sum(entry.rows or 0 for entry in self.files)

    @property
    def key(self) -> str:
        """The name under which the store keeps it."""
        return artifact_key(
            stage=self.stage, stage_version=self.stage_version, inputs=self.inputs, config=self.config, seed=self.seed
        )

    def to_json(self) -> dict[str, Any]:
        """As written to `manifest.json`."""
        plain = dataclasses.asdict(self)
        del plain["reused"]
        return plain

    @classmethod
    def from_json(cls, plain: Any, where: Location) -> Self:
        """Check and take over a parsed `manifest.json`.

        Raises:
            ArtifactError: a field is missing, unknown, or the fingerprint does not match the content.
        """
        try:
            manifest = cls(**{**plain, "files": tuple(FileEntry(**entry) for entry in plain["files"])})
        except (TypeError, KeyError) as error:
            raise ArtifactError(f"{where}: no valid manifest: {error}") from error
        expected = content_fingerprint(manifest.kind, manifest.version, manifest.files, manifest.details)
        if manifest.fingerprint != expected:
            raise ArtifactError(f"{where}: fingerprint {manifest.fingerprint} but the entries give {expected}")
        return manifest


def artifact_key(
    *, stage: str, stage_version: int, inputs: Mapping[str, str], config: Mapping[str, Any], seed: int
) -> str:
    """Name of the artifact that this stage makes of these inputs with this config (32 hex digits)."""
    parts = {"stage": stage, "stage_version": stage_version, "inputs": inputs, "config": config, "seed": seed}
    return hashlib.sha256(encode_json(parts)).hexdigest()[:32]


def content_fingerprint(kind: str, version: int, files: tuple[FileEntry, ...], details: Mapping[str, Any]) -> str:
    """Identity of an artifact's content (64 hex digits)."""
    entries = [[entry.path, entry.rows, entry.sha256] for entry in sorted(files, key=lambda entry: entry.path)]
    parts = {"kind": kind, "version": version, "files": entries, "details": details}
    return hashlib.sha256(encode_json(parts)).hexdigest()


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished artifact that is open for reading."""

    location: Location
    manifest: Manifest
    base: Location
    """Where its files are: the folder itself, or the manifest's `data_uri`."""

    @property
    def fingerprint(self) -> str:
        """Identity of its content."""
        return self.manifest.fingerprint

    def file(self, path: str) -> Location:
        """Location of one of its files.

        Raises:
            ArtifactError: the manifest lists no such file.
        """
        if all(entry.path != path for entry in self.manifest.files):
            raise ArtifactError(f"{self.location}: {self.manifest.kind} artifact without a file {path}")
        return join(self.base, path)

    def tables(self, suffix: str = ".parquet") -> list[tuple[Location, int]]:
        """(location, rows) of its tables, sorted by name."""
        entries = sorted(self.manifest.files, key=lambda entry: entry.path)
        return [(join(self.base, entry.path), entry.rows or 0) for entry in entries if entry.path.endswith(suffix)]

    def has(self, path: str) -> bool:
        """True if the manifest lists this file."""
        return any(entry.path == path for entry in self.manifest.files)

    def local(self, path: str = "") -> Path:
        """A local path to one of its files, or to the whole folder; remote files are fetched into the cache."""
        files = {entry.path: entry.sha256 for entry in self.manifest.files}
        if not path:
            return local_folder(self.base, files, identity=self.fingerprint)
        return local_copy(self.file(path), identity=self.fingerprint, sha256=files[path])


def open_artifact(location: Location, kind: str, version: int = 1) -> Artifact:
    """Open a finished artifact and check that its files are there with the sizes the manifest gives.

    Raises:
        ArtifactError: nothing there, unfinished, another kind or version, or damaged files.
    """
    artifact = read_artifact(location)
    manifest = artifact.manifest
    if manifest.kind != kind:
        raise ArtifactError(f"{location}: expected a {kind} artifact, found a {manifest.kind} artifact")
    if manifest.version != version:
        raise ArtifactError(f"{location}: expected {kind} version {version}, found version {manifest.version}")
    sizes = _sizes(artifact)
    for entry in manifest.files:
        found = sizes.get(entry.path)
        if found != entry.bytes:
            state = "is missing" if found is None else f"has {found} bytes"
            raise ArtifactError(f"{artifact.base}: damaged: {entry.path} {state}, expected {entry.bytes} bytes")
    return artifact


def read_artifact(location: Location) -> Artifact:
    """Open an artifact of any kind without looking at its files.

    Raises:
        ArtifactError: nothing there, unfinished, or no valid manifest.
    """
    place = join(location, MANIFEST)
    try:
        manifest = Manifest.from_json(read_json(place), place)
    except DataError as error:
        if exists(place):
            raise ArtifactError(str(error)) from error
        if exists(location) and not is_folder(location):
            raise ArtifactError(f"{location}: expected the folder of an artifact, found a file") from error
        state = "unfinished: it has no manifest.json" if exists(location) else "no such artifact"
        raise ArtifactError(f"{location}: {state}; run the stage that makes it") from error
    return Artifact(location, manifest, manifest.data_uri or location)


def _sizes(artifact: Artifact) -> dict[str, int]:
    """Bytes of the artifact's files, as far as they are there."""
    if is_remote(artifact.base):
        return remote.file_sizes(artifact.base)
    folder = local_path(artifact.base)
    paths = {entry.path: folder / entry.path for entry in artifact.manifest.files}
    return {name: path.stat().st_size for name, path in paths.items() if path.exists()}
