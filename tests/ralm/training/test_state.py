"""Checkpoints hold everything, are whole or absent, and only the last two are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ralm.errors import ArtifactError
from ralm.training.state import Progress, load_checkpoint, save_checkpoint


def make(seed: int, width: int = 3) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(seed)
    weights = {name: nn.Parameter(torch.randn(width, 2, generator=generator)) for name in ("a.b", "c")}
    return weights, torch.optim.AdamW(list(weights.values()), lr=0.1, fused=True)


def update(weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    scale = torch.randn(1, generator=torch.Generator().manual_seed(step))
    sum(((weight - scale) ** 3).sum() for weight in weights.values()).backward()
    optimizer.step()


def test_going_on_equals_not_stopping(tmp_path: Path) -> None:
    weights, optimizer = make(0)
    for step in range(6):
        update(weights, optimizer, step)
        if step == 2:
            save_checkpoint(tmp_path, Progress(step=3, log=[{"loss": 0.1 + 0.2}]), weights=weights, optimizer=optimizer)
    again, again_optimizer = make(1)
    done = load_checkpoint(tmp_path, weights=again, optimizer=again_optimizer)
    assert done == Progress(step=3, log=[{"loss": 0.1 + 0.2}])
    for step in range(3, 6):
        update(again, again_optimizer, step)
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_only_two_are_kept_and_unfinished_ones_are_ignored(tmp_path: Path) -> None:
    weights, optimizer = make(0)
    update(weights, optimizer, 0)
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, Progress(step=step, log=[]), weights=weights, optimizer=optimizer)
    (tmp_path / ".step-00000009").mkdir()
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002", "step-00000003"]
    assert load_checkpoint(tmp_path, weights=weights, optimizer=optimizer).step == 3


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    weights, optimizer = make(0)
    for step in (1, 2):
        save_checkpoint(tmp_path, Progress(step=step, log=[]), weights=weights, optimizer=optimizer)
    (file,) = (tmp_path / "step-00000002").glob("*.safetensors")
    file.write_bytes(b"no tensors")
    assert load_checkpoint(tmp_path, weights=weights, optimizer=optimizer).step == 1


def test_nothing_to_load(tmp_path: Path) -> None:
    weights, optimizer = make(0)
    assert load_checkpoint(tmp_path / "none", weights=weights, optimizer=optimizer) == Progress()


def test_checkpoint_of_another_model_or_version(tmp_path: Path) -> None:
    weights, optimizer = make(0)
    save_checkpoint(tmp_path, Progress(step=1, log=[]), weights=weights, optimizer=optimizer)
    wider, wider_optimizer = make(0, width=4)
    with pytest.raises(ArtifactError, match="other weights"):
        load_checkpoint(tmp_path, weights=wider, optimizer=wider_optimizer)
    (tmp_path / "step-00000001" / "state.json").write_text(json.dumps({"version": 9, "step": 1, "log": []}))
    with pytest.raises(ArtifactError, match="version"):
        load_checkpoint(tmp_path, weights=weights, optimizer=optimizer)
