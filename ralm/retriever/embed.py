"""Texts to vectors: one tokenizer call, length-sorted batches of about equal numbers of tokens, no needless padding.

Shapes: `N` texts, `B` texts in a batch, `L` tokens of the longest in it, `D` values in a vector.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ralm.device import each_on_a_core, to_device
from ralm.log import progress
from ralm.retriever.config import RetrieverConfig
from ralm.retriever.encoder import Encoder
from ralm.retriever.packed import PackedBert

CPU_TOKEN_BUDGET = 2048
GPU_TOKEN_BUDGET = 98304
PACKED_TOKEN_BUDGET = {"cuda": GPU_TOKEN_BUDGET, "cpu": 4096}
"""Tokens in a batch without padding."""
PACKED_FROM = 16384
"""Tokens from which on it pays to lay out the weights anew for a call."""


def default_token_budget(device: torch.device) -> int:
    """Tokens in a batch that keep a device busy; larger batches only leave the cache."""
    return GPU_TOKEN_BUDGET if device.type == "cuda" else CPU_TOKEN_BUDGET


def packed_token_budget(device: torch.device) -> int:
    """The same for batches without padding."""
    return PACKED_TOKEN_BUDGET["cuda" if device.type == "cuda" else "cpu"]


def embed_texts(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    max_tokens: int,
    token_budget: int | None = None,
    what: str = "embed",
    bar: progress | None = None,
) -> np.ndarray:
    """Vectors of many texts, float32 [N, D], in the order of the texts.

    The batches depend only on the texts and the budget: equal calls give equal bytes.

    Args:
        encoder: the half of the retriever to use.
        texts: what to encode, already formatted.
        max_tokens: longer texts are cut.
        token_budget: tokens in a batch with padding; by default `default_token_budget`.
        what: verb shown with the progress.
        bar: count on this progress instead of an own one.
    """
    if bar is None:
        with progress(total=len(texts), what=what, unit="texts") as own:
            return embed_texts(encoder, texts, max_tokens=max_tokens, token_budget=token_budget, bar=own)
    tokens = tokenize_texts(encoder, texts, max_tokens)
    return encode_tokens(encoder, tokens, bar=bar, token_budget=token_budget).cpu().numpy()


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of N texts, those of the longest text first."""

    ids: Tensor
    """int32, one text after the other, in memory that a GPU can copy from by itself where there is one."""
    lengths: np.ndarray
    """`[N]`, tokens of each, falling."""
    order: np.ndarray
    """`[N]`, which text it is."""


def tokenize_texts(encoder: Encoder, texts: Sequence[str], max_tokens: int) -> TokenizedTexts:
    """The first half of `embed_texts`; it leaves the device alone, so a thread can do it ahead."""
    ids = encoder.tokenize(texts, max_tokens)
    lengths_N = np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids))
    order_N = np.argsort(-lengths_N, kind="stable")
    flat = torch.empty(int(lengths_N.sum()), dtype=torch.int32, pin_memory=encoder.device.type == "cuda")
    if len(ids):
        np.concatenate([ids[row] for row in order_N], out=flat.numpy(), casting="unsafe")
    return TokenizedTexts(flat, lengths_N[order_N], order_N)


@torch.inference_mode()
def encode_tokens(
    encoder: Encoder, tokens: TokenizedTexts, *, bar: progress, token_budget: int | None = None
) -> Tensor:
    """The second half: vectors, float32 [N, D], in the order of the texts, on the encoder's device.

    A GPU may still be computing them when this returns.
    """
    device = encoder.device
    budget = token_budget or packed_token_budget(device)
    packed = encoder.packed(budget) if len(tokens.ids) >= PACKED_FROM else None
    if packed is not None:
        return _encode_packed(encoder, packed, tokens, budget, bar)
    ids, order_N = tokens.ids.to(device, non_blocking=True), to_device(torch.from_numpy(tokens.order), device)
    vector_ND = torch.empty((len(tokens.order), encoder.dimension), device=device)
    place = 0
    for rows_B in length_batches(tokens.lengths, token_budget or default_token_budget(device)):
        length_B, first = tokens.lengths[rows_B], int(rows_B[0])
        stop = place + int(length_B.sum())
        batch = _pad(ids[place:stop], length_B, encoder.pad_id)
        vector_ND[order_N[first : first + len(rows_B)]] = encoder(*batch)
        bar.update(len(rows_B))
        place = stop
    return vector_ND


def _encode_packed(
    encoder: Encoder, packed: PackedBert, tokens: TokenizedTexts, token_budget: int, bar: progress
) -> Tensor:
    device = encoder.device
    ids, order_N = tokens.ids.to(device, non_blocking=True), to_device(torch.from_numpy(tokens.order), device)
    vector_ND = torch.empty((len(tokens.order), encoder.dimension), device=device)
    end_N = np.concatenate([[0], np.cumsum(tokens.lengths)])

    @torch.inference_mode()
    def encode(rows: slice) -> slice:
        states = packed.forward(ids[int(end_N[rows.start]) : int(end_N[rows.stop])], tokens.lengths[rows])
        vector_ND[order_N[rows]] = torch.cat([encoder.pool(states_NLD) for states_NLD in states])
        return rows

    batches = _batches(end_N, token_budget)
    by_core = device.type == "cpu"
    with contextlib.closing(each_on_a_core(encode, batches) if by_core else (encode(rows) for rows in batches)) as done:
        for rows in done:
            bar.update(rows.stop - rows.start)
    return vector_ND


def _batches(end_N: np.ndarray, token_budget: int) -> Iterator[slice]:
    """Texts one after the other that have up to so many tokens together, at least one."""
    start = 0
    while start < len(end_N) - 1:
        stop = max(start + 1, int(np.searchsorted(end_N, end_N[start] + token_budget, side="right")) - 1)
        yield slice(start, stop)
        start = stop


def _pad(ids: Tensor, length_B: np.ndarray, pad_id: int) -> tuple[Tensor, Tensor | None]:
    """Texts that lie one after the other as [B, L], and their mask, None where all are equally long."""
    longest = int(length_B.max())
    if int(length_B.min()) == longest:
        return ids.view(len(length_B), longest).long(), None
    length = torch.from_numpy(length_B).to(ids.device)
    mask_BL = torch.arange(longest, device=ids.device) < length.unsqueeze(1)
    padded_BL = torch.full(mask_BL.shape, pad_id, device=ids.device)
    return padded_BL.masked_scatter_(mask_BL, ids.long()), mask_BL.long()


def length_batches(lengths_N: np.ndarray, token_budget: int) -> Iterator[np.ndarray]:
    """Row numbers of batches: longest texts first (so memory peaks at once), `rows * longest <= token_budget`.

    Example:
        >>> [rows.tolist() for rows in length_batches(np.array([2, 5, 2, 5, 3]), token_budget=10)]
        [[1, 3], [4, 0, 2]]
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    start = 0
    while start < len(order_N):
        size = max(1, token_budget // max(1, int(lengths_N[order_N[start]])))
        yield order_N[start : start + size]
        start += size


def embed_questions(encoder: Encoder, config: RetrieverConfig, questions: Sequence[str]) -> np.ndarray:
    """Question vectors, float32 [N, D], in the order of the questions."""
    texts = [config.format_question(question) for question in questions]
    return embed_texts(encoder, texts, max_tokens=config.max_question_tokens, what="embed questions")


def format_passage(config: RetrieverConfig, title: str, section: str, text: str) -> str:
    """The text given to the passage encoder."""
    return config.format_passage(title, section, text)
