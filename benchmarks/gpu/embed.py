"""Embedding on a GPU, text in and Parquet out, against sentence-transformers in the same number format.

    python -m benchmarks.gpu.embed --work DIR --passages PASSAGES --bert-vocab vocab.txt

Random weights in the shape of Contriever (12 layers of 768 values). The whole stage of the project is timed: read,
tokenize, encode, write, checksums. Of the peer (where it is not installed, there is no row of it) only `encode` is
timed, with its default batch and with a large one, on fewer passages. Both get the same texts, cut at the same number
of tokens. The parts of the stage are measured by themselves afterwards; in the stage they go on at the same time.

Shares of the peak: operations of the tokens that are there, padding not counted, over those of a large product of
random matrices in the same run and number format.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.made_models import write_bert, write_t5
from benchmarks.gpu.passages import passage_table, write_passages
from benchmarks.machine import describe, interleaved, median, peak_flops, pick_device, seconds, spread
from benchmarks.peers import sentence_transformer
from components.embed.config import EmbedConfig
from components.embed.stage import embed
from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.tables import read_table
from ralm.device import HostCopy, precision_name, resolve_dtype
from ralm.log import progress
from ralm.model import Model, open_model
from ralm.model_build import build_model
from ralm.retriever.embed import TokenizedTexts, encode_tokens, tokenize_texts
from ralm.retriever.encoder import Encoder
from ralm.retriever.vectors import binary_column, read_vectors

PEER_BATCHES = (32, 512)


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for models, passages and vectors")
    parser.add_argument("--passages", default="", help="passages artifact, repeated to the size; default: made ones")
    parser.add_argument("--bert-vocab", type=Path, help="vocab.txt of BERT; default: made from the texts")
    parser.add_argument("--size", type=int, default=262_144)
    parser.add_argument("--peer-size", type=int, default=16_384)
    parser.add_argument("--block", type=int, default=EmbedConfig().block_passages, help="passages sorted at a time")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a tiny model and few passages, also on a CPU")
    given = parser.parse_args(argv)
    if given.small:
        given.size, given.peer_size, given.repeats = 200, 50, 1
    device = pick_device(small=given.small)
    os.environ["RALM_HOME"] = str(given.work / "home")
    os.environ["RALM_TRACKING"] = "off"
    model = prepare(given)
    print(
        f"{describe(device)}; {given.size:,} passages, the peer {given.peer_size:,}; {given.repeats} repeats",
        flush=True,
    )
    texts = texts_of(str(given.work / "passages"), model, given.peer_size)
    dtype = resolve_dtype("auto", device)
    peak = peak_flops(device, size=256 if given.small else 8192, dtype=dtype)
    encoder = Encoder.load(model.passage_encoder_folder, model.retriever, device=device, dtype=dtype)

    def stage() -> None:
        shutil.rmtree(given.work / "vectors", ignore_errors=True)
        shutil.rmtree(given.work / "home", ignore_errors=True)
        embed(
            passages=str(given.work / "passages"),
            model=str(given.work / "model"),
            embeddings=str(given.work / "vectors"),
            config=EmbedConfig(block_passages=given.block),
        )

    stages = {"ralm embed, whole stage": stage}
    peers = {}
    if importlib.util.find_spec("sentence_transformers"):
        encode = sentence_transformer.load(
            model.passage_encoder_folder, device, encoder.model.dtype, model.retriever.max_passage_tokens
        )
        for batch in PEER_BATCHES:
            peers[f"sentence-transformers, batch {batch}"] = lambda batch=batch: encode(texts, batch)
            encode(texts[:2048], batch)
    else:
        print("sentence-transformers is not installed: no peer")
    seconds(lambda: embed_texts_once(encoder, texts), device)  # kernels are loaded here
    times = interleaved({**stages, **peers}, device, given.repeats)
    _, vector_ND = read_vectors(str(next((given.work / "vectors").glob("*.parquet"))))
    tokens = print_rates(times, given, encoder, texts, peak)
    print_parts(
        encoder, texts_of(str(given.work / "passages"), model, min(given.block, given.size)), given.work, device, peak
    )
    if peers:
        print(f"least cosine to the peer's vectors: {least_cosine(vector_ND[: len(texts)], encode(texts, 512)):.5f}")
    print(f"mean tokens of a passage: {tokens:.1f}")


def prepare(given: argparse.Namespace) -> Model:
    """Write the passages, and the model if it is not there."""
    table = passage_table(given.passages, given.size)
    write_passages(str(given.work / "passages"), table)
    if not (given.work / "model" / "manifest.json").exists():
        columns = (table.column(name).to_pylist() for name in ("title", "text"))
        words = [] if given.bert_vocab else [" ".join(row) for row in zip(*columns, strict=True)]
        write_bert(given.work / "files" / "retriever", "tiny" if given.small else "base", words, given.bert_vocab)
        write_t5(given.work / "files" / "reader", "tiny", ["a"])
        build_model(str(given.work / "model"), source=str(given.work / "files"))
    return open_model(str(given.work / "model"))


def texts_of(passages: str, model: Model, size: int) -> list[str]:
    """What the encoder is given for the first passages."""
    places = [place for place, _ in open_artifact(passages, "passages").tables()]
    table = read_table(places, "passages/1", ["title", "section", "text"]).slice(0, size)
    columns = (table.column(name).to_pylist() for name in ("title", "section", "text"))
    return [model.retriever.format_passage(*fields) for fields in zip(*columns, strict=True)]


def silent(size: int) -> progress:
    """A progress that nobody sees."""
    return progress(total=size, what="embed", unit="passages")


def embed_texts_once(encoder: Encoder, texts: list[str]) -> None:
    """Tokenize and encode."""
    tokens = tokenize_texts(encoder, texts, encoder.config.max_passage_tokens)
    HostCopy(encode_tokens(encoder, tokens, bar=silent(len(texts)))).numpy()


def operations(encoder: Encoder, lengths_N: np.ndarray) -> float:
    """Of encoding texts of these lengths, a multiplication with an addition as 2; see docs/planning.md."""
    config = encoder.model.config
    d, f = config.hidden_size, config.intermediate_size
    lengths_N = lengths_N.astype(np.float64)
    return float(config.num_hidden_layers * (lengths_N * (8 * d * d + 4 * d * f + 4 * lengths_N * d)).sum())


def print_rates(
    times: dict[str, list[float]], given: argparse.Namespace, encoder: Encoder, texts: list[str], peak: float
) -> float:
    """The table of whole ways; returns the mean number of tokens."""
    lengths_N = tokenize_texts(encoder, texts, encoder.config.max_passage_tokens).lengths
    per_passage = operations(encoder, lengths_N) / len(lengths_N)
    rates = {
        name: (given.size if name.startswith("ralm") else given.peer_size) / median(spent)
        for name, spent in times.items()
    }
    ours = next(iter(rates.values()))
    print("| way | passages/s | s, least to most | share of the peak | ours is so many times as fast |")
    print("|---|---|---|---|---|")
    for name, spent in times.items():
        share = rates[name] * per_passage / peak
        print(f"| {name} | {rates[name]:,.0f} | {spread(spent)} | {share:.3f} | {ours / rates[name]:.2f} |")
    print(f"peak in this run: {peak / 1e12:.1f} TFLOP/s in {precision_name(encoder.model.dtype)}")
    return float(lengths_N.mean())


def print_parts(encoder: Encoder, texts: list[str], work: Path, device: torch.device, peak: float) -> None:
    """What the parts of the stage take by themselves, for one block."""
    found: list[TokenizedTexts] = []
    tokenize_s = seconds(
        lambda: found.append(tokenize_texts(encoder, texts, encoder.config.max_passage_tokens)), device
    )
    tokens = found[0]
    vectors: list[np.ndarray] = []

    def encode() -> None:
        vectors.append(HostCopy(encode_tokens(encoder, tokens, bar=silent(len(texts)))).numpy())

    encode_s = median([seconds(encode, device) for _ in range(3)])
    started_at = time.perf_counter()
    column = binary_column(vectors[0], "f16")
    convert_s = time.perf_counter() - started_at
    write_s = seconds(lambda: (work / "raw.bin").write_bytes(column.buffers()[1]), device)
    useful = operations(encoder, tokens.lengths) / encode_s / peak
    print("| part, by itself | passages/s | of the peak |\n|---|---|---|")
    print(f"| tokenize ({os.cpu_count()} cores) | {len(texts) / tokenize_s:,.0f} | |")
    print(f"| encode on the device | {len(texts) / encode_s:,.0f} | {useful:.3f} |")
    print(f"| vectors to fp16 | {len(texts) / convert_s:,.0f} | |")
    print(f"| write | {len(texts) / write_s:,.0f} | |")


def least_cosine(first_ND: np.ndarray, second_ND: np.ndarray) -> float:
    """Of vectors of the same texts."""
    first_ND, second_ND = first_ND.astype(np.float32), second_ND.astype(np.float32)
    lengths_N = np.linalg.norm(first_ND, axis=1) * np.linalg.norm(second_ND, axis=1)
    return float(((first_ND * second_ND).sum(axis=1) / lengths_N).min())


if __name__ == "__main__":
    main()
