"""What the reader tells the retriever in an update: its signal on each passage, and the retriever's loss made of it.

Shapes: `B` questions, `K` passages per question, `T` target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from ralm.objectives.divergence import distillation_loss
from ralm.objectives.marginal import marginal_loss
from ralm.reader.encoded import EncodedPassages
from ralm.reader.fusion import FusionReader
from ralm.reader.scores import leave_one_out_signal, passage_likelihoods, perplexity_signal
from ralm.training.config import TrainingConfig


@dataclass(frozen=True)
class Signal:
    """The reader's view of the passages of B questions, without gradient."""

    gold: Tensor
    """`[B, K]` scores, higher for more useful passages; with `emdr2` the log-probability `[B, K, T]` of each target
    token given each passage alone."""
    labels: Tensor
    """`[B, T]`, labels of the targets."""
    correlations: dict[str, float] = field(default_factory=dict)
    """Correlation of `gold` with each way to sum up the cross-attention, where it was asked for."""


@torch.no_grad()
def passage_signal(
    reader: FusionReader,
    encoded: EncodedPassages,
    label_BT: Tensor,
    questions: Sequence[str],
    config: TrainingConfig,
) -> Signal:
    """The reader's signal by `config.objective`.

    Args:
        reader: in eval mode.
        encoded: all passages of each question.
        label_BT: labels of the targets.
        questions: texts as given.
        config: names the objective.
    """
    if config.objective == "emdr2":
        gold = passage_likelihoods(reader, encoded, label_BT, temperature=config.gold_temperature)
    elif config.objective == "adist":
        gold = reader.attention_scores(encoded, label_BT)
    else:
        gold = {"pdist": perplexity_signal, "loop": leave_one_out_signal}[config.objective](reader, encoded, label_BT)
    correlations: dict[str, float] = {}
    if config.attention_statistics:
        score_BK = gold.sum(dim=-1) if gold.dim() == 3 else gold
        sums = reader.attention_statistics(encoded, label_BT, questions)
        correlations = {f"correlation_{name}": mean_correlation(score_BK, value) for name, value in sums.items()}
    return Signal(gold, label_BT, correlations)


def retriever_loss(score_BK: Tensor, signal: Signal, config: TrainingConfig) -> Tensor:
    """The retriever's loss, averaged over questions (with `emdr2` by token: over target tokens).

    Args:
        score_BK: the retriever's scores, with gradient.
        signal: the reader's view of the same passages.
        config: objective, temperatures, reduction.
    """
    if config.objective == "emdr2":
        log_retriever_BK = functional.log_softmax(score_BK.float() / config.temperature_score, dim=-1)
        return marginal_loss(signal.gold, signal.labels, log_retriever_BK, level=config.emdr2_level)
    return distillation_loss(
        score_BK,
        signal.gold,
        temperature_score=config.temperature_score,
        temperature_gold=config.gold_temperature,
        reduction=config.reduction,
    )


def mean_correlation(first_BK: Tensor, second_BK: Tensor) -> float:
    """Pearson correlation over the passages of a question, averaged over questions; 0 where one does not vary.

    Example:
        >>> mean_correlation(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 4.0, 6.0]]))
        1.0
    """
    first_BK, second_BK = (each.double() - each.double().mean(dim=1, keepdim=True) for each in (first_BK, second_BK))
    scale_B = first_BK.norm(dim=1) * second_BK.norm(dim=1)
    product_B = (first_BK * second_BK).sum(dim=1)
    return round(float(torch.where(scale_B > 0, product_B / scale_B.clamp(min=1e-30), 0.0).mean()), 6)
