"""Settings of the index stage."""

from __future__ import annotations

from dataclasses import dataclass

from ralm.index.config import UpdateSettings


@dataclass(frozen=True, kw_only=True)
class IndexConfig(UpdateSettings):
    """How the index is laid out, and when an update trains it anew; the refresh inside training has the same layout."""
