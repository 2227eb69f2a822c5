"""What this machine can do at most: matrix products, reading memory, bz2."""

from __future__ import annotations

import bz2
import os

import torch

from benchmarks.inputs import wikipedia_slice
from benchmarks.machine import bz2_rate, peak_flops, read_bandwidth, threads
from benchmarks.suite import Bench, Measured
from ralm.device import precision_name, resolve_dtype

CPU = torch.device("cpu")


def measure(bench: Bench) -> Measured:
    """Measure them on one core and on all."""
    size, cores = (128 if bench.small else 2048), os.cpu_count() or 1
    figures = {}
    for number in sorted({1, cores}):
        with threads(number):
            for dtype in dict.fromkeys(
                (torch.float32, resolve_dtype("auto", CPU))
            ):  # without units of its own bf16 takes minutes
                rate = peak_flops(CPU, size=size, dtype=dtype)
                figures[f"{precision_name(dtype)}_gflops_{number}"] = rate / 1e9
            figures[f"read_gb_s_{number}"] = read_bandwidth(num_bytes=1 << (20 if bench.small else 30)) / 1e9
    text = bz2.compress(b"wiki" * 1000) if bench.small else wikipedia_slice().read_bytes()
    figures["bz2_mb_s_1"] = bz2_rate(text) / 1e6
    names = {"fp32_gflops": "fp32 product, GFLOP/s", "bf16_gflops": "bf16 product, GFLOP/s"}
    names |= {"read_gb_s": "reading memory, GB/s", "bz2_mb_s": "bz2 decompressed, MB/s"}
    rows = [f"| limit of the machine | 1 core | {cores} cores |", "|---|---|---|"]
    for key, text_of in names.items():
        one, all_of = figures.get(f"{key}_1"), figures.get(f"{key}_{cores}")
        if one is None:
            continue
        rows.append(f"| {text_of} | {one:.4g} | {'' if all_of is None else f'{all_of:.4g}'} |")
    return Measured(figures, rows)
