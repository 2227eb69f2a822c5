"""Exact search on a GPU that holds a whole Wikipedia: 45 million vectors of 768 fp16 values, 69 GB.

    python -m benchmarks.gpu.search

Vectors are made on the GPU, block by block, and given to the searcher as they are: an index that is opened from
`matrix.npy` has to be copied there once, which is not measured here. Random vectors are the friendly case for the
searcher's proof that rounding lost no passage; how many questions were searched again is printed.

The floor is the time in which the device reads the matrix once, at the bandwidth of a copy in the same run. The peer is
`benchmarks/peers/block_search.py`. Times are of whole calls, from question vectors in main memory to rows there.
"""

from __future__ import annotations

import argparse
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import GB, copy_bandwidth, describe, interleaved, median, pick_device, spread
from benchmarks.peers import block_search
from ralm.index.flat import FlatSearcher

MADE_ROWS = 1 << 20
PEER_SCORES = 2**27
"""Scores of the peer's block: it is given the memory that is left."""


def main(argv: list[str] | None = None) -> None:
    """Print the table; exit code 1 if a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=45_000_000)
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 32, 256])
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="few vectors, also on a CPU")
    given = parser.parse_args(argv)
    if given.small:
        given.passages, given.dimension, given.k, given.repeats = 30_000, 32, 10, 2
    device = pick_device(small=given.small)
    bandwidth = copy_bandwidth(device, num_bytes=1 << 24 if given.small else 1 << 32)
    matrix_ND = make_matrix(given.passages, given.dimension, device)
    floor_ms = 1000 * matrix_ND.nbytes / bandwidth
    print(
        f"{describe(device)}; {given.passages:,} x {given.dimension} fp16 ({matrix_ND.nbytes / GB:.1f} GB), "
        f"k {given.k}, {given.repeats} repeats; a copy moves {bandwidth / GB:,.0f} GB/s, "
        f"reading the matrix once takes {floor_ms:.1f} ms",
        flush=True,
    )
    searcher = FlatSearcher(matrix_ND, device)
    print(
        "| batch | ours, ms | least to most | times the floor | questions/s | peer, ms | peer / ours | searched again |"
    )
    print("|---|---|---|---|---|---|---|---|")
    is_right = True
    for batch in given.batches:
        question_BD = np.random.default_rng(batch).normal(size=(batch, given.dimension)).astype(np.float32)
        is_right &= print_row(searcher, matrix_ND, question_BD, given, floor_ms)
    print(f"results: {'as they should be' if is_right else 'WRONG'}")
    if not is_right:
        raise SystemExit(1)


def make_matrix(num_passages: int, dimension: int, device: torch.device) -> Tensor:
    """Random vectors of about length 1."""
    generator = torch.Generator(device).manual_seed(3)
    matrix_ND = torch.empty((num_passages, dimension), dtype=torch.float16, device=device)
    for start in range(0, num_passages, MADE_ROWS):
        block_ND = matrix_ND[start : start + MADE_ROWS]
        block_ND.normal_(generator=generator).mul_(dimension**-0.5)
    return matrix_ND


def print_row(
    searcher: FlatSearcher, matrix_ND: Tensor, question_BD: np.ndarray, given: argparse.Namespace, floor_ms: float
) -> bool:
    """Measure one size of a batch; False if the results are wrong."""
    block_rows = max(1, min(len(matrix_ND), PEER_SCORES // len(question_BD)))
    with mock.patch.object(searcher, "_search_one", wraps=searcher._search_one) as again:
        found = searcher.search(question_BD, given.k)
    peer = block_search.search(matrix_ND, question_BD, given.k, block_rows)
    ways = {
        "ours": lambda: searcher.search(question_BD, given.k),
        "peer": lambda: block_search.search(matrix_ND, question_BD, given.k, block_rows),
    }
    times = interleaved(ways, matrix_ND.device, given.repeats)
    ours_ms, peer_ms = (1000 * median(times[name]) for name in ("ours", "peer"))
    print(
        f"| {len(question_BD)} | {ours_ms:.1f} | {spread([1000 * each for each in times['ours']])} "
        f"| {ours_ms / floor_ms:.2f} | {1000 * len(question_BD) / ours_ms:,.0f} | {peer_ms:.1f} "
        f"| {peer_ms / ours_ms:.2f} | {again.call_count} |",
        flush=True,
    )
    return is_plausible(found, peer, question_BD, matrix_ND, given.k)


def is_plausible(
    found: tuple[np.ndarray, np.ndarray],
    peer: tuple[np.ndarray, np.ndarray],
    question_BD: np.ndarray,
    matrix_ND: Tensor,
    k: int,
) -> bool:
    """Scores are those of the rows, nothing that the peer found is better, and in a part all is as in fp64."""
    score_BK, row_BK = found
    exact_BK, of_peer_BK = (exact_scores(question_BD, rows, matrix_ND) for rows in (row_BK, peer[1]))
    is_right = np.allclose(score_BK, exact_BK, rtol=2e-7, atol=0) and bool((np.diff(score_BK, axis=1) <= 0).all())
    for number in range(len(question_BD)):
        is_missed = ~np.isin(peer[1][number], row_BK[number])
        is_right &= not (of_peer_BK[number][is_missed] > exact_BK[number, -1]).any()
    part_ND = matrix_ND[: min(len(matrix_ND), 1 << 18)]
    some_BD = question_BD[:8]
    score_BN = torch.from_numpy(some_BD).to(part_ND.device).double() @ part_ND.double().T
    expected_BK = score_BN.topk(k, dim=1).indices.cpu().numpy()
    _, part_BK = FlatSearcher(part_ND, part_ND.device).search(some_BD, k)
    return bool(is_right) and np.array_equal(np.sort(part_BK, axis=1), np.sort(expected_BK, axis=1))


def exact_scores(question_BD: np.ndarray, row_BK: np.ndarray, matrix_ND: Tensor) -> np.ndarray:
    """Inner products in fp64."""
    vector_BKD = matrix_ND[torch.from_numpy(row_BK).to(matrix_ND.device)].double().cpu().numpy()
    return np.einsum("bkd,bd->bk", vector_BKD, question_BD.astype(np.float64))


if __name__ == "__main__":
    main()
