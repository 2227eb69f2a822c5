"""T5's layers in fewer and larger kernels; names of weights and formulas are those of `transformers`.

On a CPU norms do so only in training; without gradients they compute as before.

Shapes: `B` inputs, `H` heads, `L` tokens of an input, `D` model size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense, T5LayerNorm


def fuse_layers(model: Any) -> None:
    """Replace norms and gated feed-forward parts of a T5 in place; let its encoder add mask and position bias once."""
    for stack in (model.encoder, model.decoder):
        for block in stack.block:
            for layer in block.layer:
                layer.layer_norm = BeforeProducts(layer.layer_norm)
                inner = getattr(layer, "DenseReluDense", None)
                if isinstance(inner, T5DenseGatedActDense):
                    layer.DenseReluDense = GatedFeedForward(inner)
    for block in model.encoder.block:
        block.layer[0].SelfAttention.register_forward_pre_hook(_fold_mask, with_kwargs=True)


class BeforeProducts(T5LayerNorm):
    """T5's norm by one kernel; under autocast its result is converted once for all products that take it.

    Args:
        norm: whose weight it takes over.
    """

    def __init__(self, norm: T5LayerNorm) -> None:
        super().__init__(len(norm.weight), norm.variance_epsilon)
        self.weight = norm.weight

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The norm of states `[..., D]`."""
        if not _is_on_gpu(hidden_states):
            is_learning = (
                torch.is_grad_enabled() and hidden_states.requires_grad and hidden_states.dtype == torch.float32
            )
            if not is_learning or self.weight.dtype != torch.float32:
                return super().forward(hidden_states)
            found: Tensor = _Norm.apply(hidden_states, self.weight, self.variance_epsilon, _product_dtype(self.weight))
            return found
        normed = functional.rms_norm(
            hidden_states.float(), self.weight.shape, self.weight.float(), self.variance_epsilon
        )
        return normed.to(_product_dtype(self.weight))


class GatedFeedForward(nn.Module):
    """The gated feed-forward part without a way through fp32 before its last product.

    Args:
        inner: whose layers it takes over.
    """

    def __init__(self, inner: T5DenseGatedActDense) -> None:
        super().__init__()
        self.wi_0, self.wi_1, self.wo, self.dropout, self.act = (
            inner.wi_0,
            inner.wi_1,
            inner.wo,
            inner.dropout,
            inner.act,
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """New states from states `[..., D]`."""
        return self.wo(self.dropout(self.act(self.wi_0(hidden_states)) * self.wi_1(hidden_states)))


def _fold_mask(attention: Any, inputs: tuple[Any, ...], values: dict[str, Any]) -> Any:
    """Give the first layer mask and position bias in one tensor, which it hands on to the others as its bias."""
    state_BLD = inputs[0]
    if not _is_on_gpu(state_BLD):
        return None
    if values["position_bias"] is None:
        bias_1HLL = attention.compute_bias(state_BLD.shape[1], state_BLD.shape[1], device=state_BLD.device)
        bias_BHLL = bias_1HLL.to(_product_dtype(attention.q.weight))
        mask = values["mask"]
        if mask is not None and mask.dtype == torch.bool:
            bias_BHLL = torch.where(mask, bias_BHLL, torch.finfo(bias_BHLL.dtype).min)
        elif mask is not None:
            bias_BHLL = bias_BHLL + mask
        values["position_bias"] = bias_BHLL
    values["mask"] = None
    return inputs, values


def _is_on_gpu(states: Tensor) -> bool:
    return states.is_cuda


def _product_dtype(weight: Tensor) -> torch.dtype:
    """Number format in which products with a weight are computed here."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


class _Norm(torch.autograd.Function):
    """T5's norm for a CPU in training, which keeps the states and one number for each of them."""

    @staticmethod
    def forward(context: Any, state: Tensor, weight_D: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        """The norm in another number format."""
        inverse = (torch.linalg.vector_norm(state, dim=-1, keepdim=True).square() / state.shape[-1] + epsilon).rsqrt()
        context.save_for_backward(state, weight_D, inverse)
        return (state * inverse).mul_(weight_D).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """With n the states divided by their length, w the weight: dn = w do, and dx = (dn - n mean(n dn)) / length."""
        state, weight_D, inverse = context.saved_tensors
        gradient, normed = gradients[0].float(), state * inverse
        product = gradient * normed
        weight_gradient = product.flatten(0, -2).sum(dim=0)
        mean = (product @ weight_D).unsqueeze(-1) / state.shape[-1]
        state_gradient = (gradient * weight_D).addcmul_(normed, mean, value=-1).mul_(inverse)
        return state_gradient, weight_gradient, None, None
