"""What the objectives need of the reader, in little memory: logits of a few passages at a time, reduced at once.

All logits of a batch would be the largest tensor of a training run (4 questions, 40 passages, 32 tokens and 32,128
words take 660 MB). Nothing here has a gradient.

Shapes: `B` questions, `K` passages per question, `T` target tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ralm.objectives.distillation import leave_one_out_scores, passage_log_likelihood, perplexity_scores
from ralm.reader.encoded import EncodedPassages
from ralm.reader.fusion import FusionReader

MAX_VALUES = 64 * 2**20
"""Most numbers (4 bytes each) in one tensor of logits or attention weights."""


def perplexity_signal(
    reader: FusionReader, encoded: EncodedPassages, label_BT: Tensor, *, max_values: int = MAX_VALUES
) -> Tensor:
    """`perplexity_scores` `[B, K]` of all passages (PDist)."""
    return _by_passage(reader, encoded, label_BT, perplexity_scores, max_values)


def passage_likelihoods(
    reader: FusionReader,
    encoded: EncodedPassages,
    label_BT: Tensor,
    *,
    temperature: float = 1.0,
    max_values: int = MAX_VALUES,
) -> Tensor:
    """Log-probability `[B, K, T]` of each target token given each passage alone, for `marginal_loss` (EMDR2)."""

    def reduce(logit_BKTV: Tensor, label_BT: Tensor) -> Tensor:
        return passage_log_likelihood(logit_BKTV, label_BT, temperature=temperature)

    return _by_passage(reader, encoded, label_BT, reduce, max_values)


@torch.no_grad()
def leave_one_out_signal(
    reader: FusionReader, encoded: EncodedPassages, label_BT: Tensor, *, max_values: int = MAX_VALUES
) -> Tensor:
    """`leave_one_out_scores` `[B, K]` of all passages (LOOP); at least two passages for each question."""
    num_passages, num_tokens = encoded.mask.shape[1], int(encoded.mask.flatten(1).sum(dim=1).max())
    config = reader.model.config
    values_of_copy = label_BT.shape[1] * max(config.vocab_size, config.num_heads * num_tokens)

    def score(questions: slice, copies: slice) -> Tensor:
        labels = label_BT[questions]
        logit_BCTV = reader.leave_one_out_logits(encoded.select(questions), labels, range(num_passages)[copies])
        return leave_one_out_scores(logit_BCTV, labels)

    return _in_parts(score, len(label_BT), num_passages, values_of_copy, max_values)


@torch.no_grad()
def _by_passage(
    reader: FusionReader,
    encoded: EncodedPassages,
    label_BT: Tensor,
    reduce: Callable[[Tensor, Tensor], Tensor],
    max_values: int,
) -> Tensor:
    def score(questions: slice, passages: slice) -> Tensor:
        labels = label_BT[questions]
        return reduce(reader.passage_logits(encoded.select(questions, passages), labels), labels)

    values_of_passage = label_BT.shape[1] * reader.model.config.vocab_size
    return _in_parts(score, len(label_BT), encoded.mask.shape[1], values_of_passage, max_values)


def _in_parts(
    score: Callable[[slice, slice], Tensor], num_questions: int, num_passages: int, values: int, max_values: int
) -> Tensor:
    """`score(questions, passages)` over all: several whole questions at a time, else several passages of one question.

    >>> parts = []
    >>> _ = _in_parts(lambda q, p: parts.append((q.start, p.start)) or torch.zeros(1, 1), 2, 3, 10, 20)
    >>> parts
    [(0, 0), (0, 2), (1, 0), (1, 2)]
    """
    height = max(1, max_values // (num_passages * values))
    width = min(num_passages, max(1, max_values // values))
    rows = []
    for question in range(0, num_questions, height):
        questions = slice(question, question + height)
        starts = range(0, num_passages, width)
        rows.append(torch.cat([score(questions, slice(start, start + width)) for start in starts], dim=1))
    return torch.cat(rows)
