"""One joint update on a GPU, reader and retriever together, against the way of Atlas.

    python -m benchmarks.gpu.joint_step --work DIR --passages PASSAGES --bert-vocab vocab.txt --t5-tokenizer t5/

T5 1.1 base and BERT base with random weights, bf16, dropout, perplexity distillation. The update is that of the project
(`Learner.update`: inputs padded to the longest of their group, encoder states used twice, weights fp32 under autocast,
fused AdamW); the peer is `benchmarks/peers/atlas_step.py`, padded to `--text-limit`, in the attention of Atlas and in
that of today. Every update has other questions and passages, as in training, so other lengths; they are tokenized
before. Each way computes as many questions at a time as fit, at most the batch; Atlas' own recipes take one and compute
states again, which is slower.
"""

from __future__ import annotations

import argparse
import gc
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.gpu.made_models import Shape, write_bert, write_t5
from benchmarks.gpu.passages import passage_table
from benchmarks.machine import GB, describe, interleaved, median, pick_device, spread
from benchmarks.peers.atlas_step import AtlasStep, PaddedBatch, pad_to_limit
from ralm.device import resolve_dtype
from ralm.reader.config import ReaderConfig
from ralm.reader.fusion import FusionReader
from ralm.retriever.config import RetrieverConfig
from ralm.retriever.encoder import Encoder
from ralm.training.batch import Batch, Tokens
from ralm.training.config import TrainingConfig
from ralm.training.learner import Learner

QUESTION = "which of the {} names in this text was written down first, and by whom was it found again"
TARGET_TOKENS = 32
WARM_UP = 2
"""Updates that do not count."""
Maker = Callable[[int], tuple[Callable[[], Any], nn.Module]]
"""From the questions at a time to an update, and the encoder of its reader."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What an update computes, and where its models are."""

    reader: Path
    retriever: Path
    batch: int
    """Questions of an update."""
    num_passages: int
    text_limit: int
    """Tokens of a text at most; the peer pads to it."""


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the models")
    parser.add_argument("--passages", default="", help="passages artifact; default: made ones")
    parser.add_argument("--bert-vocab", type=Path, help="vocab.txt of BERT; default: made from the texts")
    parser.add_argument("--t5-tokenizer", type=Path, help="folder of T5's tokenizer; default: made from the texts")
    parser.add_argument("--batch", type=int, default=4, help="questions of an update")
    parser.add_argument("--num-passages", type=int, default=40)
    parser.add_argument("--text-limit", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="print where the device's time goes in ours, and stop")
    parser.add_argument("--small", action="store_true", help="tiny models, also on a CPU")
    given = parser.parse_args(argv)
    if given.small:
        given.num_passages, given.text_limit, given.repeats = 3, 120, 1
    device = pick_device(small=given.small)
    setting, batches = prepare(given)
    print(
        f"{describe(device)}; {given.batch} questions x {given.num_passages} passages, text limit {given.text_limit}, "
        f"{given.repeats} repeats",
        flush=True,
    )
    if given.profile:
        profile(learner_way(setting, batches, device, given.batch)[0])
        return
    makers: dict[str, Maker] = {
        "ralm": lambda micro: learner_way(setting, batches, device, micro),
        "Atlas way": lambda micro: atlas_way(setting, batches, device, micro, "eager"),
        "Atlas way, attention of today": lambda micro: atlas_way(setting, batches, device, micro, "sdpa"),
    }
    print_table(makers, given, device)


def prepare(given: argparse.Namespace) -> tuple[Setting, list[Batch]]:
    """Write the models if they are not there; the questions of each update with their passages."""
    num_batches = given.repeats + WARM_UP
    table = passage_table(given.passages, max(64, num_batches * given.batch * given.num_passages))
    rows = table.select(["title", "section", "text"]).to_pylist()
    if not (given.work / "reader" / "config.json").exists():
        texts = [f"question: {QUESTION} title: context: {' '.join(row.values())} 0 1 2 3" for row in rows]
        shape: Shape = "tiny" if given.small else "base"
        write_bert(given.work / "retriever", shape, texts, given.bert_vocab)
        write_t5(given.work / "reader", shape, texts, given.t5_tokenizer)
    setting = Setting(
        reader=given.work / "reader",
        retriever=given.work / "retriever",
        batch=given.batch,
        num_passages=given.num_passages,
        text_limit=given.text_limit,
    )
    return setting, make_batches(rows, num_batches, given.batch, given.num_passages)


def make_batches(rows: list[dict[str, Any]], num_batches: int, batch: int, num_passages: int) -> list[Batch]:
    """For each update `batch` questions with passages drawn from these rows; a target is the start of the first."""
    chosen = np.random.default_rng(6).choice(len(rows), size=(num_batches, batch, num_passages), replace=False)
    questions = [QUESTION.format(number) for number in range(batch)]
    batches = []
    for of_batch in chosen:
        passages = [[SimpleNamespace(**rows[row]) for row in of_question] for of_question in of_batch]
        targets = [" ".join(rows[row]["text"].split()[:4]) for row in of_batch[:, 0]]
        batches.append(Batch(questions, targets, passages, None))
    return batches


def learner_way(
    setting: Setting, batches: list[Batch], device: torch.device, micro: int
) -> tuple[Callable[[], Any], nn.Module]:
    """The project's update, each time with the next batch, and the reader's encoder."""
    learner = make_learner(setting, device, resolve_dtype("auto", device), micro_batch_size=micro)
    steps = iter(itertools.cycle(enumerate([learner.tokenize(batch) for batch in batches])))

    def update() -> None:
        step, batch = next(steps)
        learner.update(batch, step)

    return update, learner.reader.model.encoder


def make_learner(setting: Setting, device: torch.device, dtype: torch.dtype, **settings: Any) -> Learner:
    """The project's learner; `settings` are those of `TrainingConfig`."""
    plain = {"mode": "joint", "batch_size": setting.batch, "num_passages": setting.num_passages, "num_steps": 10**6}
    reader, encoder = load_reader(setting, device), load_encoder(setting, device)
    return Learner(reader, encoder, encoder, TrainingConfig(**{**plain, **settings}), dtype)


def load_reader(setting: Setting, device: torch.device) -> FusionReader:
    """The project's reader."""
    limits = ReaderConfig(max_input_tokens=setting.text_limit, max_target_tokens=TARGET_TOKENS)
    return FusionReader.load(setting.reader, limits, device=device)


def load_encoder(setting: Setting, device: torch.device) -> Encoder:
    """The project's retriever, for questions and passages."""
    limits = RetrieverConfig(max_passage_tokens=setting.text_limit, max_question_tokens=setting.text_limit)
    return Encoder.load(setting.retriever, limits, device=device, dtype=torch.float32)


def atlas_way(
    setting: Setting, batches: list[Batch], device: torch.device, micro: int, attention: Any, **options: Any
) -> tuple[Callable[[], Any], nn.Module]:
    """The peer's update, each time with the next batch, and the reader's encoder; `options` are those of the peer."""
    step = AtlasStep(setting.reader, setting.retriever, device=device, attention=attention, **options)
    steps = iter(itertools.cycle(pad_batches(setting, batches, device, micro)))
    return lambda: step.update(next(steps)), step.reader.encoder


def pad_batches(setting: Setting, batches: list[Batch], device: torch.device, micro: int) -> list[list[PaddedBatch]]:
    """The batches as the peer takes them, in parts of `micro` questions."""
    reader, encoder = load_reader(setting, torch.device("cpu")), load_encoder(setting, torch.device("cpu"))
    padded = []
    for batch in batches:
        parts = batch.cut(micro, reader=reader, question_encoder=encoder, passage_encoder=encoder).parts
        padded.append([pad_batch(tokens, setting.text_limit, encoder.pad_id, device) for _, tokens in parts])
    return padded


def pad_batch(tokens: Tokens, limit: int, pad_id: int, device: torch.device) -> PaddedBatch:
    """Questions with their passages as the peer takes them."""
    inputs = [row for of_question in tokens.inputs for row in of_question]
    return PaddedBatch(
        reader=pad_to_limit(inputs, limit, 0, device),
        labels=tokens.labels.to(device),
        questions=pad_to_limit([row.tolist() for row in tokens.questions], limit, pad_id, device),
        passages=pad_to_limit([row.tolist() for row in tokens.passages], limit, pad_id, device),
    )


def print_table(makers: dict[str, Maker], given: argparse.Namespace, device: torch.device) -> None:
    """Find for each way how many questions fit, then measure all in turns."""
    ways: dict[str, Callable[[], Any]] = {}
    facts: dict[str, tuple[int, int, float]] = {}
    for name, make in makers.items():
        for micro in (size for size in (given.batch, 2, 1) if size <= given.batch):
            fitting = try_way(make, micro, device)
            if fitting is not None:
                ways[name], facts[name] = fitting[0], (micro, *fitting[1:])
                break
    times = interleaved(ways, device, given.repeats)
    heads = ("way", "questions at a time", "s for an update", "least to most", "tokens through the reader's encoder")
    print(f"| {' | '.join(heads)} | memory, GB | ours is so many times as fast |")
    print("|---|---|---|---|---|---|---|")
    for name, spent in times.items():
        micro, num_tokens, memory = facts[name]
        print(
            f"| {name} | {micro} | {median(spent):.4f} | {spread(spent)} | {num_tokens:,} | {memory / GB:.1f} "
            f"| {median(spent) / median(times['ralm']):.2f} |"
        )
    for name in makers.keys() - times.keys():
        print(f"{name}: does not fit")


def try_way(make: Maker, micro: int, device: torch.device) -> tuple[Callable[[], Any], int, float] | None:
    """Warm a way up with `micro` questions at a time.

    Returns:
        The way, the tokens with padding that the reader's encoder computes in an update, and the most memory; None if
        it does not fit.
    """
    before, counts = allocated(device), []
    try:
        way, encoder = make(micro)
        reset_peak(device)
        counter = encoder.register_forward_pre_hook(
            lambda module, inputs, values: counts.append(values["input_ids"].numel()), with_kwargs=True
        )
        for _ in range(WARM_UP):
            way()
        counter.remove()
        return way, sum(counts) // WARM_UP, peak_memory(device) - before
    except torch.OutOfMemoryError:
        return None
    finally:
        free(device)


def profile(way: Callable[[], Any]) -> None:
    """Print the kernels that take the most time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for _ in range(2):
        way()
    with torch.profiler.profile(activities=activities) as found:
        way()
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=60))


def allocated(device: torch.device) -> int:
    """Bytes of tensors on the device."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def reset_peak(device: torch.device) -> None:
    """Count the most memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Most bytes of tensors at a time."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def free(device: torch.device) -> None:
    """Give back what nothing uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
