"""Settings of the index stage."""

from __future__ import annotations

from dataclasses import dataclass

from ralm.index.config import IndexSettings


@dataclass(frozen=True, kw_only=True)
class IndexConfig(IndexSettings):
    """How the index is laid out; the refresh inside training builds with the same settings."""
