"""Operations against those that PyTorch counts in real models; refreshes against the schedule, update by update."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ralm.capacity.architecture import MINILM, T5, Models
from ralm.capacity.work import (
    DEVICES,
    INPUT_TOKENS,
    PASSAGE_TOKENS,
    QUESTION_TOKENS,
    decoder_flops,
    embedding_flops,
    encoder_flops,
    num_refreshes,
    reader_flops,
    update_flops,
)
from ralm.training.config import TrainingConfig
from ralm.training.refresh_schedule import parse_refresh_schedule, refresh_is_due
from tests.ralm.capacity.toy import ENCODER, READER, VOCABULARY, full_batch, make_bert, make_learner, make_t5
from tests.ralm.capacity.toy import MODELS as TOYS

MODELS = Models(
    reader=T5["small"],
    encoder=MINILM,
    max_input_tokens=256,
    max_target_tokens=8,
    max_passage_tokens=256,
    max_question_tokens=64,
)


def counted(model: torch.nn.Module, **inputs: Any) -> int:
    # PyTorch does not count the fused attention of a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return int(counter.get_total_flops())


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (rows, length))


def test_operations_of_an_encoder() -> None:
    real = counted(make_bert(ENCODER), input_ids=tokens(3, 50))
    assert 3 * encoder_flops(ENCODER, 50) == pytest.approx(real, rel=0.001)


@pytest.mark.parametrize("is_gated", [True, False])
def test_operations_of_a_reader(is_gated: bool) -> None:
    shape = dataclasses.replace(READER, is_gated=is_gated)
    model = make_t5(shape)
    assert 3 * reader_flops(shape, 60) == pytest.approx(counted(model.encoder, input_ids=tokens(3, 60)), rel=0.001)
    state_BSD = torch.zeros(1, 180, shape.model_size)
    real = counted(model, encoder_outputs=(state_BSD,), decoder_input_ids=tokens(1, 7), use_cache=False)
    assert decoder_flops(shape, 7, 180) == pytest.approx(real, rel=0.001)


def test_an_update_is_the_sum_of_its_parts() -> None:
    config = TrainingConfig(mode="joint", num_passages=4, num_retrieved=6, batch_size=3, score_pass="eval")
    length = QUESTION_TOKENS + INPUT_TOKENS
    read = 4 * reader_flops(T5["small"], length)
    question, passage = encoder_flops(MINILM, QUESTION_TOKENS), encoder_flops(MINILM, PASSAGE_TOKENS)
    expected = (
        3 * (read + decoder_flops(T5["small"], 8, 4 * length))  # forward and backward
        + read  # again without dropout
        + 2 * reader_flops(T5["small"], length)  # those that only the retriever learns from
        + 6 * decoder_flops(T5["small"], 8, length)
        + 3 * (question + 6 * passage)
        + question
        + 2 * 1000 * 384
    )
    found = update_flops(config, MODELS, passages=1000, question_tokens=QUESTION_TOKENS)
    assert found == pytest.approx(3 * expected)


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("objective", ["pdist", "loop"])
def test_a_real_update_has_the_planned_operations(objective: Any, checkpoints: bool, tmp_path: Path) -> None:
    config = TrainingConfig(
        mode="joint",
        objective=objective,
        num_passages=3,
        num_retrieved=4,
        batch_size=2,
        score_pass="eval",
        gradient_checkpointing=checkpoints,
    )
    learner, batch = make_learner(config, torch.float32, tmp_path), full_batch(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        learner.update(batch, 0)
    length = TOYS.max_question_tokens
    planned = update_flops(config, TOYS, passages=0, question_tokens=length)
    planned -= config.batch_size * encoder_flops(ENCODER, length)  # for the search, before the update
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.05)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"mode": "reader_only", "closed_book": True}, {"mode": "reader_only"}),
        ({"mode": "reader_only"}, {"mode": "query_side"}),
        ({"mode": "query_side"}, {"mode": "joint"}),
        ({"mode": "joint", "freeze_reader": True}, {"mode": "joint"}),
        ({"mode": "joint"}, {"mode": "joint", "num_reranked": 50}),
        ({"mode": "joint"}, {"mode": "joint", "gradient_checkpointing": True}),
        ({"objective": "adist"}, {"objective": "pdist"}),
        ({"objective": "pdist"}, {"objective": "loop"}),
    ],
    ids=str,
)
def test_what_does_more_takes_longer(less: dict[str, Any], more: dict[str, Any]) -> None:
    first, second = (
        update_flops(TrainingConfig(**each), MODELS, passages=1000, question_tokens=23) for each in (less, more)
    )
    assert 0 < first < second


@pytest.mark.parametrize("schedule", ["-1", "7", "100", "0-10:3,10-90:20", "5-50:9"])
@pytest.mark.parametrize("frozen", [0, 4, 30])
@pytest.mark.parametrize("steps", [0, 1, 8, 60])
def test_refreshes_are_counted_as_they_happen(schedule: str, frozen: int, steps: int) -> None:
    config = TrainingConfig(mode="joint", refresh_schedule=schedule, num_steps=steps, freeze_retriever_steps=frozen)
    due = parse_refresh_schedule(schedule)
    expected = sum(step > frozen and refresh_is_due(due, step) for step in range(steps))
    assert num_refreshes(config) == expected


def test_counting_refreshes_takes_no_time() -> None:
    config = TrainingConfig(mode="joint", refresh_schedule="1", num_steps=10**30)
    assert num_refreshes(config) == 10**30 - 1


def test_speeds_agree_with_what_was_measured_and_published() -> None:
    """The figures in docs/planning.md: two cores in bf16, and the best published engine as an upper limit."""
    cpu, a100 = DEVICES["cpu"], DEVICES["a100"]
    base = dataclasses.replace(MINILM, model_size=768, feed_forward=3072, num_layers=12)
    measured = 22.7 * encoder_flops(base, 110)
    assert cpu.embedding_efficiency * cpu.peak_tflops["bf16"] * 1e12 == pytest.approx(measured, rel=0.1)
    published = 7930 * encoder_flops(base, 128)
    assert a100.embedding_efficiency * a100.peak_tflops["bf16"] * 1e12 < published
    assert embedding_flops(base, 64) < embedding_flops(base, 512) == encoder_flops(base, PASSAGE_TOKENS)
