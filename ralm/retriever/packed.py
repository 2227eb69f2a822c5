"""A BERT's forward pass over texts that lie one after the other, without a token of padding.

Made for many texts at a time: attention is computed for runs of equally long texts, queries, keys and values are one
product, and on a CPU the weights are laid out anew for oneDNN, whose products are fused with bias, GELU and residual
sum (docs/decisions/0012).

Shapes: `T` tokens of a batch, `B` texts of it, `N` texts of a run, `L` tokens of each of these, `D` values of a token.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SCORES_AT_ONCE = 2**16
"""Attention scores of a head that are computed at a time; they stay in a core's cache."""
ROWS_TOGETHER = 128
"""On a CPU a batch is filled up to a multiple of so many rows: oneDNN prepares each new size, for milliseconds."""
LENGTHS_TOGETHER = 8
"""On a CPU texts are filled up to a multiple of so many tokens in attention, for the same reason."""
LEAST_SUM = 1e-30
"""Least sum of a row of `exp(score)` that loses nothing; below it, or if infinite, the largest is taken off first."""
_WITH_PADDED_POSITIONS = {"roberta", "xlm-roberta", "camembert"}
_MODEL_TYPES = {"bert", *_WITH_PADDED_POSITIONS}
_OPS: Any = torch.ops.mkldnn


def can_pack(model: Any, dtype: torch.dtype) -> bool:
    """Whether a model's forward pass is the one that is written here, and torch has what it takes."""
    config = model.config
    if config.model_type not in _MODEL_TYPES or config.hidden_act != "gelu" or config.is_decoder:
        return False
    if model.device.type == "cuda":
        return True
    has_products = torch.backends.mkldnn.is_available() and hasattr(_OPS, "_linear_pointwise")
    return model.device.type == "cpu" and dtype in (torch.bfloat16, torch.float32) and has_products


class PackedBert:
    """The weights of a BERT-like encoder, laid out for `forward`; a copy, which later updates do not reach.

    Args:
        model: one for which `can_pack` holds.
        dtype: number format of products and states; norms and sums are fp32 in any case.
        batch_tokens: T of most batches.
    """

    def __init__(self, model: Any, dtype: torch.dtype, batch_tokens: int) -> None:
        config, embeddings = model.config, model.embeddings
        self._dtype, self._heads, self._epsilon = dtype, int(config.num_attention_heads), float(config.layer_norm_eps)
        is_shifted = config.model_type in _WITH_PADDED_POSITIONS
        self._first_place = int(config.pad_token_id) + 1 if is_shifted else 0
        self._words = embeddings.word_embeddings.weight.detach()
        kinds = embeddings.token_type_embeddings.weight[0]
        self._places = (embeddings.position_embeddings.weight.float() + kinds.float()).detach()
        self._norm = _norm(embeddings.LayerNorm, torch.float32)
        self._layers = [_Layer(layer, self._heads, dtype, batch_tokens) for layer in model.encoder.layer]

    @torch.inference_mode()
    def forward(self, ids_T: Tensor, length_B: np.ndarray) -> list[Tensor]:
        """States of the last layer.

        Args:
            ids_T: token ids of all texts, on the device of the weights.
            length_B: tokens of each; equally long texts side by side.

        Returns:
            For each run of equally long texts `[N, L, D]`, in order.
        """
        runs = [(length, sum(1 for _ in group)) for length, group in itertools.groupby(length_B.tolist())]
        place_T = self._first_place + torch.cat([torch.arange(length).repeat(count) for length, count in runs])
        place_T = place_T.to(ids_T.device, non_blocking=True)
        sizes = [length * count for length, count in runs]
        with torch.autocast(ids_T.device.type, enabled=False):
            embedded_TD = self._words[ids_T.long()].float() + self._places[place_T]
            if not ids_T.is_cuda:
                embedded_TD = functional.pad(embedded_TD, (0, 0, 0, -len(ids_T) % ROWS_TOGETHER))
            state_TD = self._normed(embedded_TD, self._norm).to(self._dtype)
            context_TD = torch.zeros_like(state_TD)
            for layer in self._layers:
                parts = _runs(layer.query_key_value(state_TD), sizes), _runs(context_TD, sizes), runs
                for projected, context, (length, _) in zip(*parts, strict=True):
                    attend(projected, context, length, self._heads)
                state_TD = self._normed(layer.output.plus(context_TD, state_TD), layer.first_norm)
                state_TD = self._normed(layer.second.plus(layer.first.gelu(state_TD), state_TD), layer.second_norm)
        by_run = zip(_runs(state_TD, sizes), runs, strict=True)
        return [part.view(-1, length, part.shape[1]) for part, (length, _) in by_run]

    def _normed(self, state_TD: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return functional.layer_norm(state_TD, state_TD.shape[1:], *norm, self._epsilon)


class _Layer:
    """A layer's products and norms; the queries' product is divided by the root of a head's size already."""

    def __init__(self, layer: Any, heads: int, dtype: torch.dtype, batch_tokens: int) -> None:
        attention = layer.attention.self
        scale = (attention.query.out_features // heads) ** -0.5
        weights = [part.weight.float() for part in (attention.query, attention.key, attention.value)]
        biases = [part.bias.float() for part in (attention.query, attention.key, attention.value)]
        joined = torch.cat([weights[0] * scale, *weights[1:]]), torch.cat([biases[0] * scale, *biases[1:]])
        self.query_key_value = _Product(*joined, dtype, batch_tokens)
        self.output = _Product.of(layer.attention.output.dense, dtype, batch_tokens)
        self.first = _Product.of(layer.intermediate.dense, dtype, batch_tokens)
        self.second = _Product.of(layer.output.dense, dtype, batch_tokens)
        self.first_norm = _norm(layer.attention.output.LayerNorm, dtype)
        self.second_norm = _norm(layer.output.LayerNorm, dtype)


class _Product:
    """A linear layer, alone or fused with what follows it."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, batch_tokens: int) -> None:
        self._weight, self._bias = weight.detach().to(dtype).contiguous(), bias.detach().to(dtype)
        self._is_on_gpu = weight.is_cuda
        if not self._is_on_gpu:
            self._weight = _OPS._reorder_linear_weight(self._weight, batch_tokens)

    @classmethod
    def of(cls, linear: nn.Linear, dtype: torch.dtype, batch_tokens: int) -> _Product:
        """Of a layer as it is."""
        return cls(linear.weight, linear.bias, dtype, batch_tokens)

    def __call__(self, state_TD: Tensor) -> Tensor:
        if self._is_on_gpu:
            return functional.linear(state_TD, self._weight, self._bias)
        return _OPS._linear_pointwise(state_TD, self._weight, self._bias, "none", [], "")

    def gelu(self, state_TD: Tensor) -> Tensor:
        """Followed by GELU (by the error function)."""
        if self._is_on_gpu:
            return functional.gelu(self(state_TD))
        return _OPS._linear_pointwise(state_TD, self._weight, self._bias, "gelu", [], "none")

    def plus(self, state_TD: Tensor, other_TD: Tensor) -> Tensor:
        """Added to other states."""
        if self._is_on_gpu:
            return self(state_TD).add_(other_TD)
        return _OPS._linear_pointwise.binary(state_TD, other_TD, self._weight, self._bias, "add")


def attend(projected: Tensor, context: Tensor, length: int, heads: int) -> None:
    """Self-attention of equally long texts.

    Args:
        projected: queries (scaled), keys and values of each token, `[N * L, 3 * D]`.
        context: receives the result, `[N * L, D]`.
        length: L.
        heads: into which D is cut.
    """
    if projected.is_cuda:
        query, key, value = projected.view(-1, length, 3, heads, context.shape[1] // heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        context.view(-1, length, context.shape[1]).copy_(mixed.transpose(1, 2).flatten(2))
        return
    texts = projected.view(-1, length, 3, heads, context.shape[1] // heads)
    mixed = context.view(-1, length, heads, texts.shape[4])
    for start, stop in _portions(len(texts), SCORES_AT_ONCE // (length * length)):
        _attend_on_cpu(texts[start:stop].permute(2, 0, 3, 1, 4), mixed[start:stop].transpose(1, 2))


def _attend_on_cpu(projected: Tensor, context: Tensor) -> None:
    """The same for a few texts by head: `[3, N, heads, L, D / heads]` and `[N, heads, L, D / heads]`."""
    _, count, heads, length, size = projected.shape
    padded = -(-length // LENGTHS_TOGETHER) * LENGTHS_TOGETHER
    # Places that only fill up have zeros as keys and values, and their weights are left out of the sum.
    by_head = projected.new_empty(3, count, heads, padded, size)
    by_head[:, :, :, length:].zero_()
    by_head[:, :, :, :length].copy_(projected)
    query, key, value = by_head.view(3, count * heads, padded, size)

    weight = torch.bmm(query, key.transpose(1, 2)).exp_()
    summed = weight[:, :length, :length].sum(dim=2, keepdim=True)
    least, most = summed.aminmax()
    if not (float(least) >= LEAST_SUM and float(most) < torch.inf):
        score = torch.bmm(query, key.transpose(1, 2)).float()
        score -= score[:, :, :length].amax(dim=2, keepdim=True)
        weight = score.clamp_(max=0).exp_().to(value.dtype)
        summed = weight[:, :length, :length].sum(dim=2, keepdim=True)
    mixed = torch.bmm(weight, value).view(count, heads, padded, size)[:, :, :length]
    torch.div(mixed, summed.view(count, heads, length, 1), out=context)


def _portions(count: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut a range into the largest powers of two up to `most`, so that few sizes occur."""
    start = 0
    while start < count:
        size = 1 << (max(1, min(most, count - start)).bit_length() - 1)
        yield start, start + size
        start += size


def _runs(state_TD: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """The rows of each run, without those that only fill up."""
    return state_TD[: sum(sizes)].split(sizes)


def _norm(norm: nn.LayerNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)
