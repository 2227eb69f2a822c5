"""Places and files: a `Location` is a local path or an fsspec URL. The only module that opens what a user names.

A `Location` stays a plain string: `pathlib.Path` would turn `s3://bucket/x` into `s3:/bucket/x`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import fsspec
import fsspec.core
import yaml

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


def file_system(location: Location) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a location and the path inside it.

    Raises:
        ArtifactError: unknown scheme, or its package is not installed.
    """
    try:
        return cast(tuple[fsspec.AbstractFileSystem, str], fsspec.core.url_to_fs(location))
    except (ValueError, ImportError) as error:
        raise ArtifactError(f"{location}: {error}") from error


def exists(location: Location) -> bool:
    """True if a file or folder is there."""
    if not is_remote(location):
        return local_path(location).exists()
    system, path = file_system(location)
    return bool(system.exists(path))


def is_folder(location: Location) -> bool:
    """True if the location is a folder (or a URL prefix with files below it)."""
    if not is_remote(location):
        return local_path(location).is_dir()
    system, path = file_system(location)
    return bool(system.isdir(path))


def open_file(location: Location, mode: str = "rb") -> IO[Any]:
    """Open a local or remote file.

    Raises:
        DataError: it is missing, a folder, or may not be read.
    """
    try:
        if not is_remote(location):
            return cast(IO[Any], local_path(location).open(mode, encoding=None if "b" in mode else "utf-8"))
        system, path = file_system(location)
        return cast(IO[Any], system.open(path, mode))
    except FileNotFoundError as error:
        raise DataError(f"{location}: no such file") from error
    except (IsADirectoryError, PermissionError) as error:
        raise DataError(f"{location}: {os.strerror(error.errno or errno.EIO).lower()}") from error


def read_json(location: Location) -> Any:
    """Parse a JSON file.

    Raises:
        DataError: it is missing or is no JSON; the message names line and column.
    """
    with open_file(location) as file:
        raw = file.read()
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
    with open_file(location) as file:
        try:
            plain = yaml.safe_load(file)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{location}: no YAML: {' '.join(str(error).split())}") from error
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


def local_copy(location: Location, *, identity: str = "") -> Path:
    """A local path with the content of a location: the path itself, or a cached download of a remote file or folder.

    Args:
        location: file or folder.
        identity: what the content is known by (a fingerprint), so that a changed remote file is fetched anew.

    Raises:
        DataError: nothing is there.
    """
    if not is_remote(location):
        path = local_path(location)
        if not path.exists():
            raise DataError(f"{location}: no such file or folder")
        return path
    key = hashlib.sha256(f"{location}\n{identity}".encode()).hexdigest()[:32]
    target = cache_folder("remote") / key / location.rstrip("/").rpartition("/")[2]
    if target.exists():
        return target
    system, remote = file_system(location)
    partial = target.parent / f".{uuid.uuid4().hex}"
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        system.get(remote, str(partial), recursive=True)
        with contextlib.suppress(OSError):  # another process may have fetched it first
            partial.rename(target)
    except FileNotFoundError as error:
        raise DataError(f"{location}: no such file or folder") from error
    finally:
        remove(partial)
    return target


def remove(path: Path) -> None:
    """Remove a local file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
