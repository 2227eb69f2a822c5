"""Checkpoints: everything a killed run needs to go on as if nothing had happened, bit for bit.

A checkpoint is a folder `step-00000020` with safetensors files (fp32 weights and both moments of the optimiser) that
`torch.distributed.checkpoint` writes: each process its part, and any other number of processes can read them.
`state.json` (updates done, log so far, the index in use) is written last, and the folder gets its name at the very end,
so it is whole or absent. Data order, dropout and schedule are functions of the seed and the update's number and need no
state. No pickle. Several processes have to see the same folder.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from ralm.artifacts.files import read_json, remove, write_json
from ralm.distributed import ALONE, World
from ralm.errors import ArtifactError, ConfigError, DataError

STATE = "state.json"
KEPT = 2
VERSION = 3
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
logger = logging.getLogger(__name__)
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")  # one process


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
    loss_scale: tuple[float, int] | None = None
    """Of fp16: what the loss is multiplied with, and the updates since it was changed."""


def save_checkpoint(
    folder: Path,
    done: Progress,
    *,
    weights: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    world: World = ALONE,
) -> set[int]:
    """Write a checkpoint and drop all but the last two. Every process has to call it.

    Args:
        folder: where the checkpoints of this run are.
        done: how far the run is.
        weights: what learns, by name.
        optimizer: over exactly these weights.
        world: the processes; each writes its part.

    Returns:
        `index_step` of the checkpoints that are kept, in the first process.

    Raises:
        ConfigError: the processes do not see the same folder.
        OSError: it could not be written; the checkpoints before are as they were.
    """
    final = folder / f"step-{done.step:08d}"
    work = folder / f".{final.name}"
    if world.is_first:
        remove(work)
        work.mkdir(parents=True)
    world.barrier()
    check_shared(work, world)
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        tensors[f"weight/{name}"] = weight.detach()
        for moment, value in optimizer.state.get(weight, {}).items():
            tensors[f"{moment}/{name}"] = value
    try:
        writer = HuggingFaceStorageWriter(str(work), save_distributed=True)
        dcp.save(tensors, storage_writer=writer, no_dist=world.size == 1)
    except CheckpointException as error:
        raise _first_failure(error) from error
    if world.is_first:
        for path in work.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shapes = {name: list(value.shape) for name, value in tensors.items()}
        write_json(work / STATE, {"version": VERSION, "tensors": shapes, **asdict(done)})
        remove(final)
        work.rename(final)
        for old in _finished(folder)[:-KEPT]:
            remove(old)
    world.barrier()
    if not world.is_first:
        return set()
    return {int(read_json(str(path / STATE))["index_step"]) for path in _finished(folder)}


def check_shared(path: Path, world: World) -> None:
    """Refuse a place that the first process made and another does not see.

    Raises:
        ConfigError: RALM_HOME is not on a disk that all nodes share.
    """
    if blind := [rank for rank, sees in enumerate(world.gather_json(path.exists())) if not sees]:
        raise ConfigError(f"{path}: not seen by process {blind[0]}; RALM_HOME has to be on a disk all nodes share")


def load_checkpoint(
    folder: Path,
    *,
    weights: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    world: World = ALONE,
) -> Progress:
    """Take weights and optimiser state from the newest readable checkpoint. Every process has to call it.

    Returns:
        How far the run is; nothing done where there is no checkpoint.

    Raises:
        ArtifactError: the checkpoint is of another model.
    """
    finished = [str(path) for path in _finished(folder)] if world.is_first else []
    for path in reversed(world.gather_json(finished)[0]):
        loaded = _load(Path(path), weights, optimizer, world)
        if world.all(loaded is not None):
            assert loaded is not None
            done, tensors = loaded
            _restore(tensors, weights, optimizer)
            return done
    return Progress()


def _load(
    path: Path, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, world: World
) -> tuple[Progress, dict[str, Tensor]] | None:
    """What a checkpoint holds of this process' part; None if it cannot be read."""
    try:
        state = read_json(str(path / STATE))
    except (DataError, OSError) as error:
        logger.warning("%s: unreadable checkpoint, trying the one before: %s", path, error)
        state = {}
    if not world.all(bool(state)):
        return None
    if (version := state.pop("version")) != VERSION:
        raise ArtifactError(f"{path}: expected checkpoint version {VERSION}, found {version}")
    shapes = state.pop("tensors")
    found = {name.removeprefix("weight/"): shape for name, shape in shapes.items() if name.startswith("weight/")}
    if found != {name: list(weight.shape) for name, weight in weights.items()}:
        raise ArtifactError(f"{path}: the checkpoint holds other weights than the model; remove it and train again")
    tensors: dict[str, Tensor] = {}
    for name in shapes:
        kind, _, weight = name.partition("/")
        like = weights[weight].detach()
        tensors[name] = torch.zeros((), device=like.device) if kind == "step" else torch.empty_like(like)
    try:
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=world.size == 1)
    except CheckpointException as error:
        logger.warning("%s: unreadable checkpoint, trying the one before: %s", path, _first_failure(error))
        return None
    scale = state["loss_scale"]
    return Progress(**{**state, "loss_scale": None if scale is None else (float(scale[0]), int(scale[1]))}), tensors


def _first_failure(error: CheckpointException) -> BaseException:
    """What went wrong in the first process in which something did."""
    failure: BaseException = next(iter(error.failures.values()))[0]
    return failure


def _restore(
    tensors: Mapping[str, Tensor], weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    for name, weight in weights.items():
        with torch.no_grad():
            weight.copy_(tensors[f"weight/{name}"])
        state = {moment: tensors[f"{moment}/{name}"] for moment in MOMENTS if f"{moment}/{name}" in tensors}
        if state:
            optimizer.state[weight] = state


def _finished(folder: Path) -> list[Path]:
    """Checkpoints, the oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}", path.name))
