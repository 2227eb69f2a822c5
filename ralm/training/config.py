"""Settings of training: what learns, from how much, how fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ralm.errors import ConfigError
from ralm.objectives.config import Reduction

Mode = Literal["joint", "query_side", "reader_only"]
Schedule = Literal["linear", "cosine", "constant"]
TargetChoice = Literal["first", "random"]
ScorePass = Literal["reuse", "eval"]
Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the reader and the retriever learn from questions with answers, with retrieval in the loop."""

    mode: Mode = "query_side"
    """What learns beside the reader: `joint` both encoders (the index has to be built again afterwards), `query_side`
    the question encoder alone (the index stays valid), `reader_only` neither."""

    closed_book: bool = False
    """Give the reader the bare question, without passages; only with mode `reader_only`."""

    num_steps: int = 60
    """Number of updates."""

    batch_size: int = 4
    """Questions in one update."""

    micro_batch_size: int = 2
    """Questions computed at a time; the gradients of a batch are added up. Smaller takes less memory."""

    num_passages: int = 10
    """Passages that the reader gets for one question (K)."""

    num_retrieved: int | Literal["auto"] = "auto"
    """Passages that are retrieved and scored for one question, at least `num_passages` (auto: as many): the reader
    learns from the best of them, the retriever from all."""

    learning_rate: float = 4e-5
    """Highest learning rate of the reader."""

    retriever_learning_rate: float = 4e-5
    """Highest learning rate of the retriever."""

    schedule: Schedule = "linear"
    """How the learning rate falls after the warm-up."""

    warmup_steps: int = 5
    """Updates in which the learning rate rises to its highest value."""

    floor_ratio: float = 0.1
    """Where `linear` and `cosine` end, as a part of the highest learning rate."""

    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW, on every weight."""

    clip_norm: float = 1.0
    """Longest gradient, over all weights together; longer ones are scaled down."""

    dropout: float = 0.1
    """Dropout rate of the reader and of the encoders that learn."""

    temperature_score: float = 0.01
    """Divides the retriever's scores before its softmax."""

    temperature_gold: float = 0.01
    """Divides the reader's scores before their softmax."""

    reduction: Reduction = "elementmean"
    """Mean of the retriever's loss: over questions (`batchmean`) or over questions and passages (`elementmean`, that of
    the published Atlas recipes)."""

    score_pass: ScorePass = "reuse"
    """Encoder states behind the reader's scores: `reuse` those of the loss (with dropout), or `eval` for a second pass
    without dropout."""

    target_choice: TargetChoice = "first"
    """Which answer is learnt where a question has no target of its own: the `first`, or a `random` one each time."""

    precision: Precision = "auto"
    """Number format of matrix products: `auto` takes bf16 where the hardware has it. Weights stay in fp32."""

    gradient_checkpointing: bool = False
    """Compute the reader's states again in the backward pass instead of keeping them: less memory, more time."""

    checkpoint_every_steps: int = 20
    """A killed run goes on from the last multiple of this."""

    seed: int = 0
    """Seed of data order, dropout and choice of answers."""

    def __post_init__(self) -> None:
        """Check ranges and contradictions."""
        for name in ("num_steps", "batch_size", "micro_batch_size", "num_passages", "checkpoint_every_steps"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("temperature_score", "temperature_gold", "clip_norm"):
            self._check(name, getattr(self, name) > 0, "a positive number")
        for name in ("learning_rate", "retriever_learning_rate", "weight_decay", "warmup_steps", "seed"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        self._check("floor_ratio", 0 <= self.floor_ratio <= 1, "0 to 1")
        self._check("dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        self._check(
            "num_retrieved", self.num_scored >= self.num_passages, f"num_passages ({self.num_passages}) or more"
        )
        self._check(
            "closed_book", not self.closed_book or self.mode == "reader_only", "false unless mode is reader_only"
        )

    def _check(self, name: str, is_fine: bool, expected: str) -> None:
        if not is_fine:
            raise ConfigError(f"{name}: expected {expected}, found {getattr(self, name)}")

    @property
    def trains_retriever(self) -> bool:
        """True if an encoder learns."""
        return self.mode != "reader_only"

    @property
    def num_scored(self) -> int:
        """Passages that are retrieved for one question."""
        return self.num_passages if self.num_retrieved == "auto" else self.num_retrieved
