"""Index kinds on real vectors and real questions: memory, recall with and without re-ranking, build time, speed.

    python benchmarks/index_kinds.py --model MODEL --questions QUESTIONS.jsonl --size 100000 SHARD.parquet ...

The vectors are those of the embeddings files; where they are fewer than `--size`, the rest is made of them: a real
vector and noise (cosine about 0.8, length 1). Recall is measured with real questions, which the tuning of the
index has not seen. Speed: all questions at once, and one by one; threads as OMP_NUM_THREADS says.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ralm.index.build import finish_index, open_searcher
from ralm.index.config import IndexSettings
from ralm.index.matrix import create_matrix, open_matrix, to_storage
from ralm.index.tuning import measure_recall
from ralm.model import open_model
from ralm.retriever.embed import embed_texts
from ralm.retriever.encoder import Encoder
from ralm.retriever.vectors import read_vectors

SETTINGS = (
    IndexSettings(kind="flat", storage="f32"),
    IndexSettings(kind="flat"),
    IndexSettings(kind="ivf_flat"),
    IndexSettings(kind="ivf_sq8"),
    IndexSettings(kind="ivf_sq4"),
    IndexSettings(kind="pq", code_size=32),
    IndexSettings(kind="pq", code_size=64),
    IndexSettings(kind="pq"),
    IndexSettings(kind="ivf_pq"),
    IndexSettings(kind="pq_fast_scan"),
    IndexSettings(kind="ivf_pq_fast_scan"),
    IndexSettings(kind="hnsw"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model artifact that made the vectors")
    parser.add_argument("--questions", required=True, help="jsonl with `question` or `question_text`")
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("embeddings", nargs="+")
    given = parser.parse_args()
    vector_ND, num_real = make_vectors(given.embeddings, given.size)
    question_BD = embed_questions(given.model, Path(given.questions))
    print(f"{len(vector_ND)} vectors, {num_real} of them real; {len(question_BD)} questions", flush=True)
    print(
        "| kind | options | bytes/vector | recall@10 | without re-rank | recall@100 | build s | q/s batch | q/s one |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for settings in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            print(table_row(Path(folder), vector_ND, question_BD, settings), flush=True)


def make_vectors(places: list[str], size: int) -> tuple[np.ndarray, int]:
    """Real vectors, one of each id, and as many made ones as are missing."""
    parts = [read_vectors(place) for place in places]
    _, first = np.unique(np.concatenate([ids for ids, _ in parts]), return_index=True)
    real_ND = np.concatenate([vectors for _, vectors in parts]).astype(np.float32)[first][:size]
    generator = np.random.default_rng(5)
    made_ND = real_ND[generator.integers(len(real_ND), size=max(0, size - len(real_ND)))]
    made_ND += 0.75 * generator.normal(size=made_ND.shape).astype(np.float32) / real_ND.shape[1] ** 0.5
    made_ND /= np.linalg.norm(made_ND, axis=1, keepdims=True)
    return np.concatenate([real_ND, made_ND]), len(real_ND)


def embed_questions(model: str, path: Path) -> np.ndarray:
    """Question vectors, float32."""
    opened = open_model(model)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [
        opened.retriever.question_format.format(question=row.get("question") or row["question_text"]) for row in rows
    ]
    encoder = Encoder.load(
        opened.question_encoder_folder, opened.retriever, device=torch.device("cpu"), dtype=torch.float32
    )
    return embed_texts(encoder, texts, max_tokens=opened.retriever.max_question_tokens)


def table_row(folder: Path, vector_ND: np.ndarray, question_BD: np.ndarray, settings: IndexSettings) -> str:
    """Build, open and measure one kind."""
    matrix_ND = create_matrix(folder, settings.storage, *vector_ND.shape)
    matrix_ND[:] = to_storage(vector_ND, settings.storage)
    started_at = time.monotonic()
    details = finish_index(folder, matrix_ND, settings)
    build_s = time.monotonic() - started_at
    matrix_ND = open_matrix(folder / "matrix.npy", *vector_ND.shape)
    recall = measure(folder, matrix_ND, details, question_BD)
    without = recall
    if details.get("options", {}).get("rerank"):
        plain = {**details, "options": {**details["options"], "rerank": 0}}
        without = measure(folder, matrix_ND, plain, question_BD)
    options = {**dataclasses.asdict(settings), **details.get("options", {})}
    shown = {name: options[name] for name in details.get("options", {"storage": ""})}
    return (
        f"| {settings.kind} | {' '.join(f'{name} {value}' for name, value in shown.items())} "
        f"| {details['bytes_per_vector']:.0f} | {recall['recall_at_10']:.3f} | {without['recall_at_10']:.3f} "
        f"| {recall['recall_at_100']:.3f} | {build_s:.1f} | {recall['batch']:.0f} | {recall['single']:.0f} |"
    )


def measure(folder: Path, matrix_ND: np.ndarray, details: dict[str, Any], question_BD: np.ndarray) -> dict[str, float]:
    """Recall on the questions, and questions per second at k = 10."""
    searcher = open_searcher(folder / "index.faiss", matrix_ND, details, torch.device("cpu"))
    recall = measure_recall(searcher.search, question_BD, matrix_ND)
    started_at = time.monotonic()
    searcher.search(question_BD, 10)
    batch_s = time.monotonic() - started_at
    started_at = time.monotonic()
    for question_D in question_BD[:50]:
        searcher.search(question_D[None], 10)
    single_s = (time.monotonic() - started_at) / 50
    return {**recall, "batch": len(question_BD) / batch_s, "single": 1 / single_s}


if __name__ == "__main__":
    main()
