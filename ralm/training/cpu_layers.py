"""Attention and dropout as a CPU computes them quickly in training; formulas are those of `transformers`.

With dropout or a position bias that learns, PyTorch's attention on a CPU computes in fp32 one operation after another
and keeps most of the results; and its random numbers for dropout, one at a time, cost more than the products. Here the
products are in the number format of the inputs, softmax is fp32, and 64 random bits decide on four values.

Shapes: `B` inputs, `H` heads, `L` tokens that read, `S` tokens that are read, `E` size of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "ralm_cpu"
MANY_WORDS = 8192
"""Embeddings of so many rows get sparse gradients."""
LEVELS = 2**16
"""A rate of dropout is a multiple of one over this."""


def speed_up(model: Any, *, sparse: bool) -> None:
    """Let a model of `transformers` use what is here, in place.

    Args:
        model: a model on a CPU.
        sparse: whether gradients of embeddings may be sparse tensors.
    """
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))
            elif isinstance(child, nn.Embedding) and child.num_embeddings >= MANY_WORDS:
                child.sparse = sparse


def make_dense(weights: Iterable[nn.Parameter]) -> None:
    """Make gradients that are sparse dense: once for all calls of a model, each of which would else make its own."""
    for weight in weights:
        if weight.grad is not None and weight.grad.is_sparse:
            weight.grad = weight.grad.to_dense()


class Dropout(nn.Dropout):
    """Dropout with fewer random numbers on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Values, some of them 0."""
        if not self.training or self.p == 0.0 or input.device.type != "cpu":
            return super().forward(input)
        kept: Tensor = input * keep_mask(input.shape, self.p, input.dtype).mul_(scale_of(self.p))
        return kept


def keep_mask(shape: torch.Size, rate: float, dtype: torch.dtype) -> Tensor:
    """1 for what dropout keeps, 0 for the rest."""
    size = math.prod(shape)
    bits = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None)
    value = bits.view(torch.int16)[:size].view(shape)
    return torch.ge(value, _dropped(rate) - LEVELS // 2, out=torch.empty(shape, dtype=dtype))


def scale_of(rate: float) -> float:
    """What is kept is multiplied with this."""
    return LEVELS / (LEVELS - _dropped(rate))


def _dropped(rate: float) -> int:
    return min(round(rate * LEVELS), LEVELS - 1)


def attend(
    module: Any,
    query_BHLE: Tensor,
    key_BHSE: Tensor,
    value_BHSE: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What `transformers` calls for an attention; all but training on a CPU is left to its `sdpa`."""
    is_training = torch.is_grad_enabled() and query_BHLE.requires_grad and query_BHLE.device.type == "cpu"
    is_causal = attention_mask is None and bool(getattr(module, "is_causal", False))
    if not is_training or is_causal or query_BHLE.shape[1] != key_BHSE.shape[1]:
        given = {"dropout": dropout, "scaling": scaling, "position_bias": position_bias, **others}
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_BHLE, key_BHSE, value_BHSE, attention_mask, **given
        )
        return found
    scale = query_BHLE.shape[-1] ** -0.5 if scaling is None else scaling
    mask = attention_mask
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)
    return _Attention.apply(query_BHLE, key_BHSE, value_BHSE, position_bias, mask, scale, dropout), None


class _Attention(torch.autograd.Function):
    """Dropout of the softmax of scores, times the values, keeping two matrices of weights for the backward pass."""

    @staticmethod
    def forward(
        context: Any,
        query_BHLE: Tensor,
        key_BHSE: Tensor,
        value_BHSE: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        scale: float,
        dropout: float,
    ) -> Tensor:
        """States `[B, L, H, E]`."""
        with torch.autocast("cpu", enabled=False):
            if scale != 1.0:
                query_BHLE = query_BHLE * scale
            score_BHLS = (query_BHLE @ key_BHSE.transpose(2, 3)).float()
            for addend in (bias, mask):
                if addend is not None:
                    score_BHLS += addend
            weight_BHLS = score_BHLS.softmax(dim=-1).to(query_BHLE.dtype)
            kept_BHLS = weight_BHLS
            if dropout:
                kept_BHLS = keep_mask(weight_BHLS.shape, dropout, weight_BHLS.dtype).mul_(weight_BHLS)
                value_BHSE = value_BHSE * scale_of(dropout)
            read_BLHE = (kept_BHLS @ value_BHSE).transpose(1, 2).contiguous()
        context.save_for_backward(query_BHLE, key_BHSE, value_BHSE, weight_BHLS, kept_BHLS, read_BLHE)
        context.scale, context.dropout = scale, dropout
        context.bias_shape = bias.shape if bias is not None and context.needs_input_grad[3] else None
        return read_BLHE

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys, values and bias.

        With p the weights, m what dropout keeps, divided by its share, o what was read: dp = m (do v^T), and of the
        scores ds = p (dp - <do, o>), since the sum of p dp over the tokens read is <do, o>.
        """
        (gradient_BLHE,) = gradients
        query_BHLE, key_BHSE, value_BHSE, weight_BHLS, kept_BHLS, read_BLHE = context.saved_tensors
        inner_BHL1 = (gradient_BLHE * read_BLHE).sum(dim=-1, keepdim=True).transpose(1, 2)
        gradient_BHLE = gradient_BLHE.transpose(1, 2).contiguous()
        # the values saved are multiplied by dropout's scale, so the gradient below is, too
        score_BHLS = (gradient_BHLE @ value_BHSE.transpose(2, 3)).mul_(kept_BHLS)
        score_BHLS.addcmul_(weight_BHLS, inner_BHL1, value=-1)
        value_gradient = kept_BHLS.transpose(2, 3) @ gradient_BHLE
        if context.dropout:
            value_gradient *= scale_of(context.dropout)
        query_gradient = score_BHLS @ key_BHSE
        if context.scale != 1.0:
            query_gradient *= context.scale
        key_gradient = score_BHLS.transpose(2, 3) @ query_BHLE  # the query saved is multiplied by the scale
        bias_gradient = None
        if context.bias_shape is not None:
            bias_gradient = score_BHLS.sum(dim=0, keepdim=True, dtype=torch.float32).sum_to_size(context.bias_shape)
        return query_gradient, key_gradient, value_gradient, bias_gradient, None, None, None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
