"""Hours of a planned run, from its operations and the speed of its devices."""

from __future__ import annotations

import dataclasses
import math

from ralm.capacity.run import Run
from ralm.capacity.work import embedding_flops, num_refreshes, update_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hours:
    """How long the parts of a run take on all devices together, and the speeds behind that."""

    embedding: float
    """All passages, in a joint run twice: before and after training."""
    training: float
    refreshes: float
    """Of the index during training."""
    num_embeddings: int
    num_updates: int
    num_refreshes: int
    flops_per_passage: float
    flops_per_update: float
    passages_per_s: float
    """Of one device."""
    training_tflops: float
    """10^12 operations a second of one device."""
    update_s: float

    @property
    def total(self) -> float:
        """Of the parts."""
        return self.embedding + self.training + self.refreshes


def estimate_hours(run: Run) -> Hours:
    """Hours of embedding, training and index refreshes."""
    cluster, train, device = run.cluster, run.train, run.cluster.device
    per_passage = embedding_flops(run.models.encoder, run.models.max_passage_tokens)
    peak = device.peak_tflops[run.number_format(run.embedding_precision)]
    rate = cluster.passages_per_s or device.embedding_efficiency * peak * 1e12 / per_passage
    once = run.passages / (rate * cluster.devices) / 3600
    per_update = update_flops(train, run.models, passages=run.passages, question_tokens=run.question_tokens)
    efficiency = cluster.efficiency or device.training_efficiency
    tflops = efficiency * device.peak_tflops[run.number_format(train.precision)]
    busiest = math.ceil(train.batch_size / cluster.devices) / train.batch_size  # its part of the questions
    update_s = busiest * per_update / (tflops * 1e12)
    num_embeddings, refreshes = 2 if train.mode == "joint" else 1, num_refreshes(train)
    return Hours(
        embedding=num_embeddings * once,
        training=train.num_steps * update_s / 3600,
        refreshes=refreshes * once,
        num_embeddings=num_embeddings,
        num_updates=train.num_steps,
        num_refreshes=refreshes,
        flops_per_passage=per_passage,
        flops_per_update=per_update,
        passages_per_s=rate,
        training_tflops=tflops,
        update_s=update_s,
    )
