"""Files of a model hub: `hf://owner/name[@revision][/path]`. `HF_ENDPOINT` names another server than the public one."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ralm.artifacts.files import cache_folder, read_json, write_json
from ralm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)
PREFIX = "hf://"
_SOURCE = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<path>.*))?")
_TOKENIZER_FILES = ("*.json", "*.model", "*.txt")
_MODEL_FILES = (*_TOKENIZER_FILES, "*.safetensors")
_PICKLED_WEIGHTS = "pytorch_model*.bin"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubPath:
    """A parsed `hf://` source."""

    repository: str
    revision: str
    path: str

    @classmethod
    def parse(cls, source: str) -> Self:
        """Take a source apart.

        Raises:
            ConfigError: not of the form `hf://owner/name[@revision][/path]`.
        """
        match = _SOURCE.fullmatch(source)
        if match is None:
            raise ConfigError(f"{source}: expected hf://owner/name[@revision][/path]")
        path = (match["path"] or "").strip("/")
        revision = (match["revision"] or "main").replace("%2F", "/")
        return cls(repository=match["repository"], revision=revision, path=path)


def hub_commit(source: str) -> str:
    """The commit that a source's revision stands for now; the cached one where the hub cannot be reached.

    Raises:
        ConfigError: no valid `hf://` source.
        DataError: no such repository or revision, or no hub and nothing cached.
    """
    place = HubPath.parse(source)
    if re.fullmatch(r"[0-9a-f]{40}", place.revision):
        return place.revision
    from huggingface_hub.errors import HfHubHTTPError

    note = _cache() / "commits" / f"{hashlib.sha256(f'{place.repository}@{place.revision}'.encode()).hexdigest()}.json"
    with _hub_errors(source):
        try:
            commit = str(_api().model_info(place.repository, revision=place.revision).sha)
        except HfHubHTTPError:
            raise
        except Exception as error:
            if not note.is_file():
                raise
            logger.warning("%s: the hub cannot be reached (%s); using the version fetched before", source, error)
            return str(read_json(str(note))["commit"])
    write_json(note, {"source": source, "commit": commit})
    return commit


def fetch_hub_file(source: str) -> Path:
    """One file of a repository.

    Raises:
        ConfigError: no valid `hf://` source, or one without a path.
        DataError: no such file, or the hub cannot be reached.
    """
    place = HubPath.parse(source)
    if not place.path:
        raise ConfigError(f"{source}: expected a file, hf://owner/name[@revision]/path")
    from huggingface_hub import hf_hub_download

    with _hub_errors(source):
        return Path(
            hf_hub_download(
                place.repository, place.path, revision=place.revision, cache_dir=_cache(), endpoint=_endpoint()
            )
        )


def fetch_hub_tree(source: str, *, with_weights: bool = True) -> Path:
    """The model files of a repository: weights, tokenizer, configs. Pickled weights only where there are no others.

    Args:
        source: `hf://owner/name[@revision][/path]`.
        with_weights: False leaves the weights out.

    Raises:
        ConfigError: no valid `hf://` source.
        DataError: no such repository, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    place = HubPath.parse(source)
    commit = hub_commit(source)
    base = f"{place.path}/" if place.path else ""
    snapshot = _cache() / f"models--{place.repository.replace('/', '--')}" / "snapshots" / commit
    with _hub_errors(source):
        patterns = [base + pattern for pattern in (_MODEL_FILES if with_weights else _TOKENIZER_FILES)]
        what = "finished" if with_weights else "tokenizer"
        finished = snapshot / ".." / ".." / f"{what}-{commit}-{place.path.replace('/', '-')}"
        if not finished.exists():
            names = _api().list_repo_files(place.repository, revision=commit)
            if with_weights and not any(name.startswith(base) and name.endswith(".safetensors") for name in names):
                patterns.append(base + _PICKLED_WEIGHTS)
            snapshot_download(
                place.repository,
                revision=commit,
                cache_dir=_cache(),
                allow_patterns=patterns,
                ignore_patterns=[base + "onnx/*", base + "openvino/*"],
                endpoint=_endpoint(),
            )
            finished.touch()
    folder = snapshot / place.path
    if not folder.is_dir():
        raise DataError(f"{source}: the repository has no folder {place.path}")
    return folder


@contextmanager
def _hub_errors(source: str) -> Iterator[None]:
    """Turn what the hub's client raises into a `DataError` of one line."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise DataError(
            f"{source}: the hub did not give it: {reason[0] if reason else type(error).__name__}"
        ) from error


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint())


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _cache() -> Path:
    return cache_folder("downloads") / "hub"
