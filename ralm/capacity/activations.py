"""Bytes that are kept for the backward pass, counted tensor by tensor as the models of `transformers` 5 save them.

The residual stream and what T5's norm makes of it stay in fp32; the input of a matrix product is copied to the compute
format for each product; each elementwise operation keeps what its derivative needs. `docs/planning.md` lists the terms,
`tests/ralm/capacity/test_activations.py` compares them with the real tensors.

Symbols: `D` model size, `I` heads x size of a head, `F` feed-forward size, `H` heads, `L` tokens of an input, `T`
target tokens, `c` bytes of the compute format (2 or 4).
"""

from __future__ import annotations

import dataclasses
from typing import Final

from ralm.capacity.architecture import EncoderShape, ReaderShape

FP32: Final = 4
BUCKET_TOKENS: Final = {True: 8192, False: 768}
"""On a GPU, or not: reader inputs are encoded in groups of at least so many tokens (`ralm/reader/fusion.py`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernels:
    """What decides which tensors an operation keeps."""

    compute_bytes: int
    """c: 2 for bf16 and fp16, 4 for fp32."""
    has_dropout: bool
    is_gpu: bool = True
    """A GPU keeps dropout masks as bytes and no attention weights; a CPU keeps masks as numbers, and attention weights
    (`ralm/training/cpu_layers.py`)."""

    def copies(self, size: int, products: int) -> int:
        """Inputs, `size` values each, of some matrix products of the same fp32 tensor."""
        return size * FP32 if self.compute_bytes == FP32 else size * self.compute_bytes * products

    def mask(self, size: int, bytes_on_cpu: int = FP32) -> int:
        """A dropout mask."""
        return 0 if not self.has_dropout else size if self.is_gpu else size * bytes_on_cpu

    def attention(self, *, size: int, heads: int, keys: int, bias: int) -> tuple[int, int]:
        """What attention keeps: bytes for each query token, and for each token whose key and value were computed.

        Args:
            size: I.
            heads: H.
            keys: tokens that one query attends to.
            bias: values of the additive mask for one query token.
        """
        c = self.compute_bytes
        if self.is_gpu:
            return 2 * size * c + bias * c + heads * FP32, 2 * size * c  # query, result, mask, softmax's denominator
        weights = 1 + self.has_dropout  # the softmax, and what dropout leaves of it
        return 2 * size * c + weights * heads * keys * c, 2 * size * c


@dataclasses.dataclass(frozen=True)
class Activations:
    """What a model keeps from its forward pass for the backward pass, in bytes."""

    kept: int
    layer: int
    """The most that one layer takes while it is computed a second time, or without gradient."""


def reader_activations(
    shape: ReaderShape,
    kernels: Kernels,
    *,
    questions: int,
    passages: int,
    input_tokens: int,
    target_tokens: int,
    checkpoints: bool,
) -> Activations:
    """What a Fusion-in-Decoder T5 keeps, its loss not counted.

    Args:
        shape: of the reader.
        kernels: what is kept.
        questions: computed at a time.
        passages: of each question.
        input_tokens: L, padding included.
        target_tokens: T, padding included.
        checkpoints: of a layer only its input is kept, and it is computed again in the backward pass.
    """
    size, sources, targets = shape.model_size, questions * passages * input_tokens, questions * target_tokens
    encode = _self_attention(shape, kernels, input_tokens) + _feed_forward(shape, kernels)
    decode = _decoder_layer(shape, kernels, targets, target_tokens, sources, passages * input_tokens)
    layer = max(encode * largest_group(questions * passages, input_tokens, kernels), decode)
    ends = (sources + targets) * (2 * size * FP32 + kernels.mask(2 * size)) + sources * size * FP32  # and fused states
    if checkpoints:
        inputs = (shape.num_layers * sources + shape.num_decoder_layers * targets) * size * FP32
        return Activations(ends + inputs, layer)
    return Activations(ends + shape.num_layers * encode * sources + shape.num_decoder_layers * decode, layer)


def encoder_activations(
    shape: EncoderShape, kernels: Kernels, *, texts: int, tokens: int, checkpoints: bool
) -> Activations:
    """What a BERT keeps for the vectors of `texts` texts of `tokens` tokens, padding included."""
    size, wide, c = shape.model_size, shape.feed_forward, kernels.compute_bytes
    per_query, per_key = kernels.attention(size=size, heads=shape.num_heads, keys=tokens, bias=tokens)
    inputs = kernels.copies(size, 3) + kernels.copies(size, 1)
    per_token = 2 * size * FP32 + inputs + per_query + per_key + 2 * wide * c + kernels.mask(2 * size, c)
    layer = texts * tokens * per_token
    ends = texts * tokens * (2 * size * FP32 + kernels.mask(size))
    kept = texts * tokens * size * FP32 if checkpoints else layer
    return Activations(ends + shape.num_layers * kept, layer)


def largest_group(inputs: int, tokens: int, kernels: Kernels) -> int:
    """Tokens of the largest group of inputs that a reader encodes at once; all inputs have `tokens` tokens.

    Example:
        >>> largest_group(40, 512, Kernels(compute_bytes=2, has_dropout=True))  # 16 inputs, and 16 with a rest of 8
        12288
    """
    rows = -(-BUCKET_TOKENS[kernels.is_gpu] // tokens)
    return tokens * (inputs if inputs < 2 * rows else rows + inputs % rows)


def _decoder_layer(
    shape: ReaderShape, kernels: Kernels, targets: int, target_tokens: int, sources: int, source_tokens: int
) -> int:
    """A layer of T5's decoder over all target tokens, with what it makes of all tokens of passages."""
    size, heads = shape.model_size, shape.num_heads
    per_target, per_source = kernels.attention(
        size=shape.attention_size, heads=heads, keys=source_tokens, bias=heads * source_tokens
    )
    mask = kernels.mask(size, kernels.compute_bytes)
    cross = 2 * size * FP32 + kernels.copies(size, 1) + per_target + mask
    states = 0 if kernels.compute_bytes == FP32 else kernels.copies(size, 2)  # fp32 states are used as they are
    rest = _self_attention(shape, kernels, target_tokens) + _feed_forward(shape, kernels)
    return targets * (rest + cross) + sources * (per_source + states)


def _self_attention(shape: ReaderShape, kernels: Kernels, tokens: int) -> int:
    size, heads = shape.model_size, shape.num_heads
    per_query, per_key = kernels.attention(size=shape.attention_size, heads=heads, keys=tokens, bias=heads * tokens)
    return 2 * size * FP32 + kernels.copies(size, 3) + per_query + per_key + kernels.mask(size, kernels.compute_bytes)


def _feed_forward(shape: ReaderShape, kernels: Kernels) -> int:
    size, wide, c = shape.model_size, shape.feed_forward, kernels.compute_bytes
    kept = 4 if shape.is_gated else 1 + kernels.has_dropout  # gate before and after GELU, the other half, their product
    inputs = kernels.copies(size, 2 if shape.is_gated else 1)
    return 2 * size * FP32 + inputs + kept * wide * c + kernels.mask(wide + size, c)
