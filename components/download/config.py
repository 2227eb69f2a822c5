"""Settings of the download stage."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from ralm.errors import ConfigError
from ralm.model_config import ModelConfig

WIKI_BASE_URL = "https://dumps.wikimedia.org"


def _wiki_base_url() -> str:
    return os.environ.get("RALM_WIKI_BASE_URL") or WIKI_BASE_URL


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """How a corpus, a question set or a model is read."""

    format: Literal["auto", "wikimedia", "atlas", "dpr", "csv", "jsonl", "parquet", "folder"] = "auto"
    """Format of the corpus; auto tells by name and content."""

    passage_words: int = 100
    """Words aimed at in a passage; none has more than one and a half times as many."""

    infoboxes: bool = True
    """Keep infoboxes of wiki pages as passages of their own (`field: value` lines)."""

    workers: int = 0
    """Processes that clean and cut the corpus; 0: one for each core. It changes the speed, not the result."""

    wiki_base_url: str = field(default_factory=_wiki_base_url)
    """Site that `wiki:NAME/DATE` is resolved at; by default `$RALM_WIKI_BASE_URL`, else dumps.wikimedia.org."""

    split: Literal["auto", "train", "dev", "test"] = "auto"
    """Split of a single question file; auto takes it from the file's name, else test."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """How a model's two halves are to be used."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.passage_words < 8:
            raise ConfigError(f"passage_words: expected at least 8, found {self.passage_words}")
        if self.workers < 0:
            raise ConfigError(f"workers: expected 0 or more, found {self.workers}")
        if "://" not in self.wiki_base_url:
            raise ConfigError(f"wiki_base_url: expected a URL such as {WIKI_BASE_URL}, found {self.wiki_base_url!r}")
