"""An index over several processes finds what one finds, whatever the ranges of rows, numbers of questions and kinds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from ralm.artifacts.schemas import PASSAGE_IDS as PASSAGE_IDS_SCHEMA
from ralm.artifacts.store import Contents, build_artifact, plain_config
from ralm.artifacts.tables import write_table
from ralm.device import has_fast_bf16
from ralm.index.build import finish_index
from ralm.index.config import IndexSettings
from ralm.index.matrix import create_matrix, to_storage
from ralm.index.search import PASSAGE_IDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
WORKER = Path(__file__).with_name("search_worker.py")
BLOCK = 65536


def make_index(
    folder: Path, vectors: Any, settings: IndexSettings, ids_N: np.ndarray, *, is_finished: bool = True
) -> str:
    """An index artifact of vectors, given in blocks."""

    def build(work: Path) -> Contents:
        blocks = list(vectors())
        matrix_ND = create_matrix(work, settings.storage, len(ids_N), blocks[0].shape[1])
        row = 0
        for block in blocks:
            matrix_ND[row : row + len(block)] = to_storage(block, settings.storage)
            row += len(block)
        write_table(work / PASSAGE_IDS, [{"passage_id": number} for number in ids_N.tolist()], PASSAGE_IDS_SCHEMA)
        details = (
            finish_index(work, matrix_ND, settings)
            if is_finished
            else {"kind": "flat", "storage": settings.storage, "dimension": matrix_ND.shape[1]}
        )
        return Contents(
            rows={PASSAGE_IDS: len(ids_N)}, details={**details, "passages": "none", "passage_encoder": "none"}
        )

    build_artifact(
        folder,
        build,
        kind="index",
        version=1,
        config=plain_config(settings),
        inputs={},
        stage="test",
        stage_version=1,
        seed=0,
    )
    return str(folder)


def search(
    index: str, question_BD: np.ndarray, k: int, folder: Path, num_processes: int, parts: Any = None
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """What the processes found together, in the order of the questions, and what each of them wrote."""
    folder.mkdir()
    np.save(folder / "questions.npy", question_BD)
    job = {"index": index, "questions": str(folder / "questions.npy"), "k": k, "output": str(folder), "parts": parts}
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(num_processes)] if num_processes > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, str(WORKER), json.dumps({**job, "passage_encoder": "none"})],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    written = [dict(np.load(folder / f"rank-{rank}.npz")) for rank in range(num_processes)]
    return {
        name: np.concatenate([each[name] for each in written]) for name in ("scores", "rows", "passage_ids")
    }, written


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """1,501 vectors around 40 centres; 60 of them the same, far apart in the matrix."""
    generator = np.random.default_rng(3)
    vector_ND = generator.normal(size=(40, 64))[generator.integers(40, size=1501)] + generator.normal(size=(1501, 64))
    vector_ND[::25] = vector_ND[0]
    return vector_ND.astype(np.float32)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(4).permutation(10_000)[:1501].astype(np.int64)


@pytest.mark.parametrize(
    "settings",
    [
        IndexSettings(),
        IndexSettings(storage="bf16"),
        IndexSettings(kind="ivf_flat", nlist=16, nprobe=4),
        IndexSettings(kind="ivf_sq8", nlist=16),
        IndexSettings(kind="ivf_pq", nlist=16, code_size=16),
        IndexSettings(kind="pq", code_size=16),
        IndexSettings(kind="pq_fast_scan", code_size=8),
        IndexSettings(kind="ivf_pq_fast_scan", nlist=16, code_size=16),
    ],
    ids=lambda settings: f"{settings.kind}-{settings.storage}",
)
def test_three_processes_find_what_one_finds(
    tmp_path: Path, vectors: np.ndarray, ids: np.ndarray, settings: IndexSettings
) -> None:
    index = make_index(tmp_path / "index", lambda: [vectors], settings, ids)
    question_BD = np.concatenate([vectors[:2], np.random.default_rng(5).normal(size=(8, 64))]).astype(np.float32)
    k = 700 if settings.kind == "flat" else 20  # more than a process has rows
    alone, _ = search(index, question_BD, k, tmp_path / "alone", 1)
    # the second process asks nothing
    together, written = search(index, question_BD, k, tmp_path / "together", 3, parts=[[0, 7], [7, 7], [7, 10]])
    assert sum(int(each["num_rows"]) for each in written) == 1501
    assert max(int(each["num_rows"]) for each in written) < 700
    if settings.kind in ("flat", "ivf_flat"):
        # of more equal vectors than k, which the first two questions find, an approximate kind may leave out any
        first = 0 if settings.kind == "flat" else 2
        for name, values in alone.items():
            np.testing.assert_array_equal(together[name][first:], values[first:], err_msg=name)
    else:  # each process looks as hard as one does, so more candidates are seen
        assert (together["scores"] >= alone["scores"]).all()
    assert (np.diff(together["scores"], axis=1) <= 0).all()
    is_tie = np.diff(together["scores"], axis=1) == 0
    assert is_tie.any()
    assert (np.diff(together["passage_ids"], axis=1)[is_tie] > 0).all(), "ties go to the lower id"
    assert all(len(set(row)) == k for row in together["rows"].tolist())


def test_more_processes_than_passages(tmp_path: Path, vectors: np.ndarray, ids: np.ndarray) -> None:
    index = make_index(tmp_path / "index", lambda: [vectors[:3]], IndexSettings(num_probes=4), ids[:3])
    alone, _ = search(index, vectors[:2], 3, tmp_path / "alone", 1)
    together, written = search(index, vectors[:2], 3, tmp_path / "together", 4)
    assert sorted(int(each["num_rows"]) for each in written) == [0, 1, 1, 1]
    for name, values in alone.items():
        np.testing.assert_array_equal(together[name], values, err_msg=name)


def test_a_graph_is_refused(tmp_path: Path, vectors: np.ndarray, ids: np.ndarray) -> None:
    index = make_index(tmp_path / "index", lambda: [vectors[:200]], IndexSettings(kind="hnsw", num_probes=4), ids[:200])
    with pytest.raises(AssertionError, match="hnsw cannot be split over 2 processes"):
        search(index, vectors[:2], 3, tmp_path / "together", 2)


def test_a_million_vectors_over_two_processes(tmp_path: Path) -> None:
    """The same passages as faiss's exact search, with half of the vectors in each process."""
    count, dimension = 1_000_000, 384

    def blocks() -> Any:
        for start in range(0, count, BLOCK):
            generator = np.random.default_rng([9, start])
            block = generator.standard_normal((min(BLOCK, count - start), dimension), np.float32)
            yield block / np.linalg.norm(block, axis=1, keepdims=True)

    ids_N = np.arange(count, dtype=np.int64) * 7 + 1
    index = make_index(tmp_path / "index", blocks, IndexSettings(), ids_N, is_finished=False)
    question_BD = np.random.default_rng(10).standard_normal((64, dimension), np.float32)
    alone, (single,) = search(index, question_BD, 100, tmp_path / "alone", 1)
    together, written = search(index, question_BD, 100, tmp_path / "together", 2)
    heap = faiss.ResultHeap(64, 100, keep_max=True)
    matrix_ND = np.load(tmp_path / "index" / "matrix.npy", mmap_mode="r")
    for start in range(0, count, BLOCK):
        score, row = faiss.knn(
            question_BD, matrix_ND[start : start + BLOCK].astype(np.float32), 100, metric=faiss.METRIC_INNER_PRODUCT
        )
        heap.add_result(score, row + start)
    heap.finalize()
    np.testing.assert_array_equal(alone["rows"], together["rows"])
    np.testing.assert_array_equal(alone["scores"], together["scores"])
    np.testing.assert_allclose(together["scores"], heap.D, rtol=1e-5)
    same = [
        len(set(found) & set(expected))
        for found, expected in zip(together["rows"].tolist(), heap.I.tolist(), strict=True)
    ]
    assert same == [100] * 64
    np.testing.assert_array_equal(together["passage_ids"], together["rows"] * 7 + 1)
    whole = int(single["opened_bytes"])
    value_bytes = 2 if has_fast_bf16(torch.device("cpu")) else 4  # what is scanned is held as bf16 or fp32
    assert whole > count * dimension * value_bytes
    print([int(each["opened_bytes"]) / whole for each in written])
    assert all(int(each["num_rows"]) == count // 2 for each in written)
    # blocks that are converted on the way are as large in each process
    assert all(int(each["opened_bytes"]) == pytest.approx(whole / 2, rel=0.1) for each in written)
