"""Settings for putting a model together from a retriever and a reader."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ralm.errors import ConfigError
from ralm.reader.config import ReaderConfig
from ralm.retriever.config import RetrieverSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """How the two halves of a retriever and the reader are to be used."""

    question_encoder: str = ""
    """Source of a question encoder of its own (DPR); empty: questions and passages share one encoder."""
    retriever: RetrieverSettings = RetrieverSettings()
    """Formats, lengths and pooling of the retriever."""
    reader: ReaderConfig = ReaderConfig()
    """Formats and lengths of the reader."""
    preset: Literal["auto", "none"] = "auto"
    """`auto`: with an Atlas checkpoint, formats and lengths that are left at their defaults become Atlas' own; `none`:
    all settings are taken as they are."""

    def __post_init__(self) -> None:
        """Check the choice."""
        if self.preset not in ("auto", "none"):
            raise ConfigError(f"model.preset: expected auto or none, found {self.preset!r}")
