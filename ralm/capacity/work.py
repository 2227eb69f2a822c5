"""Floating-point operations of embedding and training, and hours from the speed of a device.

A multiplication and an addition count as two operations. Symbols: `D` model size, `I` heads x size of a head, `F`
feed-forward size, `V` vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from ralm.capacity.architecture import EncoderShape, Models, ReaderShape
from ralm.training.config import TrainingConfig
from ralm.training.refresh_schedule import parse_refresh_schedule

PASSAGE_TOKENS: Final = 125
"""Of the encoder's vocabulary in a passage with title and section, mean of the slices in `docs/planning.md`."""
INPUT_TOKENS: Final = 137
"""Of the reader's vocabulary in the same, without the question."""
QUESTION_TOKENS: Final = 23
"""Of either in a question with Atlas' format."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """How fast a device computes."""

    peak_tflops: Mapping[str, float]
    """10^12 operations a second in dense matrix products, by number format."""
    embedding_efficiency: float
    """Part of the peak that useful operations of embedding reach."""
    training_efficiency: float
    is_gpu: bool = True


_HOPPER: Final = {"bf16": 989.0, "fp16": 989.0, "fp32": 67.0}
DEVICES: Final[Mapping[str, Device]] = {
    "v100": Device(peak_tflops={"fp16": 125.0, "fp32": 15.7}, embedding_efficiency=0.3, training_efficiency=0.25),
    "a100": Device(
        peak_tflops={"bf16": 312.0, "fp16": 312.0, "fp32": 19.5}, embedding_efficiency=0.3, training_efficiency=0.25
    ),
    "h100": Device(peak_tflops=_HOPPER, embedding_efficiency=0.3, training_efficiency=0.25),
    "h200": Device(peak_tflops=_HOPPER, embedding_efficiency=0.3, training_efficiency=0.25),
    "cpu": Device(
        peak_tflops={"bf16": 0.82, "fp32": 0.18}, embedding_efficiency=0.55, training_efficiency=0.4, is_gpu=False
    ),
}
"""Speeds that hours are estimated with; where they are from is in `docs/planning.md`."""


def embedding_flops(shape: EncoderShape, max_tokens: int) -> float:
    """Operations for the vector of one passage of mean length."""
    return encoder_flops(shape, min(PASSAGE_TOKENS, max_tokens))


def encoder_flops(shape: EncoderShape, tokens: int) -> float:
    """A BERT's forward pass over one text.

    Example:
        >>> from ralm.capacity.architecture import BERT_BASE
        >>> round(encoder_flops(BERT_BASE, 110) / 1e9, 1)  # billions
        19.1
    """
    size = shape.model_size
    return tokens * shape.num_layers * (8 * size * size + 4 * size * shape.feed_forward + 4 * tokens * size)


def reader_flops(shape: ReaderShape, tokens: int) -> float:
    """The forward pass of T5's encoder over one input."""
    inner = shape.attention_size
    weights = 4 * shape.model_size * inner + shape.feed_forward_weights
    return tokens * shape.num_layers * (2 * weights + 4 * tokens * inner)


def decoder_flops(shape: ReaderShape, targets: int, sources: int) -> float:
    """The forward pass of T5's decoder over `targets` tokens that attend to `sources` tokens, and the logits."""
    product = shape.model_size * shape.attention_size
    per_target = 2 * (6 * product + shape.feed_forward_weights) + 4 * (targets + sources) * shape.attention_size
    layers = shape.num_decoder_layers * (targets * per_target + sources * 4 * product)
    return layers + 2 * targets * shape.model_size * shape.vocabulary


def update_flops(config: TrainingConfig, models: Models, *, passages: int, question_tokens: int) -> float:
    """Operations of one update, for all devices together, with inputs of mean length and targets of full length.

    A backward pass costs twice the forward pass, gradient checkpointing one more forward pass.

    Args:
        config: of the training.
        models: shapes and lengths.
        passages: searched in.
        question_tokens: in a question.
    """
    reader, encoder = models.reader, models.encoder
    num_read = 1 if config.closed_book else config.num_passages
    num_scored = max(num_read, config.num_scored)
    tokens = min(models.max_input_tokens, question_tokens + (0 if config.closed_book else INPUT_TOKENS))
    targets = models.max_target_tokens
    learning = 4 if config.gradient_checkpointing else 3
    read = num_read * reader_flops(reader, tokens)
    total = (1 if config.freeze_reader else learning) * (read + decoder_flops(reader, targets, num_read * tokens))
    question = encoder_flops(encoder, min(models.max_question_tokens, question_tokens))
    passage = embedding_flops(encoder, models.max_passage_tokens)
    if config.retrieves:
        total += question + 2 * passages * encoder.model_size + config.num_reranked * passage
    if config.trains_retriever:
        total += (num_scored - num_read) * reader_flops(reader, tokens) + (read if config.score_pass == "eval" else 0)
        total += _score_flops(config, reader, num_scored, tokens, targets)
        total += learning * (question + (num_scored * passage if config.mode == "joint" else 0))
    return config.batch_size * total


def num_refreshes(config: TrainingConfig) -> int:
    """How often the index is made anew."""
    first = config.freeze_retriever_steps + 1  # until then the index is that of the encoder
    count = 0
    for due in parse_refresh_schedule(config.refresh_schedule):
        stop = config.num_steps if due.stop is None else min(due.stop, config.num_steps)
        before = -(-max(0, first - due.start) // due.rate)
        count += max(0, -(-(stop - due.start) // due.rate) - before)
    return count


def _score_flops(config: TrainingConfig, shape: ReaderShape, passages: int, tokens: int, targets: int) -> float:
    """What the reader says of `passages` passages."""
    if config.objective == "loop":  # one decoder pass over as many targets as passages
        return decoder_flops(shape, passages * targets, passages * tokens)
    if config.objective == "adist":
        return decoder_flops(shape, targets, passages * tokens)
    return passages * decoder_flops(shape, targets, tokens)
