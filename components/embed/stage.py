"""The embed stage: passages and a model -> one shard of `embeddings`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from components.embed.config import EmbedConfig
from ralm.artifacts.files import Location, join
from ralm.artifacts.manifest import Artifact, Manifest, open_artifact
from ralm.artifacts.schemas import embeddings_schema
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import TableWriter, iterate_rows
from ralm.device import best_device, resolve_dtype
from ralm.errors import ConfigError
from ralm.log import progress
from ralm.model import Model, open_model
from ralm.retriever.embed import embed_texts
from ralm.retriever.encoder import Encoder
from ralm.retriever.vectors import binary_column

logger = logging.getLogger(__name__)
STAGE_VERSION = 1
_COLUMNS = ("passage_id", "title", "section", "text")


def embed(
    *,
    passages: Location,
    model: Location,
    embeddings: Location,
    shard: int = 0,
    num_shards: int = 1,
    config: EmbedConfig = EmbedConfig(),  # noqa: B008 - frozen
) -> Manifest:
    """Encode one shard of the passages into vectors.

    Shards are cut by row range; each can be run alone, and one that was made before from the same passages and passage
    encoder is reused.

    Args:
        passages: A passages artifact.
        model: A model artifact; only its passage encoder is used.
        embeddings: Folder that receives the embeddings artifact; with several shards each gets a folder in it.
        shard: Which shard, from 0.
        num_shards: Into how many shards the passages are cut.
        config: How they are encoded and stored.
    """
    if num_shards < 1:
        raise ConfigError(f"num_shards: expected at least 1, found {num_shards}")
    if not 0 <= shard < num_shards:
        raise ConfigError(f"shard: expected 0 to {num_shards - 1} of {num_shards} shards, found {shard}")
    source, opened = open_artifact(passages, "passages"), open_model(model)
    start, stop = shard_rows(source.manifest.rows, shard, num_shards)
    device = best_device()
    weights = resolve_dtype(config.precision, device)
    precision = str(weights).removeprefix("torch.").replace("bfloat16", "bf16").replace("float32", "fp32")

    def build(folder: Path) -> Contents:
        started_at = time.monotonic()
        name = f"shard-{shard:05d}-of-{num_shards:05d}.parquet"
        encoder = Encoder.load(opened.passage_encoder_folder, opened.retriever, device=device, dtype=weights)
        rows = _write_shard(folder / name, source, opened, encoder, start, stop, config)
        elapsed_s = max(time.monotonic() - started_at, 1e-9)
        logger.info("embedded %d passages on %s in %s, %.1f a second", rows, device, precision, rows / elapsed_s)
        return Contents(
            rows={name: rows},
            counts={"passages": rows},
            details={
                "dimension": encoder.dimension,
                "dtype": config.dtype,
                "passage_encoder": opened.fingerprints["passage_encoder"],
                "passages": source.fingerprint,
                "shard": shard,
                "num_shards": num_shards,
            },
            timings={"passages_per_s": round(rows / elapsed_s, 3)},
        )

    return produce(
        embeddings if num_shards == 1 else join(embeddings, f"shard-{shard:05d}-of-{num_shards:05d}"),
        kind="embeddings",
        stage="embed",
        stage_version=STAGE_VERSION,
        inputs={"passages": source.fingerprint, "passage_encoder": opened.fingerprints["passage_encoder"]},
        config={"dtype": config.dtype, "precision": precision, "shard": shard, "num_shards": num_shards},
        build=build,
    )


def shard_rows(num_rows: int, shard: int, num_shards: int) -> tuple[int, int]:
    """First row and row after the last of a shard; sizes differ by at most one, and may be zero.

    Example:
        >>> [shard_rows(10, shard, 3) for shard in range(3)]
        [(0, 3), (3, 6), (6, 10)]
    """
    return num_rows * shard // num_shards, num_rows * (shard + 1) // num_shards


def _write_shard(
    path: Path, source: Artifact, model: Model, encoder: Encoder, start: int, stop: int, config: EmbedConfig
) -> int:
    retriever = model.retriever
    schema = embeddings_schema(encoder.dimension, config.dtype, model.fingerprints["passage_encoder"])
    with TableWriter(path, schema) as writer, progress(total=stop - start, what="embed", unit="passages") as bar:
        for block in _blocks(source, start, stop, config.block_passages):
            columns = (block.column(name).to_pylist() for name in _COLUMNS[1:])
            texts = [retriever.format_passage(*fields) for fields in zip(*columns, strict=True)]
            vectors_ND = embed_texts(
                encoder,
                texts,
                max_tokens=retriever.max_passage_tokens,
                token_budget=config.token_budget or None,
                bar=bar,
            )
            ids = block.column("passage_id")
            writer.write(pa.table([ids, binary_column(vectors_ND, config.dtype)], schema=schema))
    return writer.num_rows


def _blocks(source: Artifact, start: int, stop: int, block_passages: int) -> Iterator[pa.Table]:
    """Rows of the shard in blocks of `block_passages` (the last may be shorter), whatever the row groups are."""
    pending: list[pa.Table] = []
    size = 0
    for table in iterate_rows(source.tables(), "passages/1", start=start, stop=stop, columns=_COLUMNS):
        pending.append(table)
        size += table.num_rows
        while size >= block_passages:
            merged = pa.concat_tables(pending)
            yield merged.slice(0, block_passages)
            pending, size = [merged.slice(block_passages)], size - block_passages
    if size:
        yield pa.concat_tables(pending)
