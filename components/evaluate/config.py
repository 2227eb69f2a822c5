"""Settings of the evaluate stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ralm.errors import ConfigError
from ralm.reader.config import GenerationConfig
from ralm.tasks.config import TaskConfig

CUTOFFS = (1, 5, 10, 20, 50)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which questions are asked, with which passages, and at which ranks retrieval is measured."""

    split: str = "test"
    """Table of the questions artifact: train, dev or test."""

    max_questions: int | None = None
    """Ask only the first ones; all by default."""

    closed_book: bool = False
    """Ask the reader without passages; passages and index are then not used."""

    file_passages: bool = False
    """Give the reader the passages that come with each question; passages and index are then not used."""

    retrieve_only: bool = False
    """Retrieve and measure recall without a reader; predictions are empty."""

    num_passages: int | Literal["auto"] = "auto"
    """Passages the reader gets for one question; auto: as many as its own configuration says."""

    num_reranked: int = 0
    """Passages that are searched for, scored again with the model's passage encoder and cut to the best; 0: the order
    of the search is kept. The index may then be older than the encoder."""

    overretrieve_ratio: int = 2
    """How many times more passages are searched for at first where a question's own source must be left out."""

    max_input_tokens: int | Literal["auto"] = "auto"
    """Longest reader input for one passage, in tokens; auto: as the model's own configuration says."""

    recall_at: tuple[int, ...] | Literal["auto"] = "auto"
    """Cut-offs k of recall at k, each at most the number of passages in the corpus; auto: 1, 5, 10, 20 and 50, as far
    as the corpus goes."""

    task: TaskConfig = field(default_factory=TaskConfig)
    """How rows are asked, where the task leaves a choice."""

    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """How answers are searched for."""

    batch_size: int = 16
    """Questions read at a time."""

    max_batch_tokens: int = 65_536
    """Reader input tokens at a time (questions x passages x longest input); makes batches smaller, never empty."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of both models; auto: bf16 where the hardware has it, else fp32."""

    seed: int = 0
    """Seed of what a task leaves to chance (the gaps of masked texts)."""

    def __post_init__(self) -> None:
        sizes = (
            "max_questions",
            "num_passages",
            "max_input_tokens",
            "overretrieve_ratio",
            "batch_size",
            "max_batch_tokens",
        )
        for name in sizes:
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"{name}: expected at least 1, found {value}")
        for name in ("num_reranked", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected at least 0, found {getattr(self, name)}")
        if self.recall_at != "auto":
            is_fine = self.recall_at and min(self.recall_at) >= 1 and len(set(self.recall_at)) == len(self.recall_at)
            if not is_fine:
                found = list(self.recall_at)
                raise ConfigError(f"recall_at: expected auto or different numbers of at least 1, found {found}")
        if not self.split:
            raise ConfigError("split: expected the name of a table, found an empty text")
        modes = [name for name in ("closed_book", "file_passages", "retrieve_only") if getattr(self, name)]
        if len(modes) > 1:
            raise ConfigError(f"{modes[0]}: expected false where {modes[1]} is true, found true")

    @property
    def retrieves(self) -> bool:
        """True if passages are searched for."""
        return not (self.closed_book or self.file_passages)

    def cutoffs(self, corpus_passages: int | None) -> list[int]:
        """`recall_at` as numbers, ascending; none in closed book.

        Args:
            corpus_passages: size of the corpus, None where nothing is searched.
        """
        if self.closed_book:
            return []
        if self.recall_at != "auto":
            return sorted(self.recall_at)
        return [k for k in CUTOFFS if corpus_passages is None or k <= corpus_passages]
