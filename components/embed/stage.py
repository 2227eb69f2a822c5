"""The embed stage: passages and a model -> one shard of `embeddings`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from components.embed.config import EmbedConfig
from ralm.artifacts.files import Location, join
from ralm.artifacts.manifest import Artifact, Manifest, open_artifact
from ralm.artifacts.schemas import embeddings_schema
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import TableWriter, iterate_rows
from ralm.device import HostCopy, best_device, resolve_dtype
from ralm.errors import ConfigError
from ralm.log import progress
from ralm.model import Model, open_model
from ralm.overlap import Behind, ahead
from ralm.retriever.embed import TokenizedTexts, encode_tokens, tokenize_texts
from ralm.retriever.encoded import EncodedPassages, open_encoded
from ralm.retriever.encoder import Encoder
from ralm.retriever.vectors import binary_column

logger = logging.getLogger(__name__)
STAGE_VERSION = 1
_COLUMNS = ("passage_id", "title", "section", "text", "content_hash")


def embed(
    *,
    passages: Location,
    model: Location,
    embeddings: Location,
    previous_index: Location = "",
    previous_passages: Location = "",
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
        previous_index: An earlier index; a passage whose text the same encoder has encoded for it gets that vector.
        previous_passages: The passages that the earlier index was made from.
        shard: Which shard, from 0.
        num_shards: Into how many shards the passages are cut.
        config: How they are encoded and stored.

    Raises:
        ArtifactError: an input is unfinished, or the earlier index and passages do not belong together.
        ConfigError: a shard that is none of them, or only one of the earlier index and its passages.
    """
    if num_shards < 1:
        raise ConfigError(f"num_shards: expected at least 1, found {num_shards}")
    if not 0 <= shard < num_shards:
        raise ConfigError(f"shard: expected 0 to {num_shards - 1} of {num_shards} shards, found {shard}")
    if bool(previous_index) != bool(previous_passages):
        missing = "previous_passages" if previous_index else "previous_index"
        raise ConfigError(f"embed: --previous-index and --previous-passages go together; missing: {missing}")
    source, opened = open_artifact(passages, "passages"), open_model(model)
    start, stop = shard_rows(source.manifest.rows, shard, num_shards)
    device = best_device()
    weights = resolve_dtype(config.precision, device)
    precision = str(weights).removeprefix("torch.").replace("bfloat16", "bf16").replace("float32", "fp32")

    fingerprint = opened.fingerprints["passage_encoder"]
    known = None
    if previous_index:
        facts = {"passage_encoder": fingerprint, "dtype": config.dtype, "precision": precision}
        known = open_encoded(previous_index, previous_passages, **facts)
    inputs = {"passages": source.fingerprint, "passage_encoder": fingerprint}

    def build(folder: Path) -> Contents:
        started_at = time.monotonic()
        name = f"shard-{shard:05d}-of-{num_shards:05d}.parquet"
        vectors = PassageVectors(opened, known, config, device, weights)
        rows = _write_shard(folder / name, _blocks(source, start, stop, config.block_passages), vectors, stop - start)
        elapsed_s = max(time.monotonic() - started_at, 1e-9)
        logger.info("embedded %d of %d passages on %s in %s", vectors.num_encoded, rows, device, precision)
        return Contents(
            rows={name: rows},
            counts={"passages": rows, "encoded": vectors.num_encoded, "taken_over": rows - vectors.num_encoded},
            details={
                "dimension": vectors.dimension,
                "dtype": config.dtype,
                "passage_encoder": fingerprint,
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
        inputs=inputs if known is None else {**inputs, "previous": known.fingerprint},
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


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A block of passages, ready to be encoded."""

    ids: pa.ChunkedArray
    is_new: np.ndarray
    """`[N]`, true where the encoder is needed."""
    known: np.ndarray | None
    """Vectors of an earlier index; some row of it where a passage is new."""
    tokens: TokenizedTexts | None
    """Of the new passages, in their order; None where there are none."""


class PassageVectors:
    """Vectors of passages: those of an earlier index where it has the text, else the encoder's, which is loaded then.

    Attributes:
        num_encoded: passages that were encoded so far.
    """

    def __init__(
        self,
        model: Model,
        known: EncodedPassages | None,
        config: EmbedConfig,
        device: torch.device,
        weights: torch.dtype,
    ) -> None:
        self._model, self._known, self._config = model, known, config
        self._device, self._weights = device, weights
        self.num_encoded = 0

    @functools.cached_property
    def _encoder(self) -> Encoder:
        folder, retriever = self._model.passage_encoder_folder, self._model.retriever
        return Encoder.load(folder, retriever, device=self._device, dtype=self._weights)

    @property
    def dimension(self) -> int:
        """D."""
        return self._known.dimension if self._known else self._encoder.dimension

    @property
    def schema(self) -> pa.Schema:
        """Of the table they are written to."""
        return embeddings_schema(self.dimension, self._config.dtype, self._model.fingerprints["passage_encoder"])

    def prepare(self, block: pa.Table) -> Prepared:
        """Look up what is known of a block, and tokenize what is not."""
        is_new_N = np.ones(block.num_rows, dtype=bool)
        known_ND = None
        if self._known is not None:
            row_N = self._known.find(block.column("content_hash"))
            is_new_N = row_N < 0
            known_ND = self._known.vectors(np.maximum(row_N, 0))
        tokens = None
        if is_new_N.any():
            columns = (block.column(name).filter(is_new_N).to_pylist() for name in ("title", "section", "text"))
            retriever = self._model.retriever
            texts = [retriever.format_passage(*fields) for fields in zip(*columns, strict=True)]
            tokens = tokenize_texts(self._encoder, texts, retriever.max_passage_tokens)
        return Prepared(block.column("passage_id"), is_new_N, known_ND, tokens)

    def encode(self, prepared: Prepared, bar: progress) -> HostCopy | None:
        """Begin to encode what is not known; None where all is."""
        bar.update(int((~prepared.is_new).sum()))
        if prepared.tokens is None:
            return None
        self.num_encoded += len(prepared.tokens.order)
        budget = self._config.token_budget or None
        return HostCopy(encode_tokens(self._encoder, prepared.tokens, bar=bar, token_budget=budget))

    def rows(self, prepared: Prepared, encoded: HostCopy | None) -> pa.Table:
        """Id and vector of each passage of a block; waits for what was begun."""
        if prepared.known is None:
            assert encoded is not None
            vector_ND = encoded.numpy()
        else:
            vector_ND = prepared.known
            if encoded is not None:
                vector_ND[prepared.is_new] = encoded.numpy()
        return pa.table([prepared.ids, binary_column(vector_ND, self._config.dtype)], schema=self.schema)


def _write_shard(path: Path, blocks: Iterator[pa.Table], vectors: PassageVectors, num_rows: int) -> int:
    """Encode the blocks, while one thread prepares the next of them and another writes the one before."""
    with TableWriter(path, vectors.schema) as writer, progress(total=num_rows, what="embed", unit="passages") as bar:

        def write(prepared: Prepared, encoded: HostCopy | None) -> None:
            writer.write(vectors.rows(prepared, encoded))

        with contextlib.closing(ahead(vectors.prepare, blocks)) as ready, Behind() as behind:
            for prepared in ready:
                behind.run(write, prepared, vectors.encode(prepared, bar))
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
