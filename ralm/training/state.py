"""Checkpoints: everything a killed run needs to go on as if nothing had happened, bit for bit.

A checkpoint is a folder `step-00000020` with `tensors.safetensors` (fp32 weights and both moments of the optimiser) and
`state.json` (updates done, log so far, the index in use). It is written under another name and renamed, so it is whole
or absent. Data order, dropout and schedule are functions of the seed and the update's number and need no state. No
pickle.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ralm.artifacts.files import read_json, remove, write_json
from ralm.errors import ArtifactError, DataError

TENSORS = "tensors.safetensors"
STATE = "state.json"
KEPT = 2
VERSION = 2
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int = 0
    """Updates done."""
    log: list[dict[str, Any]] = field(default_factory=list)
    """A row for each update done."""
    evaluations: list[dict[str, float]] = field(default_factory=list)
    """Metrics on the dev questions, each with the number of updates behind it as `step`."""
    index_step: int = 0
    """The update before which the index in use was made; 0 for the one that the run started with."""


def save_checkpoint(
    folder: Path, done: Progress, *, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> set[int]:
    """Write a checkpoint and drop all but the last two.

    Args:
        folder: where the checkpoints of this run are.
        done: how far the run is.
        weights: what learns, by name.
        optimizer: over exactly these weights.

    Returns:
        `index_step` of the checkpoints that are kept.
    """
    final = folder / f"step-{done.step:08d}"
    work = folder / f".{final.name}"
    remove(work)
    work.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        tensors[f"weight/{name}"] = weight.detach().contiguous()
        for moment, value in optimizer.state.get(weight, {}).items():
            tensors[f"{moment}/{name}"] = value.contiguous()
    save_file(tensors, work / TENSORS)
    with (work / TENSORS).open("rb") as file:
        os.fsync(file.fileno())
    write_json(work / STATE, {"version": VERSION, **asdict(done)})
    remove(final)
    work.rename(final)
    for old in _finished(folder)[:-KEPT]:
        remove(old)
    return {int(read_json(str(path / STATE))["index_step"]) for path in _finished(folder)}


def load_checkpoint(folder: Path, *, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> Progress:
    """Take weights and optimiser state from the newest readable checkpoint.

    Returns:
        How far the run is; nothing done where there is no checkpoint.

    Raises:
        ArtifactError: the checkpoint is of another model.
    """
    for path in reversed(_finished(folder)):
        try:
            state = read_json(str(path / STATE))
            tensors = load_file(path / TENSORS)
        except (DataError, OSError, SafetensorError) as error:
            logger.warning("%s: unreadable checkpoint, trying the one before: %s", path, error)
            continue
        if (version := state.pop("version")) != VERSION:
            raise ArtifactError(f"{path}: expected checkpoint version {VERSION}, found {version}")
        _restore(path, tensors, weights, optimizer)
        return Progress(**state)
    return Progress()


def _restore(
    path: Path, tensors: dict[str, Tensor], weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    found = {name.removeprefix("weight/"): value for name, value in tensors.items() if name.startswith("weight/")}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    if {name: tuple(value.shape) for name, value in found.items()} != shapes:
        raise ArtifactError(f"{path}: the checkpoint holds other weights than the model; remove it and train again")
    for name, weight in weights.items():
        with torch.no_grad():
            weight.copy_(found[name])
        state = {moment: tensors[f"{moment}/{name}"] for moment in MOMENTS if f"{moment}/{name}" in tensors}
        if state:
            optimizer.state[weight] = {moment: value.to(weight.device) for moment, value in state.items()}


def _finished(folder: Path) -> list[Path]:
    """Checkpoints, the oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}", path.name))
