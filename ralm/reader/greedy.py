"""Greedy answers from a T5's decoder, by its weights and formulas, without what `generate` does around each step.

Nothing is computed for the passages before the first token. A head's score of token s is the product of its query and
the key of s, `q (W_k s)`, which is `(q W_k) s`, and its result `sum_s p_s (W_v s)` is `W_v (sum_s p_s s)`: so all
layers and heads read the encoder's states as they are. Keys and values would first cost as many operations as 64 tokens
(the size of a head) cost more this way, and answers are shorter; they also take `2 * layers` times the memory.

Shapes: `B` questions, `T` tokens of the decoder that are new, `P` all tokens of the decoder, `S` tokens of the passages
of a question, `D` model size, `H` heads, `E` size of a head, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ralm.reader.encoded import FusedPassages


@dataclass(frozen=True)
class Written:
    """A greedy answer."""

    tokens: list[int]
    """End mark included, where it was reached; without the prompt."""
    log_probability: float
    """Sum over its tokens."""


@torch.inference_mode()
def write_greedily(
    model: Any, fused: FusedPassages, prompts: Sequence[Sequence[int]], *, min_tokens: int, max_tokens: int
) -> list[Written]:
    """Write the most likely token again and again.

    Args:
        model: a T5; its weights, or what autocast is set to where it is on, give the number format of products.
        fused: states of the passages of each question.
        prompts: tokens that the decoder is given before it writes; may be empty.
        min_tokens: no end mark before so many tokens.
        max_tokens: stop after so many.
    """
    kind = fused.state.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.lm_head.weight.dtype
    with torch.autocast(kind, enabled=False):
        return _write(GreedyDecoder(model, fused, prompts, max_tokens, dtype), len(prompts), min_tokens, max_tokens)


def _write(decoder: GreedyDecoder, num_questions: int, min_tokens: int, max_tokens: int) -> list[Written]:
    tokens: list[list[int]] = [[] for _ in range(num_questions)]
    sums = [0.0] * num_questions
    rows = list(range(num_questions))  # of the questions whose answer has not ended
    logit_BV = decoder.start()
    for step in range(max_tokens):
        total_B = logit_BV.logsumexp(dim=-1)
        if step < min_tokens:
            logit_BV[:, decoder.end_token] = -torch.inf
        best_B, token_B = logit_BV.max(dim=-1)
        chosen = token_B.tolist()
        for row, token, score in zip(rows, chosen, (best_B - total_B).tolist(), strict=True):
            tokens[row].append(token)
            sums[row] += score
        going_on = [place for place, token in enumerate(chosen) if token != decoder.end_token]
        if not going_on or step + 1 == max_tokens:
            break
        if len(going_on) < len(rows):
            rows = [rows[place] for place in going_on]
            going_on_B = torch.tensor(going_on, device=token_B.device)
            decoder.keep(going_on_B)
            token_B = token_B[going_on_B]
        logit_BV = decoder.step(token_B.unsqueeze(1))
    return [Written(*found) for found in zip(tokens, sums, strict=True)]


class GreedyDecoder:
    """A T5's decoder in the middle of writing.

    Args:
        model: the T5.
        fused: states of the passages of each question.
        prompts: tokens given before it writes.
        max_tokens: most tokens to come.
        dtype: number format of matrix products; sums between layers are fp32.
    """

    def __init__(
        self,
        model: Any,
        fused: FusedPassages,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        dtype: torch.dtype,
    ) -> None:
        config, device = model.config, fused.state.device
        self.end_token = int(config.eos_token_id)
        self._scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
        self._embedding, self._head = model.shared.weight, model.lm_head.weight.to(dtype)
        self._norm = model.decoder.final_layer_norm
        self._layers = [_Layer(block, dtype) for block in model.decoder.block]
        self._state_BSD = fused.state.to(dtype)
        hidden = torch.finfo(torch.float32).min
        is_padded = not bool(fused.mask.all())
        self._passage_mask_B1S = ((1 - fused.mask) * hidden).float().unsqueeze(1) if is_padded else None
        longest = max(len(prompt) for prompt in prompts)
        start = config.decoder_start_token_id
        # T5's position bias depends on distances only, so masked places on the left change nothing.
        self._prompt_BT = torch.tensor(
            [[start] * (longest - len(prompt) + 1) + list(prompt) for prompt in prompts], device=device
        )
        size = longest + max_tokens
        self._bias_BHPP = model.decoder.block[0].layer[0].SelfAttention.compute_bias(size, size, device=device).float()
        place_P = torch.arange(size, device=device)
        self._bias_BHPP = self._bias_BHPP.masked_fill(place_P > place_P.unsqueeze(1), hidden)
        if any(len(prompt) < longest for prompt in prompts):
            first_B = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
            is_hidden_BP = place_P < first_B.unsqueeze(1)
            self._bias_BHPP = self._bias_BHPP.masked_fill(is_hidden_BP[:, None, None], hidden)
        shape = (len(self._layers), 2, len(prompts), config.num_heads, size, config.d_kv)
        self._cache = torch.empty(shape, dtype=dtype, device=device)
        self._place = 0

    def start(self) -> Tensor:
        """Logits `[B, V]` of the first token."""
        return self.step(self._prompt_BT)

    def step(self, token_BT: Tensor) -> Tensor:
        """Logits `[B, V]` of the next token, in fp32."""
        place, self._place = self._place, self._place + token_BT.shape[1]
        bias_BHTP = self._bias_BHPP[:, :, place : self._place, : self._place]
        state_BTD = functional.embedding(token_BT, self._embedding).float()
        for layer, cache in zip(self._layers, self._cache, strict=True):
            state_BTD = state_BTD + layer.attend_to_self(state_BTD, cache, bias_BHTP)
            state_BTD = state_BTD + layer.attend_to_passages(state_BTD, self._state_BSD, self._passage_mask_B1S)
            state_BTD = state_BTD + layer.feed_forward(state_BTD)
        last_BD = _normed(self._norm, state_BTD[:, -1]) * self._scale
        return _product(last_BD.to(self._head.dtype), self._head).float()

    def keep(self, row_B: Tensor) -> None:
        """Go on with some of the questions only."""
        self._state_BSD = self._state_BSD[row_B]
        if self._passage_mask_B1S is not None:
            self._passage_mask_B1S = self._passage_mask_B1S[row_B]
        if len(self._bias_BHPP) > 1:
            self._bias_BHPP = self._bias_BHPP[row_B]
        self._cache = self._cache[:, :, row_B]


class _Layer:
    """Weights of a layer in the number format of its products."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        itself, passages, feed_forward = block.layer
        own, cross, inner = itself.SelfAttention, passages.EncDecAttention, feed_forward.DenseReluDense
        self._norms = [part.layer_norm for part in block.layer]
        self._shape = (own.n_heads, own.key_value_proj_dim)
        self._own = [part.weight.to(dtype) for part in (own.q, own.k, own.v, own.o)]
        self._query, self._output = cross.q.weight.to(dtype), cross.o.weight.to(dtype)
        self._key_HED, self._value_HED = (part.weight.to(dtype).view(*self._shape, -1) for part in (cross.k, cross.v))
        self._inner = [getattr(inner, name).weight.to(dtype) for name in ("wi", "wi_0", "wi_1") if hasattr(inner, name)]
        self._outer, self._act = inner.wo.weight.to(dtype), inner.act

    def attend_to_self(self, state_BTD: Tensor, cache: Tensor, bias_BHTP: Tensor) -> Tensor:
        """What the tokens before and the new ones add; keys and values of the new ones go into the cache."""
        query, key, value, output = self._own
        normed_BTD = _normed(self._norms[0], state_BTD).to(query.dtype)
        stop = bias_BHTP.shape[-1]
        start = stop - state_BTD.shape[1]
        for kept, weight in zip(cache, (key, value), strict=True):
            kept[:, :, start:stop] = self._heads(_product(normed_BTD, weight))
        query_BHTE = self._heads(_product(normed_BTD, query))
        score_BHTP = (query_BHTE @ cache[0, :, :, :stop].transpose(2, 3)).float() + bias_BHTP
        read_BHTE = score_BHTP.softmax(dim=-1).to(query.dtype) @ cache[1, :, :, :stop]
        return _product(read_BHTE.transpose(1, 2).flatten(2), output).float()

    def attend_to_passages(self, state_BTD: Tensor, passage_BSD: Tensor, mask_B1S: Tensor | None) -> Tensor:
        """What the passages add."""
        size, length = state_BTD.shape[:2]
        normed_BTD = _normed(self._norms[1], state_BTD).to(passage_BSD.dtype)
        query_HNE = _product(normed_BTD, self._query).view(size * length, *self._shape).transpose(0, 1)
        query_HND = torch.bmm(query_HNE, self._key_HED)
        query_BMD = query_HND.unflatten(1, (size, length)).transpose(0, 1).flatten(1, 2)
        score_BMS = torch.bmm(query_BMD, passage_BSD.transpose(1, 2)).float()
        if mask_B1S is not None:
            score_BMS += mask_B1S
        read_BMD = torch.bmm(score_BMS.softmax(dim=-1).to(passage_BSD.dtype), passage_BSD)
        read_HND = read_BMD.unflatten(1, (-1, length)).transpose(0, 1).flatten(1, 2)
        read_HNE = torch.bmm(read_HND, self._value_HED.transpose(1, 2))
        return _product(read_HNE.transpose(0, 1).reshape(size, length, -1), self._output).float()

    def feed_forward(self, state_BTD: Tensor) -> Tensor:
        """What the feed-forward part adds."""
        normed_BTD = _normed(self._norms[2], state_BTD).to(self._outer.dtype)
        inner_BTF = self._act(_product(normed_BTD, self._inner[0]))
        if len(self._inner) > 1:
            inner_BTF = inner_BTF * _product(normed_BTD, self._inner[1])
        return _product(inner_BTF, self._outer).float()

    def _heads(self, state_BTN: Tensor) -> Tensor:
        return state_BTN.unflatten(-1, self._shape).transpose(1, 2)


def _normed(norm: Any, state: Tensor) -> Tensor:
    return functional.rms_norm(state, norm.weight.shape, norm.weight.float(), norm.variance_epsilon)


def _product(state: Tensor, weight: Tensor) -> Tensor:
    """A linear layer; on a CPU bf16 weights are read faster for a vector than for a matrix of one row."""
    if state.dtype == torch.bfloat16 and state.device.type == "cpu" and state.numel() == state.shape[-1]:
        return torch.mv(weight, state.flatten()).view(*state.shape[:-1], -1)
    return functional.linear(state, weight)
