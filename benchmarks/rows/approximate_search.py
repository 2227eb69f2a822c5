"""Approximate search with exact re-ranking from the mapped matrix, against faiss's exact search and its HNSW graph.

A million made vectors (`vector_inputs.spread_vectors`) and 102,942 real ones, of pieces of Wikipedia's sentences, asked
with other pieces of the same articles, 256 at once, on all cores in every way. How far is looked (lists, candidates,
nodes of the graph) is chosen on half of the questions, the fastest way with recall@10 of at least 0.99; times and
recall are those of the other half, and the recall for pieces of other articles with the same effort is shown too.
The reference is faiss's exact index in fp32. Memory: what opening and searching adds to the process, codes, centroids
and row ids, and the size of the file where that is more; 8 bytes for a passage id are added. The matrix stays on the
disk and in the page cache.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import cpu_seconds, interleaved, median, spread
from benchmarks.rows.exact_search import CPU, exact_faiss, search_tuned
from benchmarks.suite import Bench, Measured
from benchmarks.vector_inputs import folder_of, foreign_questions, real_vectors, spread_vectors
from ralm.index.approximate import ApproximateSearcher, Effort, build_faiss, read_faiss, resolve_layout
from ralm.index.config import IndexSettings
from ralm.index.faiss_import import faiss
from ralm.index.matrix import rescore
from ralm.index.recall import recall_at_k

K = 10
BATCH = 256
TARGET, SLACK = 0.99, 0.002
"""Recall that is asked for, and how much more is asked for on the questions it is tuned on."""
REACHES = tuple(4 + 0.25 * step for step in range(24))
RERANKS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
GRAPH_EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
NEIGHBOURS, ID_BYTES = 32, 8
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Asked:
    """Questions, and the scores of what the exact index finds for them, best first."""

    questions: np.ndarray
    """float32 [B, D]."""
    scores: np.ndarray
    """float32 [B, K]."""


@dataclasses.dataclass(frozen=True)
class Built:
    """Our index of some vectors, and what it took."""

    searcher: ApproximateSearcher
    tuned: str
    cpu_s: float
    wall_s: float
    bytes_per_vector: float


def measure(bench: Bench) -> Measured:
    """S2."""
    real_ND, question_BD = real_vectors(bench)
    real_path = folder_of(bench) / f"real-matrix-{len(real_ND)}.npy"
    if not real_path.is_file():
        np.save(real_path, real_ND)
    real_figures, real_rows = measure_real(bench, np.load(real_path, mmap_mode="r"), question_BD)
    figures, rows = measure_million(bench, spread_vectors(bench), question_BD)
    return Measured({**figures, **real_figures}, [*rows, "", *real_rows])


def measure_million(bench: Bench, vector_ND: np.ndarray, question_BD: np.ndarray) -> tuple[dict[str, float], list[str]]:
    """Against tuned exact faiss."""
    exact: Search = functools.partial(search_tuned, exact_faiss(vector_ND))
    tuning, asked = halves(question_BD, exact, vector_ND)
    built = build(bench, vector_ND, tuning)
    ways: dict[str, Search] = {"ralm ivf_pq_fast_scan": built.searcher.search, "faiss exact, tuned": exact}
    sizes = {"ralm ivf_pq_fast_scan": len(asked.questions), "faiss exact, tuned": min(BATCH, len(asked.questions))}
    rates, recalls, rows = compare(bench, ways, sizes, asked, vector_ND)
    ours, theirs = ways
    figures = {
        "x_tuned_exact": rates[ours] / rates[theirs],
        "recall_at_10": recalls[ours],
        "bytes_per_vector": built.bytes_per_vector,
        "built_per_core_s": len(vector_ND) / built.cpu_s,
    }
    head = (
        f"{len(vector_ND):,} made vectors of {vector_ND.shape[1]}; ours: {built.tuned}; built in {built.wall_s:.1f} s, "
    )
    return figures, [f"{head}{built.cpu_s:.1f} s of CPU", "", *rows]


def measure_real(bench: Bench, vector_ND: np.ndarray, question_BD: np.ndarray) -> tuple[dict[str, float], list[str]]:
    """Against HNSW32."""
    exact: Search = functools.partial(search_tuned, exact_faiss(vector_ND))
    tuning, asked = halves(question_BD, exact, vector_ND)
    foreign, _ = halves(foreign_questions(bench), exact, vector_ND)
    built = build(bench, vector_ND, tuning)
    graph, effort = tuned_graph(bench, vector_ND, tuning)
    ways: dict[str, Search] = {
        "ralm ivf_pq_fast_scan": built.searcher.search,
        f"faiss HNSW{NEIGHBOURS}, ef {effort}": graph,
        "faiss exact, tuned": exact,
    }
    rates, recalls, rows = compare(bench, ways, dict.fromkeys(ways, len(asked.questions)), asked, vector_ND)
    ours, hnsw, brute = ways
    figures = {
        "x_hnsw": rates[ours] / rates[hnsw],
        "x_tuned_exact_real": rates[ours] / rates[brute],
        "recall_at_10_real": recalls[ours],
        "recall_at_10_hnsw": recalls[hnsw],
        "bytes_per_vector_real": built.bytes_per_vector,
        "recall_at_10_foreign": recall(built.searcher.search, foreign, vector_ND),
        "recall_at_10_hnsw_foreign": recall(graph, foreign, vector_ND),
    }
    head = f"{len(vector_ND):,} real vectors; ours: {built.tuned}; built in {built.wall_s:.1f} s"
    return figures, [f"{head}, {built.cpu_s:.1f} s of CPU", "", *rows]


def compare(
    bench: Bench,
    ways: dict[str, Search],
    sizes: dict[str, int],
    asked: Asked,
    vector_ND: np.ndarray,
) -> tuple[dict[str, float], dict[str, float], list[str]]:
    """Questions per second and recall of each way, and a table."""
    calls = {name: functools.partial(ask, search, asked.questions[: sizes[name]], K) for name, search in ways.items()}
    recalls = {name: recall(search, asked, vector_ND) for name, search in ways.items()}
    times = interleaved(calls, CPU, bench.repeats)
    rates = {name: sizes[name] / median(spent) for name, spent in times.items()}
    rows = ["| way | questions/s | ms for 256, least to most | recall@10 |", "|---|---|---|---|"]
    for name, spent in times.items():
        in_ms = [second * 1000 * BATCH / sizes[name] for second in spent]
        rows.append(f"| {name} | {rates[name]:,.0f} | {spread(in_ms)} | {recalls[name]:.4f} |")
    return rates, recalls, rows


def build(bench: Bench, vector_ND: np.ndarray, tuning: Asked) -> Built:
    """Build our index, open it from its file, and choose how hard it looks."""
    tuning_BD, layout = tuning.questions, resolve_layout(IndexSettings(kind="ivf_pq_fast_scan"), *vector_ND.shape)
    path = bench.work / f"fast-lists-{len(vector_ND)}.faiss"
    started_at = time.perf_counter()
    index, cpu_s = cpu_seconds(lambda: build_faiss(vector_ND, layout))
    wall_s = time.perf_counter() - started_at
    faiss.write_index(index, str(path))
    del index
    before = anonymous_bytes()
    opened = read_faiss(path, *vector_ND.shape)
    searcher = ApproximateSearcher(opened, vector_ND, layout, Effort(breadth=1, rerank=0))
    searcher.search(tuning_BD[:1], K)
    held = max(anonymous_bytes() - before - ID_BYTES * len(vector_ND), path.stat().st_size)
    best, best_s, tuned = searcher, float("inf"), "nothing reaches the recall"
    for reach in REACHES:
        effort = Effort(breadth=layout.nlist, rerank=max(RERANKS), reach=reach)
        widest = ApproximateSearcher(opened, vector_ND, layout, effort)
        row_BC = np.concatenate([widest.candidates(part, K)[1] for part in batches(tuning_BD)])
        score_BC = rescore(tuning_BD, row_BC, vector_ND)
        for rerank in RERANKS:
            found_BK = -np.sort(-score_BC[:, : K + rerank], axis=1)[:, :K]
            if recall_at_k(found_BK, tuning.scores) >= TARGET + SLACK:
                effort = dataclasses.replace(effort, rerank=rerank)
                tried = ApproximateSearcher(opened, vector_ND, layout, effort)
                spent = median(interleaved({"": functools.partial(ask, tried.search, tuning_BD, K)}, CPU, 3)[""])
                if spent < best_s:
                    best, best_s, tuned = tried, spent, f"{layout.nlist} lists, reach {reach}, rerank {rerank}"
                elif spent > 1.3 * best_s:
                    return Built(best, tuned, cpu_s, wall_s, held / len(vector_ND) + ID_BYTES)
                break
    return Built(best, tuned, cpu_s, wall_s, held / len(vector_ND) + ID_BYTES)


def tuned_graph(bench: Bench, vector_ND: np.ndarray, tuning: Asked) -> tuple[Search, int]:
    """An HNSW32 index of whole fp32 vectors, kept in the work folder, and its least ef with the recall."""
    path = folder_of(bench) / f"hnsw{NEIGHBOURS}-{len(vector_ND)}.faiss"
    if not path.is_file():
        index = faiss.IndexHNSWFlat(vector_ND.shape[1], NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.add(vector_ND.astype(np.float32))
        faiss.write_index(index, str(path))
    graph: Any = faiss.read_index(str(path))
    for effort in GRAPH_EFFORTS:
        graph.hnsw.efSearch = effort
        if recall(graph.search, tuning, vector_ND) >= TARGET + SLACK:
            break
    return graph.search, effort


def recall(search: Search, asked: Asked, vector_ND: np.ndarray) -> float:
    """recall@10 against the exact index, by exact scores of what both found."""
    return recall_at_k(rescore(asked.questions, ask(search, asked.questions, K)[1], vector_ND), asked.scores)


def ask(search: Search, question_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Search for all questions, a batch at a time."""
    parts = [search(part, k) for part in batches(question_BD)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def batches(question_BD: np.ndarray) -> list[np.ndarray]:
    """Questions, 256 at a time."""
    return [question_BD[start : start + BATCH] for start in range(0, len(question_BD), BATCH)]


def halves(question_BD: np.ndarray, exact: Search, vector_ND: np.ndarray) -> tuple[Asked, Asked]:
    """Questions to tune with, and to measure with."""
    parts = [np.ascontiguousarray(question_BD[start::2]) for start in (0, 1)]
    scores = [rescore(part_BD, ask(exact, part_BD, K)[1], vector_ND) for part_BD in parts]
    tuning, asked = (
        Asked(part_BD, -np.sort(-exact_BK, axis=1)) for part_BD, exact_BK in zip(parts, scores, strict=True)
    )
    return tuning, asked


def anonymous_bytes() -> int:
    """Memory of this process that no file stands for; 0 where the system does not say."""
    path = Path("/proc/self/status")
    if not path.is_file():
        return 0
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024
