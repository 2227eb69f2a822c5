"""Stored number formats, bf16 against torch as the independent reference."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ralm.errors import ArtifactError
from ralm.index.flat import FlatSearcher
from ralm.index.matrix import create_matrix, open_matrix, to_float32, to_storage

FINITE = st.floats(-(2.0**127), 2.0**127, width=32)


@given(st.lists(FINITE, min_size=1, max_size=30))
def test_bf16_rounds_as_torch_does(values: list[float]) -> None:
    vector = np.array([values], np.float32)
    expected = torch.from_numpy(vector).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(to_float32(to_storage(vector, "bf16")), expected)


@pytest.mark.parametrize("storage", ["f32", "f16", "bf16"])
def test_stored_and_opened_again(storage: str, tmp_path: Path) -> None:
    vector = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    created = create_matrix(tmp_path, storage, 40, 8)  # type: ignore[arg-type]
    created[:] = to_storage(vector, storage)  # type: ignore[arg-type]
    created.flush()
    matrix = open_matrix(tmp_path / "matrix.npy", 40, 8)
    np.testing.assert_allclose(to_float32(matrix), vector, rtol=2**-8)
    score, row = FlatSearcher(matrix, torch.device("cpu")).search(vector[:3], 5)
    np.testing.assert_array_equal(row[:, 0], [np.argmax(to_float32(matrix) @ question) for question in vector[:3]])


def test_the_disk_space_is_taken_at_once(tmp_path: Path) -> None:
    """A full disk is then an error here, not a SIGBUS that kills the process when a page is written."""
    create_matrix(tmp_path, "f32", 1024, 256)
    taken = (tmp_path / "matrix.npy").stat()
    assert taken.st_blocks * 512 >= taken.st_size > 1 << 20


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match=r"No space left on device: .*matrix.npy"):
        create_matrix(tmp_path, "f32", 4, 2)


@pytest.mark.parametrize(("value", "storage"), [(1e5, "f16"), (np.nan, "f32"), (3.4e38, "bf16"), (np.inf, "bf16")])
def test_values_that_cannot_be_stored(value: float, storage: str) -> None:
    with pytest.raises(ArtifactError, match=f"infinite or undefined as {storage}"):
        to_storage(np.array([[value]], np.float32), storage)  # type: ignore[arg-type]


def test_a_file_of_another_shape_or_type(tmp_path: Path) -> None:
    np.save(tmp_path / "matrix.npy", np.zeros((2, 3)))
    with pytest.raises(ArtifactError, match=r"found shape \(2, 3\) of float64"):
        open_matrix(tmp_path / "matrix.npy", 2, 3)
    (tmp_path / "matrix.npy").write_bytes(b"text")
    with pytest.raises(ArtifactError, match="expected an array of numbers"):
        open_matrix(tmp_path / "matrix.npy", 2, 3)
