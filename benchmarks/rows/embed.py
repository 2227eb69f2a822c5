"""Embedding on a CPU, text in and Parquet out, against sentence-transformers' defaults and the Atlas way.

The whole stage is timed: read, load the encoder, tokenize, encode, write, checksums. Of the peers only the encoding of
texts is timed, with the model in memory. Slow peers get a subset of the same lengths: every n-th passage by length.
Shares of the peak: operations of the tokens that are there, padding not counted, over those of a large product on all
cores in the same run, in bf16 where the processor has units for it, else in fp32, as the encoder.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
from collections.abc import Callable, Sequence

import numpy as np
import torch

from benchmarks import inputs
from benchmarks.gpu.embed import least_cosine, operations, silent, texts_of
from benchmarks.gpu.passages import passage_table, write_passages
from benchmarks.machine import cpu_seconds, interleaved, is_slow, median, peak_flops, spread
from benchmarks.peers import atlas_embed, sentence_transformer
from benchmarks.suite import Bench, Measured
from components.embed.stage import embed
from ralm.device import resolve_dtype
from ralm.model import Model
from ralm.retriever.embed import PACKED_FROM, embed_texts, encode_tokens, tokenize_texts
from ralm.retriever.encoder import Encoder
from ralm.retriever.vectors import read_vectors

CPU = torch.device("cpu")
OURS = "ralm embed, whole stage"
WARM_EVERY = 16
"""Of a peer's passages, those that warm it up."""
CHECKED = 32
"""Vectors that are compared with those of fp32, at least."""


def measure_minilm(bench: Bench) -> Measured:
    """E1: MiniLM with its real weights, 2,048 real passages."""
    size = 64 if bench.small else 2048
    return measure(bench, inputs.quickstart_model(bench), size=size, peer=min(256, size), atlas=min(128, size))


def measure_base(bench: Bench) -> Measured:
    """E2: a BERT of 12 layers with 768 values; random weights, since only speed is asked, and the Atlas way alone."""
    size = 64 if bench.small else 256 if is_slow() else 512
    return measure(bench, inputs.base_model(bench), size=size, peer=0, atlas=min(128, size))


def measure(bench: Bench, model: Model, *, size: int, peer: int, atlas: int) -> Measured:
    """Measure a model.

    Args:
        bench: where and how often.
        model: whose passage encoder it is.
        size: passages that we embed.
        peer: of them, those that sentence-transformers embeds and that are compared with fp32; 0: it is left out.
        atlas: of them, those that are embedded in the Atlas way.
    """
    source = str(bench.work / f"passages-of-{size}")
    write_passages(source, passage_table(inputs.passages(bench), size))
    texts = texts_of(source, model, size)
    encoder = load(model, resolve_dtype("auto", CPU))
    lengths_N = np.array([len(row) for row in encoder.tokenize(texts, model.retriever.max_passage_tokens)])
    assert bench.small or lengths_N.sum() >= PACKED_FROM, "too few texts for the way that large corpora are encoded"
    vectors = bench.work / "vectors"

    def stage() -> None:
        shutil.rmtree(vectors, ignore_errors=True)
        shutil.rmtree(bench.work / "home" / "store" / "embeddings", ignore_errors=True)
        embed(passages=source, model=str(model.folder), embeddings=str(vectors))

    sizes = {OURS: size}
    ways: dict[str, Callable[[], object]] = {OURS: stage}
    for name, of_peer, encode in peers(model, peer, atlas):
        rows = stratified(lengths_N, of_peer)
        sizes[name], ways[name] = of_peer, functools.partial(encode, [texts[row] for row in rows])
        encode([texts[row] for row in rows[::WARM_EVERY]])
    peaks = [peak_flops(CPU, size=128 if bench.small else 2048)]
    times = interleaved(ways, CPU, bench.repeats)
    peaks.append(peak_flops(CPU, size=128 if bench.small else 2048))
    _, vector_ND = read_vectors(str(next(vectors.glob("*.parquet"))))
    rows = stratified(lengths_N, max(peer, CHECKED))
    exact_ND = embed_texts(load(model, torch.float32), [texts[row] for row in rows], max_tokens=256)
    rates = {name: sizes[name] / median(spent) for name, spent in times.items()}
    per_passage = operations(encoder, lengths_N) / size
    figures = {
        "passages_per_s": rates[OURS],
        "share_of_peak": rates[OURS] * per_passage / max(peaks),
        "gflops": rates[OURS] * per_passage / 1e9,
        "peak_gflops": max(peaks) / 1e9,
        "least_cosine": least_cosine(vector_ND[rows], exact_ND),
        "mean_tokens": float(lengths_N.mean()),
    }
    figures |= {f"x_{name}": rates[OURS] / rate for name, rate in rates.items() if name != OURS}
    table = [
        "| way | passages | passages/s | s, least to most | ours / it | share of the peak |",
        "|---|---|---|---|---|---|",
    ]
    table += [
        f"| {name} | {sizes[name]} | {rate:,.1f} | {spread(times[name])} | {rates[OURS] / rate:.2f} "
        f"| {rate * per_passage / max(peaks):.3f} |"
        for name, rate in rates.items()
    ]
    return Measured(figures, table)


def load(model: Model, dtype: torch.dtype) -> Encoder:
    """The passage half."""
    return Encoder.load(model.passage_encoder_folder, model.retriever, device=CPU, dtype=dtype)


def peers(model: Model, peer: int, atlas: int) -> list[tuple[str, int, Callable[[Sequence[str]], np.ndarray]]]:
    """Name, number of passages and function of each peer that is installed."""
    folder, settings = model.passage_encoder_folder, model.retriever
    found: list[tuple[str, int, Callable[[Sequence[str]], np.ndarray]]] = []
    if peer and importlib.util.find_spec("sentence_transformers"):
        encode = sentence_transformer.load(folder, CPU, torch.float32, settings.max_passage_tokens)
        found.append(("sentence_transformers", peer, lambda texts: encode(texts, 32)))
    found.append(("atlas_way", atlas, atlas_embed.load(folder, normalize=settings.normalize)))
    return found


def stratified(lengths_N: np.ndarray, size: int) -> np.ndarray:
    """Rows of `size` texts whose lengths are spread as those of all, in the order of the texts."""
    order_N = np.argsort(lengths_N, kind="stable")
    places = (np.arange(size) + 0.5) * len(order_N) / size
    return np.sort(order_N[places.astype(int)])


def measure_tokenizing(bench: Bench) -> Measured:
    """T1: the share of tokenizing in the CPU time of embedding."""
    model = inputs.quickstart_model(bench)
    size = 64 if bench.small else 512
    source = str(bench.work / f"passages-of-{size}")
    write_passages(source, passage_table(inputs.passages(bench), size))
    texts, encoder = texts_of(source, model, size), load(model, resolve_dtype("auto", CPU))
    times: dict[str, list[float]] = {"tokenize": [], "encode": []}
    for _ in range(min(3, bench.repeats)):
        tokens, spent = cpu_seconds(lambda: tokenize_texts(encoder, texts, model.retriever.max_passage_tokens))
        times["tokenize"].append(spent)
        _, spent = cpu_seconds(functools.partial(encode_tokens, encoder, tokens, bar=silent(size)))
        times["encode"].append(spent)
    tokenize_s, encode_s = median(times["tokenize"]), median(times["encode"])
    table = ["| part | CPU s |", "|---|---|", *(f"| {name} | {median(spent):.3f} |" for name, spent in times.items())]
    return Measured({"tokenizing_share": tokenize_s / (tokenize_s + encode_s)}, table)
