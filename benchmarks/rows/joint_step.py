"""J1: one joint update of reader and retriever on a CPU, ours against the Atlas way; scores and losses of both.

The real FLAN-T5-small and MiniLM, real passages, dropout 0.1, perplexity distillation, another batch in each update.
Ours is `Learner.update` in the number format that `auto` gives; the peer pads each text to its limit, computes in fp32
with plain attention, encodes a second time for the scores and has an unfused optimiser. Padded to 512 tokens, one
question with its passages takes 20 GB. So it is measured on a question with half of its passages, another one in each
repeat, which counts eight times, and the optimiser once: work and memory grow with the passages, but for the decoder's
own tokens, less than 1 % of it. This leaves room for three repeats. Texts are tokenized before.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks import inputs
from benchmarks.gpu.joint_step import (
    Setting,
    learner_way,
    load_reader,
    make_batches,
    make_learner,
    pad_batches,
)
from benchmarks.gpu.passages import passage_table
from benchmarks.machine import interleaved, median, spread
from benchmarks.peers.atlas_step import AtlasStep, PaddedBatch
from benchmarks.suite import Bench, Measured
from ralm.device import resolve_dtype
from ralm.reader.scores import perplexity_signal
from ralm.training.batch import Batch

CPU = torch.device("cpu")
LIMITS = (256, 512)
"""Tokens that the peer pads to. All of the passages fit in the first."""
CURVE_PASSAGES = 3
CURVE_STEPS = 10
RATE = 1e-4


def measure(bench: Bench) -> Measured:
    """Measure updates, passage scores and loss curves."""
    model, size = inputs.quickstart_model(bench), 3 if bench.small else 20
    limits = (48, 96) if bench.small else LIMITS
    table = passage_table(inputs.passages(bench), max(64, 6 * 4 * size))
    rows = table.select(["title", "section", "text"]).to_pylist()
    setting = Setting(
        reader=model.reader_folder,
        retriever=model.passage_encoder_folder,
        batch=4,
        num_passages=size,
        text_limit=limits[0],
    )
    figures, lines = measure_updates(setting, limits, make_batches(rows, 6, 4, size), min(bench.repeats, 3))
    figures |= measure_scores(setting, make_batches(rows, 1, 1, size)[0])
    steps = 2 if bench.small else CURVE_STEPS
    small = dataclasses.replace(setting, batch=2, num_passages=CURVE_PASSAGES)
    figures |= measure_losses(small, make_batches(rows, steps, 2, CURVE_PASSAGES))
    return Measured(figures, lines)


def measure_updates(
    setting: Setting, limits: tuple[int, int], batches: list[Batch], repeats: int
) -> tuple[dict[str, float], list[str]]:
    """Times of an update, in turns.

    Args:
        setting: models and sizes; the text limit is the first of `limits`.
        limits: what the peer pads to.
        batches: one after the other.
        repeats: of each way.
    """
    update = learner_way(setting, batches, CPU, setting.batch)[0]
    peer = AtlasStep(setting.reader, setting.retriever, device=CPU, dtype=torch.float32)
    ways: dict[str, Callable[[], Any]] = {"ralm": update}
    halves = [half_of(batch) for batch in batches[:1]]
    for limit in limits:
        padded = dataclasses.replace(setting, text_limit=limit)
        parts = itertools.cycle([part for batch in pad_batches(padded, halves, CPU, 1) for part in batch])
        ways[f"half a question, {limit}"] = functools.partial(half_a_question, peer, parts)
    ways["optimiser"] = peer.step
    update()  # warm; the peer gains nothing by it
    times = interleaved(ways, CPU, repeats)
    share = setting.num_passages / len(halves[0].passages[0])
    whole = {"ralm": times["ralm"]}
    for limit in limits:
        pairs = zip(times[f"half a question, {limit}"], times["optimiser"], strict=True)
        whole[f"Atlas way, padded to {limit}"] = [setting.batch * share * spent + step for spent, step in pairs]
    ours, *peers = (median(spent) for spent in whole.values())
    lengths_N = input_lengths(dataclasses.replace(setting, text_limit=max(LIMITS)), batches)
    figures = {
        "update_s": ours,
        "x_atlas_way": peers[0] / ours,
        "x_atlas_way_512": peers[1] / ours,
        "mean_tokens": float(lengths_N.mean()),
        "share_that_fits": float((lengths_N <= limits[0]).mean()),
    }
    table = ["| way | s for an update | least to most | ours / it |", "|---|---|---|---|"]
    table += [
        f"| {name} | {median(spent):.3f} | {spread(spent)} | {median(spent) / ours:.2f} |"
        for name, spent in whole.items()
    ]
    return figures, table


def half_of(batch: Batch) -> Batch:
    """The same questions with the first half of their passages."""
    return dataclasses.replace(batch, passages=[passages[: -(-len(passages) // 2)] for passages in batch.passages])


def half_a_question(peer: AtlasStep, parts: Iterator[PaddedBatch]) -> None:
    """The peer's forward and backward pass for the next question."""
    peer.accumulate(next(parts), 0.25)


def input_lengths(setting: Setting, batches: list[Batch]) -> np.ndarray:
    """Tokens of the reader's inputs, cut at the limit."""
    reader = load_reader(setting, CPU)
    inputs_of = [reader.tokenize_inputs(batch.questions, batch.passages) for batch in batches]
    return np.array([len(row) for batch in inputs_of for of_question in batch for row in of_question])


def measure_scores(setting: Setting, batch: Batch) -> dict[str, float]:
    """Largest difference of the passage scores, in fp32 without dropout."""
    learner = make_learner(setting, CPU, torch.float32, dropout=0.0)
    ((_, tokens),) = learner.tokenize(batch).parts
    with torch.no_grad():
        ours_BK = perplexity_signal(learner.reader, learner.reader.encode(tokens.inputs), tokens.labels)
    peer = AtlasStep(setting.reader, setting.retriever, device=CPU, dtype=torch.float32, dropout=0.0)
    ((padded,),) = pad_batches(setting, [batch], CPU, 1)
    return {"score_difference": float((ours_BK - peer.scores(padded)).abs().max())}


def measure_losses(setting: Setting, batches: list[Batch]) -> dict[str, float]:
    """How far the curves of both losses are apart, over how far apart two seeds of dropout are in ours.

    The two ways are compared without dropout, whose random numbers they draw differently: what is left are number
    format, padding and the order of sums. The larger ratio of the two losses counts.
    """
    peer = loss_curves(atlas_updates(setting, batches, dropout=0.0))
    ours = loss_curves(learner_updates(setting, batches, dropout=0.0))
    seeds = [loss_curves(learner_updates(setting, batches, dropout=0.1, seed=seed)) for seed in (0, 1)]
    difference, noise = (np.abs(one - other).mean(axis=0) for one, other in ((ours, peer), tuple(seeds)))
    ratios = difference / noise
    return {
        "loss_difference": float(ratios.max()),
        "reader_loss_difference": float(difference[0]),
        "reader_loss_noise": float(noise[0]),
        "retriever_loss_difference": float(difference[1]),
        "retriever_loss_noise": float(noise[1]),
    }


def learner_updates(setting: Setting, batches: list[Batch], **settings: Any) -> Iterator[dict[str, Any]]:
    """Our updates, one with each batch, at a constant learning rate."""
    rates = {"learning_rate": RATE, "retriever_learning_rate": RATE, "schedule": "constant", "warmup_steps": 0}
    learner = make_learner(
        setting, CPU, resolve_dtype("auto", CPU), micro_batch_size=setting.batch, **rates, **settings
    )
    return (learner.update(batch, step) for step, batch in enumerate(batches))


def atlas_updates(setting: Setting, batches: list[Batch], dropout: float) -> Iterator[dict[str, Any]]:
    """The peer's."""
    peer = AtlasStep(
        setting.reader, setting.retriever, device=CPU, dtype=torch.float32, dropout=dropout, learning_rate=RATE
    )
    return (peer.update(parts) for parts in pad_batches(setting, batches, CPU, setting.batch))


def loss_curves(updates: Iterator[dict[str, Any]]) -> np.ndarray:
    """Reader loss and retriever loss `[updates, 2]`."""
    return np.array([(row["reader_loss"], row["retriever_loss"]) for row in updates])
