"""An update is exactly what its settings say: mean gradient, one clip, AdamW. Nothing else touches the weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ralm.training.learner import Learner
from ralm.training.schedule import learning_rate_factor
from tests.ralm.training.test_learner import BATCH, CONFIG, make_learner

SMALL = dataclasses.replace(
    CONFIG,
    learning_rate=1e-3,
    retriever_learning_rate=2e-3,
    num_steps=3,
    warmup_steps=1,
    adam_beta2=0.95,
    adam_epsilon=1e-5,
)
BETAS = (0.9, 0.95)


def followed(learner: Learner, steps: int) -> dict[str, torch.Tensor]:
    """Weights after `steps` updates by an AdamW written out here, given the learner's own clipped gradients."""
    weights = {name: weight.detach().clone() for name, weight in learner.weights.items()}
    first = {name: torch.zeros_like(value) for name, value in weights.items()}
    second = {name: torch.zeros_like(value) for name, value in weights.items()}
    for step in range(steps):
        learner.update(BATCH, step)
        factor = learning_rate_factor(step, schedule="linear", warmup_steps=1, total_steps=3, floor_ratio=0.1)
        for name, value in weights.items():
            gradient = learner.weights[name].grad
            if gradient is None:
                continue
            is_reader = name.startswith("reader")
            rate = factor * (SMALL.learning_rate if is_reader else SMALL.retriever_learning_rate)
            first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * gradient
            second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * gradient**2
            mean, square = first[name] / (1 - BETAS[0] ** (step + 1)), second[name] / (1 - BETAS[1] ** (step + 1))
            value *= 1 - rate * SMALL.weight_decay
            value -= rate * mean / (square.sqrt() + SMALL.adam_epsilon)
    return weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_an_update_is_clipping_and_adamw_alone(tiny_model: str, dtype: torch.dtype, scale: float) -> None:
    """Defect 16: a home-made loss scale, in fp32 too, dropped updates and kept its own statistics.

    Gradients far above and below one, where that scale would have moved, make no difference.
    """
    learner = make_learner(tiny_model, dataclasses.replace(SMALL, clip_norm=scale))
    learner.dtype = dtype
    expected = followed(learner, 3)
    for name, value in expected.items():
        torch.testing.assert_close(learner.weights[name].detach(), value, rtol=1e-4, atol=2e-6, msg=name)


def test_gradients_are_those_of_the_bare_loss_in_every_update(tiny_model: str) -> None:
    """Defect 16: the loss was scaled before the backward pass, by a factor that moved with the gradients."""
    config = dataclasses.replace(SMALL, mode="reader_only", clip_norm=1e9)
    learner, other = make_learner(tiny_model, config), make_learner(tiny_model, config)
    for step in range(3):
        other.reader.model.load_state_dict(learner.reader.model.state_dict())
        other.reader.model.zero_grad()
        passages = [of_question[: config.num_passages] for of_question in BATCH.passages]
        label_BT = other.reader.tokenize_targets(BATCH.targets)
        encoded = other.reader.encode(other.reader.tokenize_inputs(BATCH.questions, passages))
        logit_BTV = other.reader.fusion_logits(encoded, label_BT)
        torch.nn.functional.cross_entropy(logit_BTV.flatten(0, 1), label_BT.flatten(), ignore_index=-100).backward()
        learner.update(BATCH, step)
        for name, weight in other.reader.model.named_parameters():
            found = learner.reader.model.get_parameter(name).grad
            torch.testing.assert_close(found, weight.grad, rtol=1e-4, atol=1e-6, msg=f"{step} {name}")


class CountReads(TorchDispatchMode):
    """Counts how often a number is fetched from a tensor; on a GPU each time waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_an_update_fetches_few_numbers_from_the_device(tiny_model: str) -> None:
    """Defect 16: four statistics of each tensor in each update, with a wait for the device each."""
    learner = make_learner(tiny_model, SMALL)
    learner.update(BATCH, 0)
    with CountReads() as reads:
        learner.update(BATCH, 1)
    assert 0 < reads.count < len(learner.weights) / 2, "does not grow with the number of tensors"


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": "cosine"},
        {"schedule": "constant"},
        {"warmup_steps": 3},
        {"num_steps": 40},
        {"floor_ratio": 0.9},
        {"learning_rate": 2e-3},
        {"retriever_learning_rate": 1e-4},
    ],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_every_setting_of_the_schedule_has_an_effect(tiny_model: str, change: dict[str, Any]) -> None:
    """Defect 17: two settings were read and never used."""

    def rates(config: Any) -> list[float]:
        learner = make_learner(tiny_model, dataclasses.replace(config, num_passages=1, num_retrieved=2))
        found = []
        for step in range(8):
            learner._set_learning_rate(step)
            found += [group["lr"] for group in learner.optimizer.param_groups]
        return found

    plain = dataclasses.replace(SMALL, num_steps=6, warmup_steps=2)
    assert rates(dataclasses.replace(plain, **change)) != rates(plain)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_schedule_counts_updates_and_stays_at_its_floor(tiny_model: str, schedule: str) -> None:
    """Defect 17: accumulation stretched the schedule, and the cosine fell below its floor after the end."""
    config = dataclasses.replace(SMALL, schedule=schedule, num_steps=4)
    by_size = []
    for size in (1, 2):
        learner = make_learner(tiny_model, dataclasses.replace(config, micro_batch_size=size))
        by_size.append([learner.update(BATCH, step)["reader_learning_rate"] for step in range(4)])
    assert by_size[0] == by_size[1]
    factors = [
        learning_rate_factor(step, schedule=schedule, warmup_steps=1, total_steps=4, floor_ratio=0.1)  # type: ignore[arg-type]
        for step in range(4, 100)
    ]
    assert factors == pytest.approx([0.1] * 96)
