"""Places and files: a `Location` is a local path or an fsspec URL. The only module that opens what a user names.

A `Location` stays a plain string: `pathlib.Path` would turn `s3://bucket/x` into `s3:/bucket/x`. URLs are opened by
`ralm.artifacts.remote`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from ralm.artifacts import remote
from ralm.artifacts.lock import only_one
from ralm.errors import ArtifactError, ConfigError, DataError

Location = str
BLOCK_BYTES = 1 << 20


def ralm_home() -> Path:
    """The folder of everything kept between runs: store, caches, checkpoints, MLflow database (`$RALM_HOME`)."""
    return Path(os.environ.get("RALM_HOME") or Path.home() / ".ralm").absolute()


def cache_folder(name: str) -> Path:
    """A folder for what can be fetched or computed again."""
    folder = ralm_home() / "cache" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def is_remote(location: Location) -> bool:
    """True for a URL with a scheme other than `file://`."""
    scheme, separator, _ = location.partition("://")
    return bool(separator) and scheme != "file"


def local_path(location: Location) -> Path:
    """The path of a local location.

    Raises:
        ArtifactError: the location is a remote URL.
    """
    if is_remote(location):
        raise ArtifactError(f"{location}: expected a local path here, found a URL")
    return Path(location.removeprefix("file://")).expanduser().absolute()


def join(location: Location, *parts: str) -> Location:
    """Append path parts to a path or URL."""
    return "/".join([location.rstrip("/") if location != "/" else "", *parts])


def exists(location: Location) -> bool:
    """True if a file or folder is there."""
    if not is_remote(location):
        return local_path(location).exists()
    return remote.exists(location)


def is_folder(location: Location) -> bool:
    """True if the location is a folder (or a URL prefix with files below it)."""
    if not is_remote(location):
        return local_path(location).is_dir()
    return remote.is_folder(location)


def read_file(location: Location) -> bytes:
    """The content of a local or remote file.

    Raises:
        DataError: it is missing, a folder, or may not be read.
    """
    if is_remote(location):
        return remote.read_file(location)
    try:
        return local_path(location).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{location}: no such file") from error
    except (IsADirectoryError, PermissionError) as error:
        raise DataError(f"{location}: {os.strerror(error.errno or errno.EIO).lower()}") from error


def read_json(location: Location) -> Any:
    """Parse a JSON file.

    Raises:
        DataError: it is missing or is no JSON; the message names line and column.
    """
    raw = read_file(location)
    try:
        return json.loads(raw)
    except json.JSONDecodeError as error:
        raise DataError(f"{location} line {error.lineno} column {error.colno}: no JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{location}: no JSON: byte {error.start} is not UTF-8") from error


def read_settings(location: Location) -> dict[str, Any]:
    """Parse a YAML or JSON file of settings by name.

    Raises:
        DataError: it is missing.
        ConfigError: it is no YAML (the message names line and column), or no mapping.
    """
    raw = read_file(location)
    try:
        plain = yaml.safe_load(raw)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split()).replace('in "<byte string>", ', "")
        raise ConfigError(f"{location}: no YAML: {why}") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{location}: expected settings by name, found {type(plain).__name__}")
    return {str(name): value for name, value in plain.items()}


def encode_json(value: Any) -> bytes:
    """JSON as it is written everywhere: sorted keys, one item a line, UTF-8, so that equal values give equal bytes."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_file(path) as file:
        file.write(encode_json(value))


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a file so that it is under its name whole or not at all, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # a full disk is found out when the file is closed
            error.filename = str(path)
        Path(name).unlink(missing_ok=True)
        raise


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_copy(location: Location, *, identity: str = "", sha256: str = "") -> Path:
    """A local path with the content of a file: the path itself, or a cached download of a remote one.

    Args:
        location: of the file.
        identity: what the content is known by (a fingerprint), so that a changed remote file is fetched anew.
        sha256: of the content; a download is compared with it.

    Raises:
        DataError: nothing is there, or a download has another checksum.
    """
    if not is_remote(location):
        path = local_path(location)
        if not path.exists():
            raise DataError(f"{location}: no such file")
        return path
    target = _cached(location, identity)
    if not target.exists():
        with only_one(target.with_name(".lock"), f"fetching {location}"):
            if not target.exists():
                _fetch(location, target, sha256)
    return target


def local_folder(location: Location, files: Mapping[str, str], *, identity: str) -> Path:
    """A local path with the content of a folder: the path itself, or a cached download of a remote one.

    Args:
        location: of the folder.
        files: sha256 of each of its files, by path inside it.
        identity: what the content is known by (a fingerprint).

    Raises:
        DataError: a file is not there, or a download has another checksum.
    """
    if not is_remote(location):
        return local_path(location)
    target = _cached(location, identity)
    if not target.exists():
        with only_one(target.with_name(".lock"), f"fetching {location}"):
            part = target.with_name(f".{target.name}.part")
            missing = {} if target.exists() else {name: files[name] for name in files if not (part / name).exists()}
            for name, sha256 in missing.items():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                _fetch(join(location, name), part / name, sha256)
            if part.exists():
                part.rename(target)
    return target


def _cached(location: Location, identity: str) -> Path:
    key = hashlib.sha256(f"{location}\n{identity}".encode()).hexdigest()[:32]
    return cache_folder("remote") / key / location.rstrip("/").rpartition("/")[2]


def _fetch(location: Location, target: Path, sha256: str) -> None:
    part = target.with_name(f".{target.name}.part")  # stays where it breaks off: the next try goes on from there
    remote.download(location, part)
    if sha256 and (found := sha256_file(part)) != sha256:
        part.unlink()
        raise DataError(f"{location}: expected sha256 {sha256}, found {found}; the file in the store is damaged")
    part.rename(target)


def remove(path: Path) -> None:
    """Remove a local file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
