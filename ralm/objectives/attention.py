"""Attention distillation (ADist): how much of what the decoder reads comes from each passage.

All functions are pure. The reader gives queries, keys and values of one cross-attention layer at a time
(`token_attention`); the sums over layers are then summed up for each passage.

Shapes: `B` questions, `K` passages per question, `L` tokens per passage, `S` tokens of all passages of a question side
by side, `H` heads, `D` size of a head, `T` target tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

PUBLISHED_LENGTH = 256
"""A constant of Atlas' published implementation that divides sums over tokens, whatever the passages' length."""
TOP_COUNTS = (5, 10, 20)
Kind = Literal["scores", "probs", "norms"]
KINDS: tuple[Kind, ...] = ("scores", "probs", "norms")


def token_attention(
    query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, mask_BS: Tensor, label_BT: Tensor
) -> dict[Kind, Tensor]:
    """How much one cross-attention layer attends to each token of the passages.

    Args:
        query_BHTD: queries of the target's positions. T5 does not scale queries or keys.
        key_BHSD: keys of the tokens of all passages.
        value_BHSD: values of the same tokens.
        mask_BS: 1 for tokens, 0 for padding.
        label_BT: int64 labels; positions with a negative one do not count.

    Returns:
        For each kind `[B, S]` in fp32, the mean over heads, summed over the positions that count, 0 for padding:
        `scores` (query times key), `probs` (their softmax over the tokens of all passages, before dropout) and `norms`
        (the same times the Euclidean length of the token's value).

    Source: `norms`: Atlas (arXiv 2208.03299), section 2.2, "Attention Distillation".

    Example:
        >>> one = torch.ones(1, 1, 1, 1)  # two tokens: key 0 and log 3, value 1 and -2
        >>> key_BHSD = torch.tensor([[[[1.0], [3.0]]]]).log()
        >>> value_BHSD = torch.tensor([[[[1.0], [-2.0]]]])
        >>> found = token_attention(one, key_BHSD, value_BHSD, torch.ones(1, 2), torch.tensor([[5]]))
        >>> {kind: [round(value, 4) for value in found[kind][0].tolist()] for kind in found}
        {'scores': [0.0, 1.0986], 'probs': [0.25, 0.75], 'norms': [0.25, 1.5]}
    """
    is_token_BS, counts_BT = mask_BS.bool(), (label_BT >= 0).float()
    score_BHTS = query_BHTD.float() @ key_BHSD.float().transpose(-1, -2)
    hidden = ~is_token_BS[:, None, None]
    probability_BHTS = score_BHTS.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    length_BHS = torch.linalg.vector_norm(value_BHSD.float(), dim=-1)
    num_heads = query_BHTD.shape[1]
    by_head = {
        "scores": torch.einsum("bhts,bt->bhs", score_BHTS, counts_BT),
        "probs": torch.einsum("bhts,bt->bhs", probability_BHTS, counts_BT),
    }
    by_head["norms"] = by_head["probs"] * length_BHS
    return {kind: (by_head[kind].sum(dim=1) / num_heads).masked_fill(~is_token_BS, 0.0) for kind in KINDS}


def attention_distillation_scores(norm_BKL: Tensor, *, num_layers: int, num_targets_B: Tensor) -> Tensor:
    """Attention distillation (ADist): the value-weighted attention to all tokens of a passage.

    Args:
        norm_BKL: `norms` of `token_attention` summed over the decoder's layers, 0 for padding.
        num_layers: number of these layers.
        num_targets_B: target tokens that count, for each question.

    Returns:
        Scores `[B, K]`, at least 0; higher means more useful.

    Source: Atlas (arXiv 2208.03299), section 2.2: alpha times the length of the value, as mean over heads and sum over
    layers, target tokens and passage tokens; the divisor 256 * layers * target tokens is that of the published
    implementation.

    Example:
        >>> norm_BKL = torch.tensor([[[256.0, 0.0], [256.0, 512.0]]])
        >>> attention_distillation_scores(norm_BKL, num_layers=2, num_targets_B=torch.tensor([4])).tolist()
        [[0.125, 0.375]]
    """
    return norm_BKL.sum(dim=-1) / (PUBLISHED_LENGTH * num_layers * num_targets_B.unsqueeze(1))


def attention_statistics(
    tokens_BKL: dict[Kind, Tensor],
    mask_BKL: Tensor,
    *,
    num_layers: int,
    num_targets_B: Tensor,
    question_tokens_B: Tensor,
) -> dict[str, Tensor]:
    """The ways to sum up the attention to a passage: each of `KINDS` by each of eight aggregates, `[B, K]`.

    With a, the attention to a token summed over layers and target tokens, and n = layers * target tokens:

    - `sum`: sum of a / (256 n), which is the score of ADist for `norms`; `avg`: mean of a / n;
    - `first`: a of the passage's first token / n;
    - `top5`, `top10`, `top20`: mean of the largest 5, 10, 20 a (of all where there are fewer) / n;
    - `nosep`: `sum` without the end mark, the one separator that T5 has, which is an input's last token;
    - `woquery`: `sum` without the question's tokens, which are the input's first.

    The names are those of Atlas; what the paper does not say of them is as defined here.

    Args:
        tokens_BKL: each kind of `token_attention` summed over layers, 0 for padding.
        mask_BKL: 1 for tokens, 0 elsewhere.
        num_layers: number of the layers.
        num_targets_B: target tokens that count, for each question.
        question_tokens_B: how many tokens at the start of each input are the question's.

    Returns:
        `[B, K]` under names such as `norms_sum`.

    Example:
        >>> tokens = torch.tensor([[[4.0, 2.0, 6.0, 0.0]]])
        >>> found = attention_statistics(
        ...     {kind: tokens for kind in KINDS}, torch.tensor([[[1, 1, 1, 0]]]), num_layers=1,
        ...     num_targets_B=torch.tensor([1]), question_tokens_B=torch.tensor([1]))
        >>> {name: found[f"probs_{name}"].item() for name in ("avg", "first", "top5")}
        {'avg': 4.0, 'first': 4.0, 'top5': 4.0}
        >>> {name: 256 * found[f"probs_{name}"].item() for name in ("sum", "nosep", "woquery")}
        {'sum': 12.0, 'nosep': 6.0, 'woquery': 8.0}
    """
    place_L = torch.arange(mask_BKL.shape[-1], device=mask_BKL.device)
    num_tokens_BK1 = mask_BKL.sum(dim=-1, keepdim=True)
    is_own_BKL = place_L >= question_tokens_B[:, None, None]
    is_no_end_BKL = place_L < num_tokens_BK1 - 1
    divisor_B1 = (num_layers * num_targets_B).unsqueeze(1)
    found: dict[str, Tensor] = {}
    for kind, token_BKL in tokens_BKL.items():
        largest_BKL = token_BKL.masked_fill(~mask_BKL.bool(), -torch.inf).sort(dim=-1, descending=True).values
        largest_BKL = largest_BKL.masked_fill(place_L >= num_tokens_BK1, 0.0)
        sums = {
            "sum": token_BKL.sum(dim=-1) / PUBLISHED_LENGTH,
            "nosep": (token_BKL * is_no_end_BKL).sum(dim=-1) / PUBLISHED_LENGTH,
            "woquery": (token_BKL * is_own_BKL).sum(dim=-1) / PUBLISHED_LENGTH,
            "avg": token_BKL.sum(dim=-1) / num_tokens_BK1.squeeze(-1),
            "first": token_BKL[..., 0],
        }
        for count in TOP_COUNTS:
            used_BK = num_tokens_BK1.squeeze(-1).clamp(max=count)
            sums[f"top{count}"] = largest_BKL[..., :count].sum(dim=-1) / used_BK
        found |= {f"{kind}_{name}": value_BK / divisor_B1 for name, value_BK in sums.items()}
    return found
