"""Split weights in one process, and number formats: what can be seen of them without other processes or a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from ralm.distributed import leave_world
from ralm.training.learner import Learner
from ralm.training.parallel import whole
from ralm.training.precision import LossScale
from tests.ralm.training.test_learner import BATCH, CONFIG, make_learner


@pytest.fixture(autouse=True)
def alone_again() -> Iterator[None]:
    yield
    leave_world()


def updates(learner: Learner, count: int = 3) -> list[dict[str, float | None]]:
    rows = []
    for step in range(count):
        with learner.parallel.together():
            rows.append(learner.update(BATCH, step))
    return rows


@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_checkpointing": True}, {"micro_batch_size": 1}, {"freeze_reader": True}, {"mode": "reader_only"}],
    ids=str,
)
def test_split_weights_make_the_same_updates(tiny_model: str, changes: dict[str, object]) -> None:
    config = dataclasses.replace(CONFIG, **changes)
    plain, split = (
        make_learner(tiny_model, config),
        make_learner(tiny_model, dataclasses.replace(config, sharding="gradients")),
    )
    assert dist.is_initialized()
    for found, expected in zip(updates(split), updates(plain), strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == (None if value is None else pytest.approx(value, rel=1e-4, abs=1e-4)), name
    for name, weight in plain.weights.items():
        torch.testing.assert_close(whole(split.weights[name].detach()), weight.detach(), atol=1e-5, rtol=1e-4)


def test_weights_are_split_outside_of_an_update(tiny_model: str) -> None:
    split = make_learner(tiny_model, dataclasses.replace(CONFIG, sharding="gradients"))
    updates(split, 1)
    states = [state for state in split.optimizer.state.values()]
    assert all(hasattr(weight, "full_tensor") for weight in split.weights.values())
    assert all(hasattr(state[name], "full_tensor") for state in states for name in ("exp_avg", "exp_avg_sq"))


def test_a_retriever_that_stands_still_is_not_decayed(tiny_model: str) -> None:
    config = dataclasses.replace(CONFIG, sharding="gradients", freeze_retriever_steps=1, weight_decay=0.5)
    split = make_learner(tiny_model, config)
    before = {name: whole(weight.detach()).clone() for name, weight in split.weights.items()}
    updates(split, 1)
    for name, weight in split.weights.items():
        is_same = torch.equal(whole(weight.detach()), before[name])
        assert is_same == (not name.startswith("reader")), name


def test_fp16_losses_are_close_to_fp32(tiny_model: str) -> None:
    plain, low = make_learner(tiny_model, CONFIG), make_learner(tiny_model, CONFIG, torch.float16)
    for found, expected in zip(updates(low), updates(plain), strict=True):
        assert found["reader_loss"] == pytest.approx(expected["reader_loss"], rel=0.01)
        assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=0.05)
    assert all(weight.dtype == torch.float32 for weight in low.weights.values())


@pytest.mark.parametrize(
    ("dtype", "of_reader", "of_retriever"), [(torch.float16, 2e-3, 0.02), (torch.bfloat16, 0.03, 0.25)], ids=str
)
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_split_weights_in_low_precision(
    tiny_model: str, dtype: torch.dtype, of_reader: float, of_retriever: float, micro_batch_size: int
) -> None:
    """With one part for each process, and with several, whose gradients FSDP moves to its sums at other moments.

    A score's error is the number format's divided by the temperature; bfloat16 keeps 8 bits, float16 11."""
    config = dataclasses.replace(CONFIG, micro_batch_size=micro_batch_size, temperature_score=0.1)
    plain = make_learner(tiny_model, config)
    split = make_learner(tiny_model, dataclasses.replace(config, sharding="gradients"), dtype)
    for found, expected in zip(updates(split), updates(plain), strict=True):
        assert found["reader_loss"] == pytest.approx(expected["reader_loss"], rel=of_reader)
        assert found["retriever_loss"] == pytest.approx(expected["retriever_loss"], rel=of_retriever)


@pytest.mark.parametrize("sharding", ["none", "gradients"])
def test_an_update_whose_gradients_overflow_is_computed_again(tiny_model: str, sharding: str) -> None:
    config = dataclasses.replace(CONFIG, sharding=sharding)
    low, other = make_learner(tiny_model, config, torch.float16), make_learner(tiny_model, CONFIG, torch.float16)
    assert low.loss_scale is not None
    low.loss_scale.value = 2.0**40
    (found,), (expected,) = updates(low, 1), updates(other, 1)
    assert 1 < low.loss_scale.value < 2.0**40
    assert low.loss_scale.num_clean == 1
    assert found["reader_loss"] == pytest.approx(expected["reader_loss"], rel=1e-3)
    assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-2)


def test_the_scale_grows_again_and_ends_somewhere() -> None:
    scale = LossScale(value=1.0, patience=2)
    for _ in range(4):
        scale.count()
    assert scale.value == 4.0
    while scale.lower():
        pass
    assert 0 < scale.value < 1
