"""What an open index holds in memory, measured in processes of their own.

Counted is anonymous memory (`RssAnon`): what the process itself has to hold. Pages of mapped files are not counted: the
kernel drops them when memory is short. Since faiss maps the codes of `index.faiss` too, the file's size is added for
the product quantiser, as if all of it were held.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ralm.device import has_fast_bf16
from ralm.index.build import finish_index
from ralm.index.config import IndexSettings
from ralm.index.matrix import create_matrix, to_storage
from ralm.index.tuning import make_probes
from ralm.retriever.vectors import read_vectors

NUM_VECTORS, DIMENSION, NUM_QUESTIONS = 200_000, 384, 64

MEASURE = """
import ctypes, gc, json, sys
from pathlib import Path
import numpy as np
import torch
from ralm.index.build import open_searcher
from ralm.index.matrix import create_matrix, open_matrix
from ralm.index.flat import FlatSearcher

def release():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free already is not held: left there, what is held next hides in it

def anonymous_bytes():
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024

folder, details, questions = Path(sys.argv[1]), json.loads(sys.argv[2]), np.load(sys.argv[3])
warm = np.ones((300, questions.shape[1]), np.float32)
FlatSearcher(warm, torch.device("cpu")).search(questions, 10)  # libraries make their threads and buffers here
release()
before = anonymous_bytes()
matrix = open_matrix(folder / "matrix.npy", *json.loads(sys.argv[4]))
searcher = open_searcher(folder / "index.faiss", matrix, details, torch.device("cpu"))
release()
opened = anonymous_bytes() - before
searcher.search(questions, 10)
print(json.dumps({"opened": opened, "searched": anonymous_bytes() - before}))
"""


def first_vectors(generator: np.random.Generator) -> np.ndarray:
    """Real ones from the embeddings table that RALM_REAL_VECTORS names, else 20,000 clustered ones."""
    if place := os.environ.get("RALM_REAL_VECTORS"):
        return read_vectors(place)[1].astype(np.float32)
    center = generator.normal(size=(500, DIMENSION)).astype(np.float32)
    found = center[generator.integers(500, size=20_000)] + 0.8 * generator.normal(size=(20_000, DIMENSION)).astype("f4")
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def vectors() -> np.ndarray:
    """The first vectors, and as many more as are wanted made of them with noise."""
    generator = np.random.default_rng(0)
    real = first_vectors(generator)
    made = real[generator.integers(len(real), size=NUM_VECTORS - len(real))]
    made += 0.5 * generator.normal(size=made.shape).astype(np.float32) / DIMENSION**0.5
    return np.concatenate([real, made / np.linalg.norm(made, axis=1, keepdims=True)])


def measure(folder: Path, details: dict, questions: Path) -> dict[str, int]:
    shape = json.dumps([NUM_VECTORS, DIMENSION])
    command = [sys.executable, "-c", MEASURE, str(folder), json.dumps(details), str(questions), shape]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_product_quantiser_takes_an_eighth_of_flat_fp32(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    vector_ND = vectors()
    np.save(tmp_path / "questions.npy", make_probes(vector_ND, NUM_QUESTIONS, seed=9))
    found = {}
    for kind, storage in (("flat", "f32"), ("pq", "f16")):
        settings = IndexSettings(kind=kind, storage=storage, num_probes=32)  # type: ignore[arg-type]
        folder = tmp_path / kind
        folder.mkdir()
        matrix_ND = create_matrix(folder, settings.storage, NUM_VECTORS, DIMENSION)
        matrix_ND[:] = to_storage(vector_ND, settings.storage)
        details = finish_index(folder, matrix_ND, settings)
        found[kind] = measure(folder, details, tmp_path / "questions.npy")
        if kind == "pq":
            assert details["options"]["rerank"] > 0
            plain = {**details, "options": {**details["options"], "rerank": 0}}
            found["pq without rerank"] = measure(folder, plain, tmp_path / "questions.npy")
    codes = (tmp_path / "pq" / "index.faiss").stat().st_size
    print(json.dumps({**found, "index.faiss": codes}))
    in_fp32 = NUM_VECTORS * DIMENSION * 4
    held = in_fp32 // 2 if has_fast_bf16(torch.device("cpu")) else in_fp32  # what is scanned is held as bf16
    assert held * 0.98 <= found["flat"]["opened"] <= held * 1.2
    for name in ("pq", "pq without rerank"):
        assert 8 * (found[name]["opened"] + codes) <= in_fp32, found
        assert 8 * (found[name]["searched"] + codes) <= in_fp32, found
