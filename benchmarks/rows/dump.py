"""A bz2 dump to Parquet passages: the whole download stage against bz2 alone, and its speed on all cores.

`share_of_bz2`: CPU time of `bz2.decompress` on the dump over that of the stage with one worker, all threads together:
what the stage makes, per core, of the rate that bz2 alone has. The table says where the rest goes.
`scaling`: wall time of a multistream dump with one worker on one core, over that with all cores times their number;
`scaling_bz2` is the same for bz2 alone on that dump in as many threads: what the machine allows.
"""

from __future__ import annotations

import bz2
import concurrent.futures
import contextlib
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from benchmarks import inputs
from benchmarks.machine import cpu_seconds, median, spread
from benchmarks.made_dump import write_made_dump
from benchmarks.suite import Bench, Measured
from components.download.config import DownloadConfig
from components.download.stage import download
from ralm.artifacts.schemas import PASSAGES
from ralm.artifacts.tables import TableWriter
from ralm.corpus.compressed import read_chunks
from ralm.corpus.dump import WikiPages, read_dump
from ralm.corpus.parallel import available_cores
from ralm.corpus.passages import Document, SplitLimits, cut_documents

PAGES_OF_STREAM = 100
_PAGE_END = re.compile(rb"</page>\s*")


def measure(bench: Bench) -> Measured:
    """P2."""
    if bench.small:
        path = write_made_dump(bench.work / "made.xml.bz2", 300)
        many = path
    else:
        path, many = inputs.wikipedia(bench, 24), inputs.wikipedia(bench, 100)
    compressed = path.read_bytes()
    times: dict[str, list[float]] = {"bz2": [], "stage": []}
    size = 0
    for _ in range(bench.repeats):
        data, spent = cpu_seconds(lambda: bz2.decompress(compressed))
        size = len(data)
        times["bz2"].append(spent)
        times["stage"].append(cpu_seconds(lambda: run_stage(bench, path, workers=1))[1])
    rates = {name: size / 1e6 / median(spent) for name, spent in times.items()}
    table = ["| way | MB/s of XML on a core | CPU s, least to most | share of bz2 |", "|---|---|---|---|"]
    table += [
        f"| {name} | {rate:.1f} | {spread(times[name])} | {rate / rates['bz2']:.2f} |" for name, rate in rates.items()
    ]
    table += ["", "| part of the stage | CPU s | share |", "|---|---|---|"]
    parts = time_parts(path, bench)
    table += [f"| {name} | {spent:.3f} | {spent / sum(parts.values()):.2f} |" for name, spent in parts.items()]
    figures = {"mb_per_s": rates["stage"], "bz2_mb_per_s": rates["bz2"], "share_of_bz2": rates["stage"] / rates["bz2"]}
    scaling, lines = measure_scaling(bench, write_multistream(many, bench.work / f"multistream-{many.name}"))
    return Measured(figures | scaling, [*table, *lines])


def run_stage(bench: Bench, path: Path, *, workers: int) -> Path:
    """The download stage; what an earlier run left is removed before."""
    folder = bench.work / "dump-passages"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(bench.work / "home" / "store" / "passages", ignore_errors=True)
    download(source=str(path), passages=str(folder), config=DownloadConfig(workers=workers))
    return folder


def time_parts(path: Path, bench: Bench) -> dict[str, float]:
    """CPU time of each part of the stage, one after the other; the least of three."""
    rounds = [_time_parts_once(path, bench) for _ in range(min(3, bench.repeats))]
    return {name: min(times[name] for times in rounds) for name in rounds[0]}


def _time_parts_once(path: Path, bench: Bench) -> dict[str, float]:
    plain, parquet = bench.work / "plain.xml", bench.work / "parts.parquet"
    times = {}
    chunks, times["bz2"] = cpu_seconds(lambda: list(read_chunks(path)))
    plain.write_bytes(b"".join(chunks))
    found, times["XML"] = cpu_seconds(lambda: list(read_dump(plain, Counter())))
    site, pages = found[0][0], [page for _, page in found]
    batches = [WikiPages(site, pages[start : start + 100]) for start in range(0, len(pages), 100)]
    documents, times["wikitext to text"] = cpu_seconds(lambda: [list(batch.documents()) for batch in batches])
    plain_documents = [[item for item in some if isinstance(item, Document)] for some in documents]
    columns, times["cut, ids and hashes"] = cpu_seconds(
        lambda: [cut_documents(some, SplitLimits()) for some in plain_documents]
    )
    tables, times["Arrow"] = cpu_seconds(lambda: [some.table() for some in columns])
    _, times["Parquet"] = cpu_seconds(lambda: write_tables(parquet, tables))
    plain.unlink()
    parquet.unlink()
    return times


def write_tables(path: Path, tables: Sequence[pa.Table]) -> None:
    """One file of passages."""
    with TableWriter(path, PASSAGES) as writer:
        for table in tables:
            writer.write(table)


def write_multistream(source: Path, path: Path) -> Path:
    """The same dump with a hundred pages in each bz2 stream, as Wikimedia publishes it; the head has its own stream."""
    if path.is_file():
        return path
    data = bz2.decompress(source.read_bytes())
    start = data.index(b"<page>")
    ends = [match.end() for match in _PAGE_END.finditer(data)]
    cuts = [0, start, *ends[PAGES_OF_STREAM - 1 :: PAGES_OF_STREAM]]
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        for begin, end in zip(cuts, [*cuts[1:], len(data)], strict=True):
            if begin < end:
                file.write(bz2.compress(data[begin:end]))
    part.rename(path)
    return path


def measure_scaling(bench: Bench, path: Path) -> tuple[dict[str, float], list[str]]:
    """Speed on all cores over that on one, by core: of the stage, and of bz2 alone."""
    cores = available_cores()
    times: dict[str, list[float]] = {"one core": [], "all cores": [], "bz2, one core": [], "bz2, all cores": []}
    repeats = min(3, bench.repeats)
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:  # bz2 lets go of the interpreter
        for _ in range(repeats):
            with on_cores(1):
                times["one core"].append(wall_seconds(lambda: run_stage(bench, path, workers=1)))
                times["bz2, one core"].append(wall_seconds(lambda: decompress(path)))
            times["all cores"].append(wall_seconds(lambda: run_stage(bench, path, workers=cores)))
            times["bz2, all cores"].append(wall_seconds(lambda: list(pool.map(decompress, [path] * cores))))
    stage, alone = (median(times[f"{way}one core"]) / median(times[f"{way}all cores"]) for way in ("", "bz2, "))
    figures = {"cores": float(cores), "scaling": stage / cores, "scaling_bz2": alone}  # bz2: as much work for each core
    lines = ["", f"| multistream, {cores} cores | s, median | least to most |", "|---|---|---|"]
    return figures, lines + [f"| {name} | {median(spent):.2f} | {spread(spent)} |" for name, spent in times.items()]


def decompress(path: Path) -> int:
    """Bytes in a multistream file."""
    return len(bz2.decompress(path.read_bytes()))


def wall_seconds(function: Callable[[], object]) -> float:
    """Wall time of a call."""
    started_at = time.perf_counter()
    function()
    return time.perf_counter() - started_at


@contextlib.contextmanager
def on_cores(number: int) -> Iterator[None]:
    """Only so many cores inside, for this thread and those that it starts; where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:number])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
