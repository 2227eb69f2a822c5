"""The processes of a run: who is who, and the few exchanges that retrieval and training need.

PyTorch's own engine (`torch.distributed`) does the work: gloo for tensors in main memory, NCCL for those on GPUs. Only
tensors are exchanged, and numbers by name as JSON bytes; no objects. With one process nothing is set up and every
exchange is the identity.

Shapes: `W` processes; the first dimension of what is exchanged may differ between them, and may be 0.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ralm.device import use_device
from ralm.errors import ConfigError, WorkerError
from ralm.log import is_distributed_worker

TIMEOUT = datetime.timedelta(hours=3)
"""A process may wait this long for the others: while the first builds an index, they do. A dead one is noticed by its
closed connection; inside an exchange of NCCL perhaps only after this time, if its launcher does not end it before."""
LOST_CONNECTION = 69
"""Exit code of a process that another one left alone: the launcher looks for that one."""


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees it."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """W."""
    group: Any = None
    """The gloo or NCCL group whose exchanges these are; None for the default one."""

    @property
    def is_first(self) -> bool:
        """True for the process that writes what is written once."""
        return self.rank == 0

    def part(self, count: int, multiple: int = 1) -> slice:
        """This process' share of `count` rows: ranges that differ by at most `multiple` rows, which start at multiples.

        Example:
            >>> [World(rank, 3).part(10) for rank in range(3)]
            [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
            >>> [World(rank, 2).part(100, 32) for rank in range(2)]
            [slice(0, 64, None), slice(64, 100, None)]
        """
        blocks = -(-count // multiple)
        edges = [blocks * number // self.size * multiple for number in (self.rank, self.rank + 1)]
        return slice(min(edges[0], count), min(edges[1], count))

    def gather(self, rows: Tensor) -> list[Tensor]:
        """The rows of every process, in the order of ranks."""
        if self.size == 1:
            return [rows]
        counts = self._counts(len(rows))
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded, group=self.group)
        return [part[:count] for part, count in zip(gathered, counts, strict=True)]

    def exchange(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Send `rows[r]` to process r; what came from each, in the order of ranks."""
        if self.size == 1:
            return list(rows)
        sent = [len(part) for part in rows]
        counts = torch.empty(self.size, dtype=torch.int64)
        dist.all_to_all_single(counts, torch.tensor(sent, dtype=torch.int64), group=self.group)
        received = counts.tolist()
        joined = torch.cat(list(rows))
        result = joined.new_empty((sum(received), *joined.shape[1:]))
        dist.all_to_all_single(result, joined, received, sent, group=self.group)
        return list(result.split(received))

    def gather_json(self, value: Any) -> list[Any]:
        """A value of every process that JSON can hold, in the order of ranks. Numbers keep every digit."""
        if self.size == 1:
            return [value]
        content = torch.from_numpy(np.frombuffer(json.dumps(value).encode(), np.uint8).copy())
        return [json.loads(part.numpy().tobytes()) for part in self.gather(content)]

    def sum(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Sums by name over the processes; a process may leave names out."""
        total: dict[str, float] = {}
        for part in self.gather_json(dict(numbers)):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def any(self, flag: bool) -> bool:
        """True if it is true in any process."""
        return flag if self.size == 1 else max(self._counts(int(flag))) > 0

    def all(self, flag: bool) -> bool:
        """True if it is true in every process."""
        return not self.any(not flag)

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.any(False)

    def beside(self) -> World:
        """The same processes with a group of their own, for exchanges in a thread beside those of the main one.

        Every process has to call it, at the same point.
        """
        if self.size == 1:
            return self
        return World(self.rank, self.size, dist.new_group(backend="gloo", timeout=TIMEOUT))

    def _counts(self, count: int) -> list[int]:
        """A number of every process."""
        counts = torch.empty(self.size, dtype=torch.int64)
        dist.all_gather_single(counts, torch.tensor([count], dtype=torch.int64), group=self.group)
        return [int(number) for number in counts]


ALONE = World()


def join_world(device: torch.device) -> World:
    """Meet the other processes of this run; in a process that no launcher started, it is alone.

    Args:
        device: where this process computes; of a GPU's tensors NCCL takes care.

    Raises:
        ConfigError: the launcher's variables are not complete.
    """
    if not is_distributed_worker():
        return ALONE
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ConfigError(f"{missing[0]}: not set, though RANK is; start the workers with torchrun or --num-processes")
    if not dist.is_initialized():
        use_device(device)
        dist.init_process_group(backend_of(device), timeout=TIMEOUT)
    return World(dist.get_rank(), dist.get_world_size())


@contextmanager
def naming_lost_peers(world: World) -> Iterator[None]:
    """Inside, the end of a connection to another process is an error for people instead of a traceback.

    Raises:
        WorkerError: another process went down; which one, the launcher says.
    """
    try:
        yield
    except RuntimeError as error:
        if world.size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        reason = str(error).splitlines()[0]
        raise WorkerError(
            f"process {world.rank} of {world.size} lost its connection to another one: {reason}",
            exit_code=LOST_CONNECTION,
        ) from error


def backend_of(device: torch.device) -> str:
    """The engines behind exchanges: gloo for main memory, NCCL for GPUs."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


@contextmanager
def leaving(device: torch.device) -> Iterator[None]:
    """Leave the world at the end; after an error too, but on GPUs, where that may wait for a process that is gone."""
    try:
        yield
    except BaseException:
        if device.type != "cuda":
            leave_world()
        raise
    leave_world()


def leave_world() -> None:
    """End the connections of `join_world`."""
    if dist.is_initialized():
        dist.destroy_process_group()
