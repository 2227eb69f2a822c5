"""The machine a benchmark runs on, what it can do at most, and fair timing of ways to do the same."""

from __future__ import annotations

import bz2
import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch

from ralm.device import best_device, has_fast_bf16, resolve_dtype

GB = 1e9
LEAST_REPEATS, LONG_S = 3, 40.0
"""A way whose first three calls took this long together is not called again."""
T = TypeVar("T")


def describe(device: torch.device) -> str:
    """One line for the head of a table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, no GPU"
    return f"{name}; {os.cpu_count()} cores; torch {torch.__version__}; load {os.getloadavg()[0]:.1f}"


def pick_device(*, small: bool) -> torch.device:
    """The device to measure; a small run takes a CPU too."""
    device = best_device()
    if device.type != "cuda" and not small:
        raise SystemExit("this benchmark needs a CUDA device; --small runs it in a tiny size on a CPU")
    return device


def is_slow() -> bool:
    """True on processors without bf16 units, where models take several times as long: rows take fewer texts there."""
    return not has_fast_bf16(torch.device("cpu"))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's work in it."""
    synchronize(device)
    started_at = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - started_at


def interleaved(ways: Mapping[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Times of each way, in turns, so that all of them meet the same moods of the machine; no warm-up.

    Args:
        ways: what to call, by name.
        device: what they compute on.
        repeats: how often each is called; at most three times if these take `LONG_S`.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name, function in ways.items():
            if turn < LEAST_REPEATS or sum(times[name][:LEAST_REPEATS]) < LONG_S:
                times[name].append(seconds(function, device))
    return times


def median(times: list[float]) -> float:
    """The middle one."""
    return statistics.median(times)


def spread(times: list[float]) -> str:
    """The least and the most, for a table."""
    return f"{min(times):.4g} to {max(times):.4g}"


def peak_flops(device: torch.device, *, size: int, dtype: torch.dtype | None = None, repeats: int = 10) -> float:
    """Operations per second of a large product of random matrices: what there is to reach, as this run finds it.

    Args:
        device: where.
        size: rows and columns.
        dtype: by default what `auto` computes in there: bf16 where the hardware has it, else fp32.
        repeats: of which the median is taken.
    """
    dtype = dtype or resolve_dtype("auto", device)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(3):
        torch.mm(left, right)
    spent = median([seconds(lambda: torch.mm(left, right), device) for _ in range(repeats)])
    return 2 * size**3 / spent


def copy_bandwidth(device: torch.device, *, num_bytes: int, repeats: int = 10) -> float:
    """Bytes read and written per second by a copy within the device's memory."""
    source, target = (torch.empty(num_bytes // 2, dtype=torch.uint8, device=device) for _ in range(2))
    target.copy_(source)
    return num_bytes / median([seconds(lambda: target.copy_(source), device) for _ in range(repeats)])


def read_bandwidth(*, num_bytes: int = 1 << 30, repeats: int = 5) -> float:
    """Bytes of main memory read per second by a sum over an array far larger than any cache."""
    values = torch.ones(num_bytes // 4)
    return num_bytes / min(seconds(values.sum, values.device) for _ in range(repeats))


def bz2_rate(compressed: bytes, *, repeats: int = 3) -> float:
    """Decompressed bytes per CPU second of Python's bz2, on one core."""
    times, size = [], 0
    for _ in range(repeats):
        started_at = time.process_time()
        size = len(bz2.decompress(compressed))
        times.append(time.process_time() - started_at)
    return size / median(times)


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """So many threads of torch inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_seconds(function: Callable[[], T]) -> tuple[T, float]:
    """What a call returns, and the CPU time of this process for it, all threads together."""
    started_at = time.process_time()
    returned = function()
    return returned, time.process_time() - started_at
