"""The benchmark of a shared index in a small size: same ids, all rows of its tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import sharded_search

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ARGUMENTS = ["--passages", "20000", "--dimension", "32", "--questions", "9", "--k", "10", "--repeats", "2"]


def rows_of(output: str) -> list[list[list[str]]]:
    """The cells of each table, without its heading."""
    blocks = [block.splitlines() for block in output.split("\n\n")]
    tables = [[line.strip("| ").split(" | ") for line in block if line.startswith("| ")] for block in blocks]
    return [table[1:] for table in tables if table]


def test_two_processes_find_the_ids_of_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sharded_search.main(["--work", str(tmp_path), *ARGUMENTS, "--simulated", "8", "64", "--asked", "1", "4"])
    output = capfd.readouterr().out
    assert "ids of 2 processes equal those of one: True" in output
    searches, parts, merges = rows_of(output)
    assert [row[:3] for row in searches] == [["1", "20,000", "0.00"], ["2", "10,000", "0.00"]]
    assert all(len(row) == 10 and float(row[3]) <= float(row[4]) for row in searches)
    assert [row[0] for row in parts] == ["0", "1"]
    assert all(len(row) == 1 + len(sharded_search.PARTS) for row in parts)
    assert [row[:2] for row in merges] == [["8", "1"], ["8", "4"], ["64", "1"], ["64", "4"]]
    assert merges[3][4:] == [f"{63 * 4 * 32 * 4 / 1e6:.3f}", f"{63 * 4 * 10 * 20 / 1e6:.3f}"]


def test_vectors_are_different_and_of_unit_length_and_made_once(tmp_path: Path) -> None:
    folder = sharded_search.make_matrix(tmp_path, 70_000, 16, 3)
    matrix_ND = np.load(folder / "matrix.npy")
    assert matrix_ND.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(matrix_ND.astype(np.float32), axis=1), 1, atol=2e-3)
    assert len(np.unique(matrix_ND, axis=0)) == len(np.unique(np.load(folder / "passage_ids.npy"))) == 70_000
    written = (folder / "matrix.npy").stat().st_mtime_ns
    assert sharded_search.make_matrix(tmp_path, 70_000, 16, 3) == folder
    assert (folder / "matrix.npy").stat().st_mtime_ns == written
