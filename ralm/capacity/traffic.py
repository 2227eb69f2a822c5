"""Bytes that one device sends in an update; it receives as many. With one process nothing is exchanged.

Symbols: `W` processes, `B` questions of an update, `D` values in a vector, `P` weights that learn.
"""

from __future__ import annotations

from typing import Final

from ralm.capacity.activations import FP32
from ralm.capacity.architecture import Models
from ralm.capacity.memory import learning_weights
from ralm.training.config import TrainingConfig

PAIR_BYTES: Final = 20
"""A score (fp32), and the row and the id of its passage (int64 each), as `ralm/index/shard.py` exchanges them."""


def traffic(config: TrainingConfig, models: Models, *, devices: int, compute_bytes: int) -> dict[str, int]:
    """Bytes that a device sends in an update, by what they are; mean over the devices.

    Sources: ring all-reduce moves 2 (W-1)/W of the data through each device, all-gather and reduce-scatter (W-1)/W
    each (Rajbhandari et al., arXiv 1910.02054, section 7).

    Args:
        config: of the training.
        models: shapes.
        devices: W.
        compute_bytes: of a weight as it is computed with.
    """
    learnt = learning_weights(config, models)
    others = (devices - 1) / devices
    found = max(config.num_scored, config.num_reranked)
    questions = config.batch_size * models.encoder.model_size * FP32 if config.retrieves else 0
    pairs = config.batch_size * found * PAIR_BYTES if config.retrieves else 0
    is_split = config.sharding == "gradients"
    return {
        "questions": round(others * questions),
        "scores and passages": round(others * pairs),
        "weights": round(others * (FP32 if config.precision == "fp16" else compute_bytes) * learnt) if is_split else 0,
        "gradients": round((1 if is_split else 2) * others * FP32 * learnt),
    }
