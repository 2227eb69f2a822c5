"""Vectors to search: real ones of pieces of sentences, and more that are made of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from benchmarks.inputs import passages, quickstart_model
from benchmarks.suite import Bench
from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.tables import read_table
from ralm.device import resolve_dtype
from ralm.model import Model
from ralm.retriever.embed import embed_texts
from ralm.retriever.encoder import Encoder

FILES, FILE_PIECES = 7, 15_000
PIECE_WORDS = 12
"""At most: short texts, so that a hundred thousand are encoded in a minute or two."""
REAL_WEIGHT = 0.9
HELD_OUT = 2048
"""Pieces that are asked."""


def real_vectors(bench: Bench) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of Wikipedia's sentences as MiniLM sees them (float16), and others of the same articles (float32) to ask.

    105,000 different pieces of 6 to 12 words; every 51st is a question and not among the vectors. Made ones in a small
    run.
    """
    if bench.small:
        made_ND = made_vectors(4000 + 64, 32)
        return made_ND[:4000].astype(np.float16), made_ND[4000:]
    parts = [_embedded(bench, f"part-{part}") for part in range(FILES)]
    all_ND = np.concatenate(parts)
    is_asked_N = np.arange(len(all_ND)) % 51 == 25
    return all_ND[~is_asked_N], all_ND[is_asked_N][:HELD_OUT].astype(np.float32)


def folder_of(bench: Bench) -> Path:
    """Where vectors of these pieces, and what is made of them, are kept for the next run."""
    folder = bench.work / f"pieces-of-{PIECE_WORDS}-words"
    folder.mkdir(exist_ok=True)
    return folder


def foreign_questions(bench: Bench) -> np.ndarray:
    """2,048 pieces of other articles, whose subjects are not among the vectors (float32)."""
    return made_vectors(64, 32, seed=9) if bench.small else _embedded(bench, "questions").astype(np.float32)


def _embedded(bench: Bench, name: str) -> np.ndarray:
    """A part of the pieces, embedded once."""
    path = folder_of(bench) / f"{name}.npy"
    if not path.is_file():
        asked, kept = _pieces(bench)
        texts = asked
        if name != "questions":
            texts = kept[int(name.removeprefix("part-")) * FILE_PIECES :][:FILE_PIECES]
        _save(path, _embed(quickstart_model(bench), texts))
    found: np.ndarray = np.load(path)
    return found


def spread_vectors(bench: Bench, count: int = 1_000_000) -> np.ndarray:
    """Vectors made of real ones (float16): `0.9 x + 0.44 z`, x a real vector and z noise that is spread as the corpus.

    Scaled to length 1. z is normal with the covariance of the real vectors and of length 1, so that noise points where
    other vectors are and the made ones lie in the clusters of the real ones. With the weight 0.9 they are about as hard
    to find as real ones: of 50,000 in 195 lists, 99 % of the true ten of 1,024 foreign questions are in 84 lists a
    question, of as many real ones in 78; with questions of the same articles in 76 and 78.
    """
    count = 8000 if bench.small else count
    path = folder_of(bench) / f"spread-{count}-{REAL_WEIGHT}.npy"
    if not path.is_file():
        real_ND = real_vectors(bench)[0].astype(np.float32)
        scale_DD = np.linalg.cholesky(np.cov(real_ND.T) + 1e-6 * np.eye(real_ND.shape[1])).astype(np.float32)
        generator, made_ND = np.random.default_rng(6), np.empty((count, real_ND.shape[1]), np.float16)
        for start in range(0, count, 50_000):
            size = min(50_000, count - start)
            noise_ND = generator.standard_normal((size, real_ND.shape[1]), np.float32) @ scale_DD.T
            noise_ND /= np.linalg.norm(noise_ND, axis=1, keepdims=True)
            vector_ND = REAL_WEIGHT * real_ND[generator.integers(len(real_ND), size=size)]
            vector_ND += (1 - REAL_WEIGHT**2) ** 0.5 * noise_ND
            made_ND[start : start + size] = vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)
        _save(path, made_ND)
    made: np.ndarray = np.load(path, mmap_mode="r")
    return made


def made_vectors(count: int, size: int, *, seed: int = 7) -> np.ndarray:
    """Vectors of length 1 in 60 clusters (float32)."""
    generator = np.random.default_rng(seed)
    vector_ND = generator.normal(size=(60, size))[generator.integers(60, size=count)]
    vector_ND = vector_ND + 0.7 * generator.normal(size=(count, size))
    return (vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)).astype(np.float32)


def _pieces(bench: Bench) -> tuple[list[str], list[str]]:
    """Those of every 20th article, which are only asked, and those of the others."""
    places = [place for place, _ in open_artifact(passages(bench), "passages").tables()]
    table = read_table(places, "passages/1", ["page_id", "text"])
    asked: dict[str, None] = {}
    kept: dict[str, None] = {}
    for page, text in zip(table["page_id"].to_pylist(), table["text"].to_pylist(), strict=True):
        for sentence in re.split(r"(?<=[.!?]) +(?=[A-Z])", text):
            words = sentence.split()
            count = -(-len(words) // PIECE_WORDS)
            for part in range(count if len(words) >= 6 else 0):
                piece = " ".join(words[len(words) * part // count : len(words) * (part + 1) // count])
                (asked if page % 20 == 0 else kept)[piece] = None
    return [piece for piece in asked if piece not in kept][:HELD_OUT], list(kept)


def _embed(model: Model, texts: list[str]) -> np.ndarray:
    device = torch.device("cpu")
    dtype = resolve_dtype("auto", device)
    encoder = Encoder.load(model.passage_encoder_folder, model.retriever, device=device, dtype=dtype)
    return embed_texts(encoder, texts, max_tokens=64).astype(np.float16)


def _save(path: Path, array: np.ndarray) -> None:
    part = path.with_suffix(".part.npy")
    np.save(part, array)
    part.rename(path)
