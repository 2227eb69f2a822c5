"""A BERT's forward pass over texts that lie one after the other, without a token of padding.

Made for many texts at a time: queries, keys and values are one product, and products are fused with bias, GELU and
residual sum (docs/decisions/0012). On a CPU the weights are laid out anew for oneDNN; on a GPU a bias before a residual
sum is part of these states already, and in bf16 and fp16 GELU is its tanh form. Attention is computed for runs of
equally long texts, or for all texts at once where a GPU has flash attention.

Shapes: `T` tokens of a batch, `B` texts of it, `N` texts of a run, `L` tokens of each of these, `D` values of a token.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

from ralm.device import has_flash_attention, to_device

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
        return hasattr(torch, "_addmm_activation")
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not hasattr(_OPS, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(_OPS._is_mkldnn_bf16_supported()))


class PackedBert:
    """The weights of a BERT-like encoder, laid out for `forward`; for one call, since updates do not reach it.

    Args:
        model: one for which `can_pack` holds.
        dtype: number format of products and states; norms and sums are fp32 in any case.
        batch_tokens: T of most batches.
    """

    @torch.no_grad()
    def __init__(self, model: Any, dtype: torch.dtype, batch_tokens: int) -> None:
        config, embeddings = model.config, model.embeddings
        self._dtype, self._heads = dtype, int(config.num_attention_heads)
        is_shifted = config.model_type in _WITH_PADDED_POSITIONS
        self._first_place = int(config.pad_token_id) + 1 if is_shifted else 0
        self._words = embeddings.word_embeddings.weight.detach()
        kinds = embeddings.token_type_embeddings.weight[0]
        self._places = (embeddings.position_embeddings.weight.float() + kinds.float()).detach()
        self._norm = norm = _Norm(embeddings.LayerNorm, torch.float32)
        self._layers: list[_Layer] = []
        with torch.autocast(model.device.type, enabled=False):
            for layer in model.encoder.layer:
                self._layers.append(_Layer(layer, norm, self._heads, dtype, batch_tokens))
                norm = self._layers[-1].second_norm
        size = int(config.hidden_size) // self._heads
        self._has_flash = has_flash_attention(model.device, dtype, size)

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
        sizes = [length * count for length, count in runs]
        end_B = torch.from_numpy(np.concatenate([[0], np.cumsum(length_B)]).astype(np.int32))
        end_B = to_device(end_B, ids_T.device)
        text_T = torch.repeat_interleave(end_B.diff(), output_size=len(ids_T))
        place_T = self._first_place + torch.arange(len(ids_T), device=ids_T.device) - end_B[text_T]
        with torch.autocast(ids_T.device.type, enabled=False):
            embedded_TD = self._words[ids_T.long()].float() + self._places[place_T]
            if not ids_T.is_cuda:
                embedded_TD = functional.pad(embedded_TD, (0, 0, 0, -len(ids_T) % ROWS_TOGETHER))
            state_TD = self._norm(embedded_TD).to(self._dtype)
            context_TD = state_TD if self._has_flash else torch.zeros_like(state_TD)
            for layer in self._layers:
                projected = layer.query_key_value(state_TD)
                if self._has_flash:
                    context_TD = attend_to_all(projected, end_B, int(length_B.max()), self._heads)
                else:
                    parts = _runs(projected, sizes), _runs(context_TD, sizes), runs
                    for of_run, context, (length, _) in zip(*parts, strict=True):
                        attend(of_run, context, length, self._heads)
                state_TD = layer.first_norm(layer.output.plus(context_TD, state_TD))
                state_TD = layer.second_norm(layer.second.plus(layer.first.gelu(state_TD), state_TD))
        by_run = zip(_runs(state_TD, sizes), runs, strict=True)
        return [part.view(-1, length, part.shape[1]) for part, (length, _) in by_run]


class _Layer:
    """A layer's products and norms; the queries' product is divided by the root of a head's size already.

    Args:
        layer: of the library's model.
        before: the norm whose result the layer takes; on a GPU the first bias before a sum moves into it.
        heads: of its attention.
        dtype: of products and states.
        batch_tokens: T of most batches.
    """

    def __init__(self, layer: Any, before: _Norm, heads: int, dtype: torch.dtype, batch_tokens: int) -> None:
        attention, output = layer.attention.self, layer.attention.output.dense
        scale = (attention.query.out_features // heads) ** -0.5
        parts = [_weight_and_bias(part) for part in (attention.query, attention.key, attention.value)]
        parts[0] = parts[0][0] * scale, parts[0][1] * scale
        joined = torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])
        first, second = _weight_and_bias(layer.intermediate.dense), layer.output.dense
        self.first_norm = _Norm(layer.attention.output.LayerNorm, dtype)
        self.second_norm = _Norm(layer.output.LayerNorm, dtype)
        if _is_on_gpu(output.weight):
            joined = _without(joined, before.add(output.bias), dtype)
            first = _without(first, self.first_norm.add(second.bias), dtype)
        self.query_key_value = _Product(*joined, dtype, batch_tokens)
        self.output = _Product(*_weight_and_bias(output), dtype, batch_tokens)
        self.first = _Product(*first, dtype, batch_tokens)
        self.second = _Product(*_weight_and_bias(second), dtype, batch_tokens)


class _Norm:
    """A layer norm, and what is added to its result."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        self._weight, self._exact, self._epsilon = norm.weight.detach().to(dtype), norm.bias.float(), norm.eps
        self._bias = self._exact.to(dtype)

    def add(self, moved: Tensor) -> Tensor:
        """Add something to all results from now on; by what they are more, rounding included, in fp32."""
        self._bias = (self._exact + moved.float()).to(self._bias.dtype)
        return self._bias.float() - self._exact

    def __call__(self, state_TD: Tensor) -> Tensor:
        return functional.layer_norm(state_TD, state_TD.shape[1:], self._weight, self._bias, self._epsilon)


class _Product:
    """A linear layer, alone or fused with what follows it."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, batch_tokens: int) -> None:
        self._weight, self._bias = weight.to(dtype).contiguous(), bias.to(dtype)
        self._is_on_gpu = _is_on_gpu(weight)
        if not self._is_on_gpu:
            self._weight = _OPS._reorder_linear_weight(self._weight, batch_tokens)

    def __call__(self, state_TD: Tensor) -> Tensor:
        if self._is_on_gpu:
            return functional.linear(state_TD, self._weight, self._bias)
        return _OPS._linear_pointwise(state_TD, self._weight, self._bias, "none", [], "")

    def gelu(self, state_TD: Tensor) -> Tensor:
        """Followed by GELU: by the error function, on a GPU in its tanh form where bf16 or fp16 hide the difference."""
        if self._is_on_gpu:
            if self._weight.dtype == torch.float32:
                return functional.gelu(self(state_TD))
            return torch._addmm_activation(self._bias, state_TD, self._weight.t(), use_gelu=True)
        return _OPS._linear_pointwise(state_TD, self._weight, self._bias, "gelu", [], "none")

    def plus(self, state_TD: Tensor, other_TD: Tensor) -> Tensor:
        """Added to other states, which have the bias already on a GPU, where they are overwritten."""
        if self._is_on_gpu:
            return other_TD.addmm_(state_TD, self._weight.t())
        return _OPS._linear_pointwise.binary(state_TD, other_TD, self._weight, self._bias, "add")


def _weight_and_bias(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    return linear.weight.float(), linear.bias.float()


def _without(product: tuple[Tensor, Tensor], added: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A product of states to which something was added that it is not to see, computed in `dtype`."""
    weight, bias = product
    return weight, bias - weight.to(dtype).float() @ added


def _is_on_gpu(weight: Tensor) -> bool:
    return weight.is_cuda


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


def attend_to_all(projected: Tensor, end_B: Tensor, longest: int, heads: int) -> Tensor:
    """Self-attention of texts of any lengths by flash attention, `[T, D]`.

    Args:
        projected: queries (scaled), keys and values of each token, `[T, 3 * D]`.
        end_B: where each text begins, and T, int32 on the GPU.
        longest: tokens of the longest text.
        heads: into which D is cut.
    """
    size = projected.shape[1] // (3 * heads)
    query, key, value = projected.view(-1, 3, heads, size).unbind(1)
    mixed = varlen_attn(query, key, value, end_B, end_B, longest, longest, scale=1.0)
    return cast(Tensor, mixed).flatten(1)


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
