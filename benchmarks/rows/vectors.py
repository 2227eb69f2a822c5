"""Reading vectors from an embeddings file to numpy, against other ways to keep them.

Each way ends with a writable array of its own in main memory, so each has read all bytes and written all of it. Each
file is read once right before, so that it is in the page cache; measured is CPU time: no way waits for a disk.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.machine import cpu_seconds, median, spread
from benchmarks.suite import Bench, Measured
from ralm.artifacts.schemas import embeddings_schema
from ralm.artifacts.tables import TableWriter
from ralm.retriever.vectors import binary_column, read_vectors

DIMENSION = 768
OURS = "ralm embeddings"
WRITE_ROWS = 8192


def measure(bench: Bench) -> Measured:
    """D1: 400,000 vectors of 768 fp16 values."""
    size = 4000 if bench.small else 400_000
    vector_ND = np.random.default_rng(0).standard_normal((size, DIMENSION), np.float32).astype(np.float16)
    folder = bench.work / "vector-files"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        ways = written(folder, vector_ND)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(bench.repeats + 1):
            for name, (path, read) in ways.items():
                read_through(path)
                found_ND, spent = cpu_seconds(functools.partial(read, path))
                if repeat:
                    times[name].append(spent)
                elif not np.array_equal(found_ND, vector_ND):
                    raise RuntimeError(f"{name} reads other values than were written")
                del found_ND
        file_bytes = (folder / "vectors.parquet").stat().st_size
    finally:
        shutil.rmtree(folder)
    ours = median(times[OURS])
    figures = {f"x_{name}": median(spent) / ours for name, spent in times.items() if name != OURS}
    figures |= {"size_ratio": file_bytes / vector_ND.nbytes, "gb_per_cpu_s": vector_ND.nbytes / ours / 1e9}
    rows = ["| way | GB per CPU s | CPU s, least to most | it / ours |", "|---|---|---|---|"]
    rows += [
        f"| {name} | {vector_ND.nbytes / median(spent) / 1e9:.2f} | {spread(spent)} | {median(spent) / ours:.2f} |"
        for name, spent in times.items()
    ]
    return Measured(figures, rows)


def read_through(path: Path) -> None:
    """Have a file in the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def written(folder: Path, vector_ND: np.ndarray) -> dict[str, tuple[Path, Callable[[Path], np.ndarray]]]:
    """Write the vectors in each way; the file, and the function that reads it."""
    ids = np.arange(len(vector_ND))
    with TableWriter(folder / "vectors.parquet", embeddings_schema(DIMENSION, "f16", "none")) as writer:
        for start in range(0, len(ids), WRITE_ROWS):
            part = slice(start, start + WRITE_ROWS)
            writer.write(pa.table([ids[part], binary_column(vector_ND[part], "f16")], schema=writer.schema))
    column = pa.FixedSizeListArray.from_arrays(pa.array(vector_ND.reshape(-1)), DIMENSION)
    pq.write_table(pa.table({"id": ids, "vector": column}), folder / "list.parquet")
    np.save(folder / "vectors.npy", vector_ND)
    torch.save(torch.from_numpy(vector_ND), folder / "vectors.pt")
    return {
        OURS: (folder / "vectors.parquet", lambda path: read_vectors(str(path))[1]),
        "list_column": (folder / "list.parquet", read_list_column),
        "torch_load": (folder / "vectors.pt", lambda path: torch.load(path, weights_only=True).numpy()),
        "npy": (folder / "vectors.npy", np.load),
    }


def read_list_column(path: Path) -> np.ndarray:
    """A fixed_size_list column as pyarrow's defaults write and read it."""
    column = pq.read_table(path, columns=["vector"]).column("vector")
    parts = [chunk.flatten().to_numpy().reshape(-1, DIMENSION) for chunk in column.chunks]
    return np.array(parts[0]) if len(parts) == 1 else np.concatenate(parts)
