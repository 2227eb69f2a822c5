"""What learns, and one update of it: reader loss, distillation loss, gradient, AdamW. No files, no search.

Shapes: `B` questions, `K` passages given to the reader, `R` passages retrieved (at least K), `T` target tokens, `D`
embedding size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5Attention

from ralm.errors import ConfigError
from ralm.log import progress
from ralm.objectives.divergence import retriever_scores
from ralm.objectives.reader_loss import reader_loss
from ralm.reader.encoded import EncodedPassages
from ralm.reader.fusion import FusionReader
from ralm.reader.prompts import PassageText
from ralm.retriever.embed import embed_texts
from ralm.retriever.encoder import Encoder
from ralm.training.config import TrainingConfig
from ralm.training.schedule import learning_rate_factor
from ralm.training.signal import Signal, passage_signal, retriever_loss

BETA1 = 0.9


@dataclass(frozen=True)
class Batch:
    """One update's questions with what was retrieved for them."""

    questions: list[str]
    targets: list[str]
    passages: Sequence[Sequence[PassageText]]
    """R passages for each question, the best first; none in closed-book training."""
    vectors: Tensor | None
    """Index vectors of the passages, `[B, R, D]`, for query-side training."""

    def split(self, size: int) -> Iterator[Batch]:
        """Parts of at most `size` questions, in order."""
        for start in range(0, len(self.questions), size):
            part = slice(start, start + size)
            vectors = None if self.vectors is None else self.vectors[part]
            yield Batch(self.questions[part], self.targets[part], self.passages[part], vectors)


@dataclass
class Timer:
    """Wall time of the parts of an update, added up."""

    elapsed_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside under this name."""
        started_at = time.perf_counter()
        yield
        self.elapsed_s[name] = self.elapsed_s.get(name, 0.0) + time.perf_counter() - started_at


class Learner:
    """Reader, encoders and optimiser of a run.

    Args:
        reader: learns unless `freeze_reader`; weights in fp32.
        question_encoder: learns in the modes `joint` and `query_side`; None in closed-book training.
        passage_encoder: learns in mode `joint`, where it may be the question encoder itself (tied); None in the others,
            which never compute with it.
        config: the settings.
        dtype: number format of matrix products.

    Raises:
        ConfigError: gradient checkpointing is asked of a kind of model that cannot do it.
    """

    def __init__(
        self,
        reader: FusionReader,
        question_encoder: Encoder | None,
        passage_encoder: Encoder | None,
        config: TrainingConfig,
        dtype: torch.dtype,
    ) -> None:
        self.reader, self.question_encoder, self.passage_encoder = reader, question_encoder, passage_encoder
        self.config, self.dtype, self.timer = config, dtype, Timer()
        reader_modules = nn.ModuleDict({"reader": reader.model})
        learning = {"question": question_encoder, "passage": passage_encoder} if config.trains_retriever else {}
        encoders = nn.ModuleDict({name: encoder for name, encoder in learning.items() if encoder is not None})
        for module in (reader.model, *encoders.values()):
            set_dropout(module, config.dropout)
        if config.gradient_checkpointing:
            for model in (reader.model, *(encoder.model for encoder in learning.values() if encoder is not None)):
                if not model.supports_gradient_checkpointing:
                    kind = model.config.model_type
                    raise ConfigError(
                        f"gradient_checkpointing: expected false, which is all that {kind} can, found true"
                    )
                model.activation_checkpointing_enable({"use_reentrant": False})
        reader.model.requires_grad_(not config.freeze_reader)
        learnt = {} if config.freeze_reader else dict(reader_modules.named_parameters())
        groups = {"reader": learnt, "retriever": dict(encoders.named_parameters())}
        self.weights: dict[str, nn.Parameter] = groups["reader"] | groups["retriever"]
        rates = {"reader": config.learning_rate, "retriever": config.retriever_learning_rate}
        self.optimizer = torch.optim.AdamW(
            [
                {"name": name, "params": list(group.values()), "lr": rates[name], "highest": rates[name]}
                for name, group in groups.items()
                if group
            ],
            betas=(BETA1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )

    @torch.no_grad()
    def embed_questions(self, questions: Sequence[str]) -> Tensor:
        """Question vectors `[B, D]` for the search, without dropout."""
        assert self.question_encoder is not None
        self.question_encoder.eval()
        with self.precision():
            return encode_questions(self.question_encoder, questions)

    @torch.no_grad()
    def embed_passages(self, passages: Sequence[PassageText], bar: progress | None = None) -> np.ndarray:
        """Passage vectors, float32 [N, D], by the passage encoder as it is now, without dropout.

        Only in mode `joint`; elsewhere the index holds what the passage encoder gives.

        Args:
            passages: N passages.
            bar: counts them.
        """
        encoder = self.passage_encoder
        assert encoder is not None
        encoder.eval()
        silent = progress(total=len(passages), what="embed", unit="passages")
        with self.precision():
            return embed_texts(
                encoder,
                passage_texts(encoder, passages),
                max_tokens=encoder.config.max_passage_tokens,
                bar=bar or silent,
            )

    def update(self, batch: Batch, step: int) -> dict[str, float | None]:
        """Make one update.

        Args:
            batch: the questions.
            step: number of the update, 0 for the first; sets learning rate and random numbers.

        Returns:
            The row of the training log.

        Raises:
            ConfigError: the gradient is not finite; nothing was changed.
        """
        torch.manual_seed(step_seed(self.config.seed, step))
        self._set_learning_rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        self._set_training(True)
        teaches = self.config.trains_retriever and step >= self.config.freeze_retriever_steps
        loss_of_reader, loss_of_retriever, statistics = self._accumulate(batch, teaches=teaches)
        with self.timer.part("update"):
            norm = float(nn.utils.clip_grad_norm_(self.weights.values(), self.config.clip_norm))
            if not math.isfinite(norm):
                raise ConfigError(
                    f"update {step + 1}: the gradient's length is {norm}, expected a finite number; "
                    "lower learning_rate or retriever_learning_rate"
                )
            self.optimizer.step()
        self._set_training(False)
        rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        return {
            "step": step + 1,
            "reader_loss": loss_of_reader,
            "retriever_loss": loss_of_retriever if teaches else None,
            "reader_learning_rate": rates.get("reader", 0.0),
            "retriever_learning_rate": rates.get("retriever"),
            "gradient_norm": norm,
            **statistics,
        }

    def _accumulate(self, batch: Batch, *, teaches: bool) -> tuple[float, float, dict[str, float]]:
        """Add up the gradients of the batch, `micro_batch_size` questions at a time.

        The weights make the sums the means of the whole batch: over target tokens for the reader, over questions for
        the retriever (over target tokens with EMDR2 by token).

        Returns:
            The batch's two losses and its attention statistics.
        """
        num_tokens = int((self.reader.tokenize_targets(batch.targets, batch.questions) >= 0).sum())
        reader_total, retriever_total = 0.0, 0.0
        statistics: dict[str, float] = {}
        for part in batch.split(self.config.micro_batch_size):
            label_BT = self.reader.tokenize_targets(part.targets, part.questions)
            share_of_tokens = int((label_BT >= 0).sum()) / num_tokens
            is_by_token = self.config.objective == "emdr2" and self.config.emdr2_level == "token"
            share = share_of_tokens if is_by_token else len(part.questions) / len(batch.questions)
            with self.precision():
                loss, signal = self._read(part, label_BT, teaches=teaches)
            loss = loss * share_of_tokens
            reader_total += loss.item()
            if signal is not None:
                distillation = self._distil(part, signal) * share
                retriever_total += distillation.item()
                loss = loss + distillation
                for name, value in signal.correlations.items():
                    statistics[name] = statistics.get(name, 0.0) + share * value
            with self.timer.part("backward"):
                loss.backward()
        return reader_total, retriever_total, statistics

    def _read(self, batch: Batch, label_BT: Tensor, *, teaches: bool) -> tuple[Tensor, Signal | None]:
        """Reader loss over the first K passages, and the reader's signal on all R for the retriever (no gradient)."""
        inputs = self.reader.tokenize_inputs(batch.questions, batch.passages)
        first = [of_question[: self.config.num_passages] for of_question in inputs]
        with torch.set_grad_enabled(not self.config.freeze_reader):
            with self.timer.part("encode"):
                encoded = self.reader.encode(first)
            with self.timer.part("forward"):
                loss = reader_loss(self.reader.fusion_logits(encoded, label_BT), label_BT)
        if not teaches:
            return loss, None
        with self.timer.part("score"), torch.no_grad():
            rest = [of_question[self.config.num_passages :] for of_question in inputs]
            if self.config.score_pass == "eval":
                self.reader.eval()
                encoded = self.reader.encode(first)
            parts = [encoded.detach()] + ([self.reader.encode(rest)] if rest[0] else [])
            self.reader.eval()
            signal = passage_signal(self.reader, EncodedPassages.join(parts), label_BT, batch.questions, self.config)
            self.reader.train(not self.config.freeze_reader)
        return loss, signal

    def _distil(self, batch: Batch, signal: Signal) -> Tensor:
        """The retriever's loss, with gradient into the encoders that learn."""
        assert self.question_encoder is not None
        with self.timer.part("retriever_forward"), self.precision():
            question_BD = encode_questions(self.question_encoder, batch.questions)
            if self.passage_encoder is None:
                passage_BRD = batch.vectors
                assert passage_BRD is not None
            else:
                passage_BRD = encode_passages(self.passage_encoder, batch.passages)
        return retriever_loss(retriever_scores(question_BD.float(), passage_BRD.float()), signal, self.config)

    def precision(self) -> torch.autocast:
        """Number format of matrix products inside."""
        return torch.autocast(self.reader.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _set_training(self, is_training: bool) -> None:
        learning = [self.question_encoder, self.passage_encoder] if self.config.trains_retriever else []
        self.reader.train(is_training and not self.config.freeze_reader)
        for encoder in learning:
            if encoder is not None:
                encoder.train(is_training)

    def _set_learning_rate(self, step: int) -> None:
        factor = learning_rate_factor(
            step,
            schedule=self.config.schedule,
            warmup_steps=self.config.warmup_steps,
            total_steps=self.config.num_steps,
            floor_ratio=self.config.floor_ratio,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * factor


def encode_questions(encoder: Encoder, questions: Sequence[str]) -> Tensor:
    """Question vectors `[B, D]`, with gradient where it is on."""
    texts = [encoder.config.format_question(question) for question in questions]
    return encoder(*encoder.pad(encoder.tokenize(texts, encoder.config.max_question_tokens)))


def encode_passages(encoder: Encoder, passages: Sequence[Sequence[PassageText]]) -> Tensor:
    """Passage vectors `[B, R, D]`, with gradient where it is on; every question has R passages."""
    texts = passage_texts(encoder, [passage for of_question in passages for passage in of_question])
    vector_ND = encoder(*encoder.pad(encoder.tokenize(texts, encoder.config.max_passage_tokens)))
    return vector_ND.unflatten(0, (len(passages), len(passages[0])))


def passage_texts(encoder: Encoder, passages: Sequence[PassageText]) -> list[str]:
    """What the passage encoder is given."""
    return [encoder.config.format_passage(passage.title, passage.section, passage.text) for passage in passages]


def set_dropout(module: nn.Module, rate: float) -> None:
    """Set the rate of every dropout layer, and of T5's attention, which keeps its rate as a number."""
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = rate
        elif isinstance(layer, T5Attention):
            layer.dropout = rate


def step_seed(seed: int, step: int) -> int:
    """Seed of the random numbers of one update, so that no generator state has to be kept."""
    return (seed * 1_000_003 + step) % 2**63
