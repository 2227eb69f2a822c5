"""The files published with Atlas (Izacard et al. 2022) under their keys: corpora, models, indices.

They are CC BY-NC (models, indices) and CC BY-SA (Wikipedia text), and are not part of this project.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from ralm.errors import ConfigError

PREFIX = "atlas:"
BASE_URL = "https://dl.fbaipublicfiles.com/atlas/"
SIZES = ("base", "large", "xl", "xxl")
INDEX_SHARDS = 128
TEXTS, INFOBOXES = "text-list-100-sec.jsonl", "infobox.jsonl"


def _known_files() -> dict[str, tuple[str, ...]]:
    corpora = ("dec2017", "dec2018", "aug2019", "dec2020", "dec2021")
    shards = tuple(f"{part}.{shard}.pt" for shard in range(INDEX_SHARDS) for part in ("passages", "embeddings"))
    models = [(family, size) for family in ("atlas", "atlas_nq") for size in SIZES]
    return {
        **{f"corpora/wiki/enwiki-{date}": (TEXTS, INFOBOXES) for date in corpora},
        **{f"models/{family}/{size}": ("model.pth.tar",) for family, size in models},
        **{f"indices/{family}/wiki/{size}": shards for family, size in models},
    }


FILES: Mapping[str, tuple[str, ...]] = _known_files()
"""Names of the files of each key."""


def atlas_base_url() -> str:
    """Address in front of the keys: `$RALM_ATLAS_BASE_URL`, else Atlas' own site."""
    return os.environ.get("RALM_ATLAS_BASE_URL") or BASE_URL


def folder_files(source: str, base_url: str = "") -> dict[str, str]:
    """Addresses of the files behind `atlas:KEY`, by name.

    Raises:
        ConfigError: unknown key.
    """
    key = source.removeprefix(PREFIX).rstrip("/")
    if key not in FILES:
        raise ConfigError(f"{source}: unknown key; there are {', '.join(FILES)}, and the files in them")
    return {name: f"{(base_url or atlas_base_url()).rstrip('/')}/{key}/{name}" for name in FILES[key]}


def file_url(source: str) -> str:
    """Address of the file behind `atlas:KEY/FILE`; of `atlas:KEY` where that holds only one.

    Raises:
        ConfigError: unknown key, or one that holds several files.
    """
    key = source.removeprefix(PREFIX).rstrip("/")
    if key in FILES:
        urls = folder_files(source)
        if len(urls) > 1:
            raise ConfigError(f"{source}: expected a file, found a folder of {len(urls)} files")
        return next(iter(urls.values()))
    folder, _, name = key.rpartition("/")
    if name not in FILES.get(folder, ()):
        raise ConfigError(f"{source}: unknown key; there are {', '.join(FILES)}, and the files in them")
    return folder_files(PREFIX + folder)[name]
