"""A flat index at scale: one process against several that share it, and what merging costs for many more.

    OMP_NUM_THREADS=1 python -m benchmarks.sharded_search --work DIR --passages 10000000 --dimension 768

`--work` gets a real `matrix.npy` (fp16, unit length, made vectors around centres; 15.4 GB with the sizes above), once;
a later call with the same sizes uses it again. One process searches it, then `--processes` that PyTorch's launcher
starts, with the library's own searcher and exchange. Nobody can say what of the file is in memory before, so the first
search of each process does not count. Anonymous memory, which no file stands behind, is that of a process with all its
libraries, its highest point during the searches (Linux, read every 20 ms). On a busy machine look at the least time and
at CPU time.

Merging for more processes than there are here: `search_parts` with a world that hands out prepared tensors, of the
sizes which one process of so many sends and receives. The network is not in these times.

Shapes: W processes, B questions of one process, Q questions of all, K passages found, N passages, D embedding size.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralm.artifacts.files import remove
from ralm.distributed import World, join_world, leave_world
from ralm.index.flat import MARGIN, FlatSearcher
from ralm.index.matrix import BLOCK_ROWS, MATRIX, create_array, create_matrix, open_matrix, rescore, to_storage
from ralm.index.shard import Found, search_parts

NUM_CENTRES = 4096
IDS, QUESTIONS = "passage_ids.npy", "questions.npy"
PARTS = ("gather", "search", "pack", "wait", "exchange", "merge")
"""Where a search spends its time: questions to all; own rows; making the tensors that are sent; until the last process
has searched; pairs to who asked; the best of all pairs."""
PAIR_BYTES = 20
MIB = 2**20


class Clock:
    """Sums of the time between calls, by name; together they are all the time since `start`."""

    def start(self) -> None:
        """From zero."""
        self.spent: dict[str, float] = defaultdict(float)
        self._at = time.perf_counter()

    def lap(self, name: str) -> None:
        """What has passed since the call before belongs to this name."""
        now = time.perf_counter()
        self.spent[name] += now - self._at
        self._at = now


@dataclasses.dataclass(frozen=True)
class TimedWorld(World):
    """Real exchanges, timed. It waits for the slowest process before an exchange: waiting is a part by itself."""

    clock: Clock = dataclasses.field(default_factory=Clock)

    def gather(self, rows: Tensor) -> list[Tensor]:
        """As `World` does."""
        gathered = super().gather(rows)
        self.clock.lap("gather")
        return gathered

    def exchange(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """As `World` does."""
        self.clock.lap("pack")
        self.barrier()
        self.clock.lap("wait")
        received = super().exchange(rows)
        self.clock.lap("exchange")
        return received


@dataclasses.dataclass(frozen=True)
class PreparedWorld(World):
    """One process of W that are not there: what it would receive is prepared."""

    clock: Clock = dataclasses.field(default_factory=Clock)
    questions: list[Tensor] = dataclasses.field(default_factory=list)
    scores: list[Tensor] = dataclasses.field(default_factory=list)
    places: list[Tensor] = dataclasses.field(default_factory=list)

    def gather(self, rows: Tensor) -> list[Tensor]:
        """The prepared questions."""
        self.clock.lap("gather")
        return self.questions

    def exchange(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """The prepared scores, or rows and ids."""
        self.clock.lap("pack")
        return self.scores if rows[0].dim() == 2 else self.places


def main(argv: list[str] | None = None) -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the matrix")
    parser.add_argument("--passages", type=int, default=10_000_000)
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--questions", type=int, default=64, help="of all processes together")
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--simulated", type=int, nargs="*", default=[8, 64, 512], help="numbers of processes to merge for"
    )
    parser.add_argument("--asked", type=int, nargs="*", default=[1, 8, 64], help="questions of one process in these")
    given = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = make_matrix(given.work, given.passages, given.dimension, given.questions)
    job = {"folder": str(folder), "shape": [given.passages, given.dimension], "k": given.k, "repeats": given.repeats}
    print(
        f"{given.passages:,} x {given.dimension} fp16, {given.questions} questions, k {given.k}, "
        f"{given.repeats} searches; {os.cpu_count()} cores, {os.environ['OMP_NUM_THREADS']} threads a process, "
        f"load before {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    alone, found_alone = run(job, 1)
    together, found = run(job, given.processes)
    print_searches(alone, together, given)
    print_parts(together)
    is_equal = bool(np.array_equal(found_alone, found))
    print(f"\nids of {given.processes} processes equal those of one: {is_equal}; load after {os.getloadavg()[0]:.1f}")
    matrix_ND = open_matrix(folder / MATRIX, given.passages, given.dimension)
    print(
        f"scoring a question's {given.k + MARGIN} candidates again: {rescore_ms(matrix_ND, given.k + MARGIN):.2f} ms\n"
    )
    print("| processes | questions of each | pack ms | merge ms | questions received MB | pairs sent MB |")
    print("|---|---|---|---|---|---|")
    for size in given.simulated:
        for asked in given.asked:
            print(merge_row(size, asked, given.k, given.dimension, given.repeats), flush=True)
    if not is_equal:
        sys.exit(1)


def make_matrix(work: Path, num_passages: int, dimension: int, num_questions: int) -> Path:
    """The folder of a matrix, its passage ids and questions; written if it is not there."""
    final = work / f"{num_passages}x{dimension}-{num_questions}"
    if final.exists():
        return final
    unfinished = final.with_name(f".{final.name}.unfinished")
    remove(unfinished)
    unfinished.mkdir(parents=True)
    generator = np.random.default_rng(7)
    centre_CD = generator.standard_normal((NUM_CENTRES, dimension), np.float32)
    noise_ND = generator.standard_normal((min(BLOCK_ROWS, num_passages), dimension), np.float32)
    matrix_ND = create_matrix(unfinished, "f16", num_passages, dimension)
    for start in range(0, num_passages, BLOCK_ROWS):
        count = min(BLOCK_ROWS, num_passages - start)
        # the same noise in each block, turned by some values: no two vectors are equal
        vector_ND = np.roll(noise_ND[:count], start // BLOCK_ROWS, axis=1)
        vector_ND += centre_CD[generator.integers(NUM_CENTRES, size=count)]
        vector_ND /= np.linalg.norm(vector_ND, axis=1, keepdims=True)
        matrix_ND[start : start + count] = to_storage(vector_ND, "f16")
    id_N = create_array(unfinished / IDS, "<i8", (num_passages,))
    id_N[:] = (np.arange(num_passages, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) & np.uint64(2**63 - 1)
    near_BD = centre_CD[generator.integers(NUM_CENTRES, size=num_questions)]
    np.save(unfinished / QUESTIONS, near_BD + generator.standard_normal(near_BD.shape, np.float32))
    unfinished.rename(final)
    return final


def run(job: dict[str, Any], num_processes: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Search with so many processes: what each of them measured, and the ids found, in the order of the questions."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes), "-m"]
    module = [*(launcher if num_processes > 1 else []), "benchmarks.sharded_search"]
    with tempfile.TemporaryDirectory() as folder:
        script = [sys.executable, "-m", *module, "worker", json.dumps({**job, "output": folder})]
        subprocess.run(script, check=True)
        measured = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(num_processes)]
        return measured, np.concatenate([np.load(Path(folder) / f"{rank}.npy") for rank in range(num_processes)])


def work(job: dict[str, Any]) -> None:
    """One of the processes: search again and again, write down what it took."""
    folder, output = Path(job["folder"]), Path(job["output"])
    joined = join_world(torch.device("cpu"))
    world = TimedWorld(joined.rank, joined.size, joined.group)
    at_start = anonymous_bytes()
    matrix_ND, id_N = open_matrix(folder / MATRIX, *job["shape"]), np.load(folder / IDS, mmap_mode="r")
    rows = world.part(len(matrix_ND))
    searcher = FlatSearcher(matrix_ND[rows], torch.device("cpu"), id_N[rows])
    question_BD = np.load(folder / QUESTIONS)
    own_BD = question_BD[world.part(len(question_BD))]

    def search_own(question_QD: np.ndarray, k: int) -> Found:
        world.clock.lap("pack")
        score_QK, row_QK = searcher.search(question_QD, k)
        found = Found(score_QK, row_QK + rows.start, id_N[rows][row_QK])
        world.clock.lap("search")
        return found

    searches = []
    with peak_memory() as peak:
        for _ in range(1 + job["repeats"]):
            world.barrier()
            cpu_s = time.process_time()
            world.clock.start()
            if world.size == 1:  # as `ralm.index.search.Index` does
                found = search_own(own_BD, job["k"])
            else:
                found = search_parts(world, search_own, own_BD, job["k"], rows.stop - rows.start)
                world.clock.lap("merge")
            searches.append({**world.clock.spent, "cpu": time.process_time() - cpu_s})
    np.save(output / f"{world.rank}.npy", found.passage_ids)
    own_bytes = (rows.stop - rows.start) * matrix_ND.shape[1] * matrix_ND.itemsize
    measured = {"searches": searches[1:], "rows": rows.stop - rows.start, "bytes": own_bytes}
    (output / f"{world.rank}.json").write_text(json.dumps({**measured, "at_start": at_start, "peak": peak[0]}))
    world.barrier()
    leave_world()


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Inside, the one number in the list grows to the highest of anonymous memory."""
    peak, is_over = [anonymous_bytes()], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.02):
            peak[0] = max(peak[0], anonymous_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield peak
    is_over.set()
    thread.join()


def seconds_of(measured: list[dict[str, Any]]) -> list[float]:
    """Each search's time in the slowest process."""
    all_searches = zip(*(each["searches"] for each in measured), strict=True)
    return [max(sum(search.get(part, 0.0) for part in PARTS) for search in searches) for searches in all_searches]


def print_searches(alone: list[dict[str, Any]], together: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """A row for each number of processes: the time of the slowest process, and memory of the largest."""
    print(
        "\n| processes | rows of each | GB of each | s, least | s, median | CPU s of each | vectors/s | GB/s "
        "| anonymous MiB, peak | at start |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for measured in (alone, together):
        seconds = seconds_of(measured)
        cpu_s = max(min(search["cpu"] for search in each["searches"]) for each in measured)
        total = sum(each["bytes"] for each in measured)
        print(
            f"| {len(measured)} | {max(each['rows'] for each in measured):,} "
            f"| {max(each['bytes'] for each in measured) / 1e9:.2f} | {min(seconds):.2f} "
            f"| {statistics.median(seconds):.2f} | {cpu_s:.2f} | {given.passages / min(seconds):,.0f} "
            f"| {total / min(seconds) / 1e9:.2f} | {max(each['peak'] for each in measured) / MIB:.0f} "
            f"| {max(each['at_start'] for each in measured) / MIB:.0f} |"
        )


def print_parts(measured: list[dict[str, Any]]) -> None:
    """A row for each process: the parts of the fastest search."""
    print(f"\n| process | {' | '.join(f'{part} ms' for part in PARTS)} |\n|{'---|' * (1 + len(PARTS))}")
    fastest = int(np.argmin(seconds_of(measured)))
    for rank, each in enumerate(measured):
        cells = [f"{each['searches'][fastest][part] * 1e3:,.1f}" for part in PARTS]
        print(f"| {rank} | {' | '.join(cells)} |")


def rescore_ms(matrix_ND: np.ndarray, num_candidates: int) -> float:
    """The least time for the exact scores of one question's candidates, whose vectors are in memory."""
    row_BC = np.random.default_rng(8).integers(len(matrix_ND), size=(16, num_candidates))
    question_BD = np.ones((len(row_BC), matrix_ND.shape[1]), np.float32)
    times = []
    for _ in range(5):
        started_at = time.perf_counter()
        rescore(question_BD, row_BC, matrix_ND)
        times.append(time.perf_counter() - started_at)
    return min(times) / len(row_BC) * 1e3


def merge_row(size: int, asked: int, k: int, dimension: int, repeats: int) -> str:
    """The least that packing and merging take in one process of `size`, each of which asks `asked` questions."""
    world, found = prepare(size, asked, k, dimension)
    searches = []
    for _ in range(1 + repeats):
        world.clock.start()
        merged = search_parts(world, lambda *_: _found_by_now(world, found), world.questions[0].numpy(), k, k)
        world.clock.lap("merge")
        searches.append(world.clock.spent)
    best = np.sort(torch.cat(world.scores, dim=1).numpy(), axis=1)[:, : -k - 1 : -1]
    assert np.array_equal(merged.scores, best)
    pack, merge = (min(search[part] for search in searches[1:]) for part in ("pack", "merge"))
    others = (size - 1) * asked
    return (
        f"| {size} | {asked} | {pack * 1e3:.2f} | {merge * 1e3:.2f} | {others * dimension * 4 / 1e6:.3f} "
        f"| {others * k * PAIR_BYTES / 1e6:.3f} |"
    )


def prepare(size: int, asked: int, k: int, dimension: int) -> tuple[PreparedWorld, Found]:
    """What a process of `size` receives, and what it finds in its own rows for all questions."""
    generator = torch.Generator().manual_seed(size)
    score_BWK = torch.rand((asked, size, k), generator=generator).sort(dim=2, descending=True).values
    place_BWK2 = torch.randint(2**40, (asked, size, k, 2), generator=generator)
    world = PreparedWorld(
        size=size,
        questions=list(torch.zeros((size, asked, dimension))),
        scores=list(score_BWK.transpose(0, 1).contiguous()),
        places=list(place_BWK2.transpose(0, 1).contiguous()),
    )
    score_QK, place_QK2 = score_BWK.reshape(-1, k).numpy(), place_BWK2.reshape(-1, k, 2).numpy()
    return world, Found(score_QK, place_QK2[:, :, 0].copy(), place_QK2[:, :, 1].copy())


def _found_by_now(world: PreparedWorld, found: Found) -> Found:
    world.clock.lap("pack")
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(json.loads(sys.argv[2]))
    else:
        main()
