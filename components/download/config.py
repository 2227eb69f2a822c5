"""Settings of the download stage."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from ralm.errors import ConfigError
from ralm.fetch.atlas import atlas_base_url
from ralm.fetch.mirrors import split_mirrors, wiki_mirrors
from ralm.model_config import ModelConfig


def _datasets_base_url() -> str:
    return os.environ.get("RALM_DATASETS_BASE_URL") or ""


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """How a corpus, a question set or a model is read."""

    format: Literal["auto", "wikimedia", "atlas", "dpr", "csv", "jsonl", "parquet", "folder"] = "auto"
    """Format of the corpus; auto tells by name and content."""

    passage_words: int = 100
    """Words aimed at in a passage; none has more than one and a half times as many."""

    max_passages: int | None = None
    """Keep only the first passages of the corpus; all by default."""

    infoboxes: bool = True
    """Keep infoboxes of wiki pages as passages of their own (`field: value` lines)."""

    workers: int = 0
    """Processes that clean and cut the corpus; 0: one for each core. It changes the speed, not the result."""

    wiki_base_url: str = field(default_factory=wiki_mirrors)
    """Site that `wiki:NAME/DATE` is resolved at, or several with commas between: the first that answers is asked, the
    others where it fails. By default `$RALM_WIKI_BASE_URL`, else dumps.wikimedia.org."""

    atlas_base_url: str = field(default_factory=atlas_base_url)
    """Site that `atlas:KEY` corpora are fetched from; by default `$RALM_ATLAS_BASE_URL`, else Atlas' own."""

    split: Literal["auto", "train", "dev", "test"] = "auto"
    """Split of a single question file; auto takes it from the file's name, else test."""

    files: dict[str, str] = field(default_factory=dict)
    """Your own copies of a question set's official files, by role (`train`, `dev`, `test`, `index`, `archive`,
    `questions`); where given, only these are used."""

    datasets_base_url: str = field(default_factory=_datasets_base_url)
    """Mirror of the official files of `dataset:` sources, as `BASE/NAME/FILE`; by default
    `$RALM_DATASETS_BASE_URL`, else each file's official address."""

    dev_split: Literal["fid", "hash"] = "fid"
    """How `dataset:nq-open` and `dataset:triviaqa` take dev out of train: `fid` by the row numbers published with
    Fusion-in-Decoder, `hash` by the questions' sha256, about a tenth."""

    num_shots: int = 0
    """Rows of train that also go to a table `train-N-shot`, drawn with `seed`; 0: none."""

    shots: str = ""
    """File of row numbers of train (from 0; a JSON list, or one a line) for `train-N-shot`, instead of `num_shots`."""

    num_test: int = 1000
    """Questions of `corpus:` sources that go to test."""

    num_dev: int = 1000
    """Questions of `corpus:` sources that go to dev."""

    seed: int = 0
    """Seed of the draw of `num_shots` and of the shuffle of `corpus:` sources."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """How a model's two halves are to be used."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.passage_words < 8:
            raise ConfigError(f"passage_words: expected at least 8, found {self.passage_words}")
        if self.workers < 0:
            raise ConfigError(f"workers: expected 0 or more, found {self.workers}")
        split_mirrors(self.wiki_base_url)
        for name in ("atlas_base_url", "datasets_base_url"):
            url = getattr(self, name)
            if "://" not in url and not (name == "datasets_base_url" and not url):
                raise ConfigError(f"{name}: expected a URL such as https://example.org, found {url!r}")
        if self.max_passages is not None and self.max_passages < 1:
            raise ConfigError(f"max_passages: expected at least 1, found {self.max_passages}")
        for name in ("num_shots", "num_test", "num_dev", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected 0 or more, found {getattr(self, name)}")
        if self.num_shots and self.shots:
            raise ConfigError(f"shots: expected either num_shots or shots, found {self.num_shots} and {self.shots!r}")
