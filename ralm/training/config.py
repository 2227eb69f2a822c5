"""Settings of training: what learns, from how much, how fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ralm.errors import ConfigError
from ralm.objectives.config import Emdr2Level, Objective, Reduction
from ralm.training.refresh_schedule import NEVER, parse_refresh_schedule

Mode = Literal["joint", "query_side", "reader_only"]
Schedule = Literal["linear", "cosine", "constant"]
TargetChoice = Literal["first", "random"]
ScorePass = Literal["reuse", "eval"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
Sharding = Literal["none", "gradients"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the reader and the retriever learn from questions with answers, with retrieval in the loop."""

    mode: Mode = "query_side"
    """What learns beside the reader: `joint` both encoders (the index has to be built again afterwards), `query_side`
    the question encoder alone (the index stays valid), `reader_only` neither."""

    freeze_reader: bool = False
    """Keep the reader as it is: the retriever alone learns, from the reader's signal; not with mode `reader_only`."""

    freeze_retriever_steps: int = 0
    """Updates at the start in which the retriever does not learn."""

    objective: Objective = "pdist"
    """What the reader tells the retriever of each passage: `pdist` (perplexity distillation) how likely it makes the
    target; `loop` (leave one out) how much less likely the target is without it; `adist` (attention distillation) how
    much the reader attends to it; `emdr2` the likelihood of the target, summed over the passages."""

    emdr2_level: Emdr2Level = "sequence"
    """Where `emdr2` sums over passages: the likelihood of the whole `sequence` (the paper's form) or of each `token`
    (that of Atlas' code)."""

    closed_book: bool = False
    """Give the reader the bare question, without passages; only with mode `reader_only`."""

    file_passages: bool = False
    """Give the reader the passages that the questions bring along instead of searching; only with mode
    `reader_only`."""

    num_steps: int = 60
    """Number of updates; 0 leaves the model as it is."""

    batch_size: int = 4
    """Questions in one update."""

    micro_batch_size: int = 2
    """Questions computed at a time; the gradients of a batch are added up. Smaller takes less memory."""

    num_passages: int = 10
    """Passages that the reader gets for one question (K)."""

    num_retrieved: int | Literal["auto"] = "auto"
    """Passages that are retrieved and scored for one question, at least `num_passages` (auto: as many): the reader
    learns from the best of them, the retriever from all."""

    overretrieve_ratio: int = 2
    """How many times more passages are searched for at first where a question's own source is left out (mlm, lm,
    section). It changes the time, not the result."""

    num_reranked: int = 0
    """Passages that are searched for with the index at hand and scored again with the passage encoder as it is now;
    the best `num_retrieved` of them are used. 0: no reranking; only with mode `joint`."""

    refresh_schedule: str = NEVER
    """Before which updates the whole index is made anew with the passage encoder as it is then: `-1` never, `500` every
    500 updates, `0-1000:500,1000-10000:2000` by half-open ranges of updates, counted from 0; only with mode `joint`."""

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

    adam_beta2: float = 0.999
    """Decay of AdamW's second moment."""

    adam_epsilon: float = 1e-6
    """What AdamW adds to the root of the second moment."""

    clip_norm: float = 1.0
    """Longest gradient, over all weights together; longer ones are scaled down."""

    dropout: float = 0.1
    """Dropout rate of the reader and of the encoders that learn."""

    temperature_score: float = 0.01
    """Divides the retriever's scores before its softmax."""

    temperature_gold: float | Literal["auto"] = "auto"
    """Divides the reader's scores before their softmax (with `emdr2`: the reader's logits before theirs). auto: 0.01,
    with `emdr2` 1."""

    reduction: Reduction = "elementmean"
    """Mean of the retriever's loss: over questions (`batchmean`) or over questions and passages (`elementmean`, that of
    the published Atlas recipes)."""

    score_pass: ScorePass = "reuse"
    """Encoder states behind the reader's scores: `reuse` those of the loss (with dropout), or `eval` for a second pass
    without dropout."""

    target_choice: TargetChoice = "first"
    """Which answer is learnt where a question has no target of its own: the `first`, or a `random` one each time."""

    precision: Precision = "auto"
    """Number format of matrix products: `auto` takes bf16 where the hardware has it; `fp16` scales the loss so that
    small gradients survive, and computes an update again with a lower scale where they overflow. Weights stay fp32."""

    sharding: Sharding = "none"
    """What several processes share: `none`: each holds all weights, gradients and optimiser state; `gradients`: weights
    in fp32, gradients and optimiser state are split over the processes (ZeRO-2), the weights come together for an
    update. It changes memory and time, and in bf16 the rounding: the sums between layers are then bf16 too."""

    retrieve_ahead: bool = False
    """Search for the next update's passages while the present one is computed. The question encoder is then one update
    older than without; where it does not learn that is no difference, and the search is ahead anyway."""

    gradient_checkpointing: bool = False
    """Compute the states of reader and encoders again in the backward pass instead of keeping them: less memory, more
    time."""

    attention_statistics: bool = False
    """Log how the reader's scores of the passages correlate with each way to sum up its cross-attention."""

    evaluate_every_steps: int = 0
    """Ask questions that are not learnt every so many updates and log the metrics; 0: never."""

    checkpoint_every_steps: int = 20
    """A killed run goes on from the last multiple of this."""

    seed: int = 0
    """Seed of data order, dropout and choice of answers."""

    def __post_init__(self) -> None:
        """Check ranges and contradictions."""
        for name in ("batch_size", "micro_batch_size", "num_passages", "checkpoint_every_steps"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        self._check("overretrieve_ratio", self.overretrieve_ratio >= 1, "at least 1")
        self._check("temperature_gold", self.gold_temperature > 0, "auto or a positive number")
        for name in ("temperature_score", "clip_norm"):
            self._check(name, getattr(self, name) > 0, "a positive number")
        for name in ("learning_rate", "retriever_learning_rate", "weight_decay", "warmup_steps", "seed"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        for name in ("num_steps", "freeze_retriever_steps", "evaluate_every_steps"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        self._check("adam_beta2", 0 <= self.adam_beta2 < 1, "at least 0 and below 1")
        self._check("adam_epsilon", self.adam_epsilon > 0, "a positive number")
        self._check("floor_ratio", 0 <= self.floor_ratio <= 1, "0 to 1")
        self._check("dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        self._check(
            "num_retrieved", self.num_scored >= self.num_passages, f"num_passages ({self.num_passages}) or more"
        )
        self._check_modes()

    def _check_modes(self) -> None:
        leaves_out = self.objective == "loop" and self.trains_retriever
        self._check("objective", not leaves_out or self.num_scored >= 2, "another than loop with one passage")
        for name in ("closed_book", "file_passages"):
            self._check(name, not getattr(self, name) or self.mode == "reader_only", "false unless mode is reader_only")
        self._check("file_passages", not (self.file_passages and self.closed_book), "false where closed_book is true")
        self._check(
            "freeze_retriever_steps",
            not (self.freeze_reader and self.freeze_retriever_steps),
            "0 where the reader is frozen",
        )
        self._check("freeze_reader", not self.freeze_reader or self.trains_retriever, "false if mode is reader_only")
        self._check(
            "num_reranked",
            self.num_reranked == 0 or (self.mode == "joint" and self.num_reranked >= self.num_scored),
            f"0, or with mode joint num_retrieved ({self.num_scored}) or more",
        )
        for name in ("num_reranked", "attention_statistics"):
            is_fine = not (self.retrieve_ahead and getattr(self, name))
            self._check("retrieve_ahead", is_fine, f"false where {name} is set")
        due = parse_refresh_schedule(self.refresh_schedule)
        self._check("refresh_schedule", not due or self.mode == "joint", "-1 unless mode is joint")

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

    @property
    def retrieves(self) -> bool:
        """True if passages are searched for."""
        return not (self.closed_book or self.file_passages)

    @property
    def gold_temperature(self) -> float:
        """`temperature_gold` as a number."""
        if self.temperature_gold == "auto":
            return 1.0 if self.objective == "emdr2" else 0.01
        return self.temperature_gold
