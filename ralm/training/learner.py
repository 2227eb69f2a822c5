"""What learns, and one update of it: reader loss, distillation loss, gradient, AdamW. No files, no search.

Where several processes learn together, each is given its own questions of the batch; losses and gradients are those of
the whole batch in all of them.

Shapes: `B` questions, `K` passages given to the reader, `R` passages retrieved (at least K), `T` target tokens, `D`
embedding size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5Attention

from ralm.distributed import ALONE, World
from ralm.errors import ConfigError
from ralm.log import progress
from ralm.objectives.divergence import retriever_scores
from ralm.objectives.reader_loss import reader_loss
from ralm.reader.encoded import EncodedPassages
from ralm.reader.fusion import FusionReader
from ralm.reader.prompts import PassageText
from ralm.retriever.embed import embed_texts, length_batches
from ralm.retriever.encoder import Encoder
from ralm.training.batch import Batch, Tokens, passage_texts, question_tokens
from ralm.training.config import TrainingConfig
from ralm.training.cpu_layers import make_dense, speed_up
from ralm.training.parallel import Parallel, SplitWeights, WholeWeights, whole
from ralm.training.precision import LossScale
from ralm.training.schedule import learning_rate_factor
from ralm.training.signal import Signal, passage_signal, retriever_loss

BETA1 = 0.9
GROUP_TOKENS = {"cuda": 16384, "cpu": 2048}
"""Tokens, padding included, of texts that an encoder computes at a time in an update. Fewer need less padding."""


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
        world: the processes that learn together.

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
        world: World = ALONE,
    ) -> None:
        self.reader, self.question_encoder, self.passage_encoder = reader, question_encoder, passage_encoder
        self.config, self.dtype, self.timer, self.world = config, dtype, Timer(), world
        self.loss_scale = LossScale() if dtype == torch.float16 else None
        learning = {"question": question_encoder, "passage": passage_encoder} if config.trains_retriever else {}
        encoders = nn.ModuleDict({name: encoder for name, encoder in learning.items() if encoder is not None})
        self._encoder_models = list({id(encoder): encoder.model for encoder in encoders.values()}.values())
        self._reader_models = [] if config.freeze_reader else [reader.model]
        for module in (reader.model, *encoders.values()):
            set_dropout(module, config.dropout)
        if reader.device.type == "cpu":
            for model in (reader.model, *self._encoder_models):
                speed_up(model, sparse=config.sharding == "none")
        if config.gradient_checkpointing:
            for model in (reader.model, *self._encoder_models):
                keep_few_states(model)
        reader.model.requires_grad_(not config.freeze_reader)
        models = [*self._reader_models, *self._encoder_models]
        self.parallel: Parallel = (
            WholeWeights(world) if config.sharding == "none" else SplitWeights(world, models, dtype, reader.device)
        )
        self._reader_modules = list(reader.modules())
        learnt = {} if config.freeze_reader else dict(nn.ModuleDict({"reader": reader.model}).named_parameters())
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
        encoder = self.question_encoder
        assert encoder is not None
        if not questions:
            return torch.empty((0, encoder.dimension))
        encoder.eval()
        with self.precision():
            return encode(encoder, question_tokens(encoder, questions))

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

    def tokenize(self, batch: Batch) -> Batch:
        """The batch in parts of `micro_batch_size` questions with their tokens, for `update`."""
        learns = self.config.trains_retriever
        return batch.cut(
            self.config.micro_batch_size,
            reader=self.reader,
            question_encoder=self.question_encoder if learns else None,
            passage_encoder=self.passage_encoder if learns else None,
        )

    def update(self, batch: Batch, step: int) -> dict[str, float | None]:
        """Make one update.

        Args:
            batch: the questions of this process; none if it has fewer parts than there are processes.
            step: number of the update, 0 for the first; sets learning rate and random numbers.

        Returns:
            The row of the training log.

        Raises:
            ConfigError: the gradient is not finite; nothing was changed.
        """
        batch = batch if batch.parts else self.tokenize(batch)
        self._set_learning_rate(step)
        teaches = self.config.trains_retriever and step >= self.config.freeze_retriever_steps
        while True:
            losses, norm = self._gradient(batch, step, teaches=teaches)
            if math.isfinite(norm):
                break
            if self.loss_scale is None or not self.loss_scale.lower():
                raise ConfigError(
                    f"update {step + 1}: the gradient's length is {norm}, expected a finite number; "
                    "lower learning_rate or retriever_learning_rate"
                )
        with self.timer.part("update"):
            self.optimizer.step()
        if self.loss_scale is not None:
            self.loss_scale.count()
        rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        return {
            "step": step + 1,
            "retriever_loss": None,
            "reader_learning_rate": rates.get("reader", 0.0),
            "retriever_learning_rate": rates.get("retriever"),
            "gradient_norm": norm,
            **losses,
        }

    def _gradient(self, batch: Batch, step: int, *, teaches: bool) -> tuple[dict[str, float], float]:
        """The clipped gradient of all processes' questions.

        Returns:
            Losses and attention statistics of the whole batch, and the gradient's length before clipping.
        """
        torch.manual_seed(step_seed(self.config.seed, step, self.world.rank))
        self.optimizer.zero_grad(set_to_none=True)
        self._set_training(True)
        with self.parallel.together():
            losses = self.world.sum(self._accumulate(batch, teaches=teaches))
            make_dense(self.weights.values())
            learning = [*self._reader_models, *(self._encoder_models if teaches else [])]
            with self.timer.part("exchange"):
                self.parallel.add_up(learning)
        self._set_training(False)
        with self.timer.part("update"):
            if self.loss_scale is not None:
                self.loss_scale.take_off(self.weights.values())
            norm = whole(nn.utils.clip_grad_norm_(self.weights.values(), self.config.clip_norm))
        return losses, float(norm)

    def _accumulate(self, batch: Batch, *, teaches: bool) -> dict[str, float]:
        """Add up the gradients of this process' questions, `micro_batch_size` at a time.

        The weights make the sums over parts and processes the means of the whole batch: over target tokens for the
        reader, over questions for the retriever (over target tokens with EMDR2 by token).

        Returns:
            This process' share of the two losses and of the attention statistics.
        """
        own = {"tokens": sum(tokens.num_targets for _, tokens in batch.parts), "questions": len(batch)}
        whole_batch = self.world.sum(own)
        is_by_token = self.config.objective == "emdr2" and self.config.emdr2_level == "token"
        factor = self.parallel.loss_factor * (1.0 if self.loss_scale is None else self.loss_scale.value)
        sums: dict[str, float] = {}

        def add(name: str, value: float) -> None:
            sums[name] = sums.get(name, 0.0) + value

        for part, tokens in batch.parts:
            share_of_tokens = tokens.num_targets / whole_batch["tokens"]
            share = share_of_tokens if is_by_token else len(part) / whole_batch["questions"]
            with self.precision():
                loss, signal = self._read(part, tokens, teaches=teaches)
            loss = loss * share_of_tokens
            add("reader_loss", loss.item())
            if signal is not None:
                distillation = self._distil(part, tokens, signal) * share
                add("retriever_loss", distillation.item())
                loss = loss + distillation
                for name, value in signal.correlations.items():
                    add(name, share * value)
            with self.timer.part("backward"):
                (loss * factor).backward()
        return sums

    def _read(self, batch: Batch, tokens: Tokens, *, teaches: bool) -> tuple[Tensor, Signal | None]:
        """Reader loss over the first K passages, and the reader's signal on all R for the retriever (no gradient)."""
        label_BT = tokens.labels
        first = [of_question[: self.config.num_passages] for of_question in tokens.inputs]
        with torch.set_grad_enabled(not self.config.freeze_reader):
            with self.timer.part("encode"):
                encoded = self.reader.encode(first)
            with self.timer.part("forward"):
                loss = reader_loss(self.reader.fusion_logits(encoded, label_BT), label_BT)
        if not teaches:
            return loss, None
        with self.timer.part("score"), torch.no_grad():
            rest = [of_question[self.config.num_passages :] for of_question in tokens.inputs]
            if self.config.score_pass == "eval":
                self._set_reader_training(False)
                encoded = self.reader.encode(first)
            parts = [encoded.detach()] + ([self.reader.encode(rest)] if rest[0] else [])
            self._set_reader_training(False)
            signal = passage_signal(self.reader, EncodedPassages.join(parts), label_BT, batch.questions, self.config)
            self._set_reader_training(not self.config.freeze_reader)
        return loss, signal

    def _distil(self, batch: Batch, tokens: Tokens, signal: Signal) -> Tensor:
        """The retriever's loss, with gradient into the encoders that learn."""
        assert self.question_encoder is not None
        with self.timer.part("retriever_forward"), self.precision():
            question_BD = encode(self.question_encoder, tokens.questions)
            if self.passage_encoder is None:
                passage_BRD = batch.vectors
                assert passage_BRD is not None
            else:
                passage_BRD = encode(self.passage_encoder, tokens.passages).unflatten(0, (len(batch), -1))
        return retriever_loss(retriever_scores(question_BD.float(), passage_BRD.float()), signal, self.config)

    def precision(self) -> torch.autocast:
        """Number format of matrix products inside."""
        is_low = self.dtype != torch.float32
        return torch.autocast(self.reader.device.type, dtype=self.dtype if is_low else torch.bfloat16, enabled=is_low)

    def _set_training(self, is_training: bool) -> None:
        learning = [self.question_encoder, self.passage_encoder] if self.config.trains_retriever else []
        self._set_reader_training(is_training and not self.config.freeze_reader)
        for encoder in learning:
            if encoder is not None:
                encoder.train(is_training)

    def _set_reader_training(self, is_training: bool) -> None:
        """`train` of the reader, several times in an update; past `nn.Module`, whose way takes 4 ms with a T5 base."""
        for module in self._reader_modules:
            vars(module)["training"] = is_training

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


def encode(encoder: Encoder, tokens: Sequence[np.ndarray]) -> Tensor:
    """Vectors `[N, D]` of N texts, with gradient where it is on; those of similar length are computed together."""
    length_N = np.fromiter((len(row) for row in tokens), dtype=np.int64, count=len(tokens))
    groups = list(length_batches(length_N, GROUP_TOKENS["cuda" if encoder.device.type == "cuda" else "cpu"]))
    vector_ND = torch.cat([encoder(*encoder.pad([tokens[row] for row in group])) for group in groups])
    back_N = torch.from_numpy(np.argsort(np.concatenate(groups))).to(vector_ND.device)
    return vector_ND.index_select(0, back_N)


def keep_few_states(model: Any) -> None:
    """Compute the states of a model's layers again in the backward pass.

    Raises:
        ConfigError: this kind of model cannot do it.
    """
    if not model.supports_gradient_checkpointing:
        kind = model.config.model_type
        raise ConfigError(f"gradient_checkpointing: expected false, which is all that {kind} can, found true")
    model.activation_checkpointing_enable({"use_reentrant": False})


def set_dropout(module: nn.Module, rate: float) -> None:
    """Set the rate of every dropout layer, and of T5's attention, which keeps its rate as a number."""
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = rate
        elif isinstance(layer, T5Attention):
            layer.dropout = rate


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of the random numbers of one update in one process, so that no generator state has to be kept."""
    return (seed * 1_000_003 + step + rank * 2**40) % 2**63
