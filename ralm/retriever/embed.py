"""Texts to vectors: one tokenizer call, length-sorted batches of about equal numbers of tokens, no needless padding.

Shapes: `N` texts, `B` texts in a batch, `D` values in a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ralm.log import progress
from ralm.retriever.config import RetrieverConfig
from ralm.retriever.encoder import Encoder

CPU_TOKEN_BUDGET = 2048
GPU_TOKEN_BUDGET = 98304


def default_token_budget(device: torch.device) -> int:
    """Tokens in a batch that keep a device busy; larger batches only leave the cache."""
    return GPU_TOKEN_BUDGET if device.type == "cuda" else CPU_TOKEN_BUDGET


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
    vectors_ND = np.empty((len(texts), encoder.dimension), dtype=np.float32)
    ids = encoder.tokenize(texts, max_tokens)
    lengths_N = np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids))
    with torch.inference_mode():
        for rows_B in length_batches(lengths_N, token_budget or default_token_budget(encoder.device)):
            vectors_ND[rows_B] = encoder(*encoder.pad([ids[row] for row in rows_B])).cpu().numpy()
            bar.update(len(rows_B))
    return vectors_ND


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
