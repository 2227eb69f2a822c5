"""The assets that the project names itself (`ralm/assets.yaml`): source, licence and checksums."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from importlib import resources

import yaml

from ralm.artifacts.files import encode_json
from ralm.errors import ConfigError

PREFIX = "asset:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asset:
    """One entry of `assets.yaml`."""

    name: str
    description: str
    licence: str
    source: str
    """Where it is: `pypi://...`; a path that ends in `/` is a folder. Empty for a bundle."""
    sha256: Mapping[str, str]
    """Checksum of each file, by its path inside the folder (by its name where the source is one file)."""
    parts: Mapping[str, str]
    """Of a bundle: the sources it stands for, by role (`retriever`, `reader`). Else empty."""

    @property
    def digest(self) -> str:
        """Identity of the content: it depends on the pinned checksums only."""
        return hashlib.sha256(encode_json({"sha256": dict(self.sha256), "parts": dict(self.parts)})).hexdigest()


@functools.cache
def assets() -> Mapping[str, Asset]:
    """All entries of `assets.yaml`, by name."""
    plain = yaml.safe_load(resources.files("ralm").joinpath("assets.yaml").read_text(encoding="utf-8"))
    return {
        name: Asset(
            name=name,
            description=entry["description"],
            licence=entry["licence"],
            source=entry.get("source", ""),
            sha256=entry.get("sha256", {}),
            parts=entry.get("parts", {}),
        )
        for name, entry in plain.items()
    }


def find_asset(source: str) -> Asset:
    """The entry behind `asset:NAME`.

    Raises:
        ConfigError: there is no such asset.
    """
    name = source.removeprefix(PREFIX)
    if name not in assets():
        raise ConfigError(f"{source}: unknown asset; assets.yaml has {', '.join(sorted(assets()))}")
    return assets()[name]
