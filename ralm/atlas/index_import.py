"""The shards of an Atlas index -> `passages` and `embeddings` artifacts.

Vectors do not say what made them. So some passages are encoded again with the model given, and vectors that are not of
this model are refused.

Shapes: `D` values in a vector, `N` passages.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from ralm.artifacts.files import Location
from ralm.artifacts.manifest import Artifact, Manifest, open_artifact
from ralm.artifacts.schemas import embeddings_schema
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import TableWriter, read_table
from ralm.atlas.shards import Shard, find_shards, read_passages, read_shard_vectors
from ralm.corpus.build import DocumentBatch, write_passages
from ralm.corpus.lookup import PassageLookup
from ralm.corpus.passages import SplitLimits
from ralm.device import best_device
from ralm.errors import ArtifactError, ConfigError
from ralm.log import progress
from ralm.model import Model, open_model
from ralm.retriever.embed import embed_texts
from ralm.retriever.encoder import Encoder
from ralm.retriever.vectors import binary_column
from ralm.sources import fetch_tree, source_digest

logger = logging.getLogger(__name__)
IMPORT_VERSION = 1
BATCH_DOCUMENTS = 1024
BLOCK_ROWS = 65536
NUM_CHECKED = 64
MIN_COSINE = 0.99


def import_index(
    *,
    source: Location,
    model: Location,
    passages: Location,
    embeddings: Location,
    num_checked: int = NUM_CHECKED,
    min_cosine: float = MIN_COSINE,
) -> tuple[Manifest, Manifest]:
    """Make `passages` and `embeddings` artifacts of the shards of an Atlas index, one shard in memory at a time.

    Args:
        source: a folder with `passages.N.pt` and `embeddings.N.pt`, any number of them, or `atlas:indices/...`.
        model: the `model` artifact whose passage encoder made the vectors.
        passages: folder that receives the passages, in the order of the shards.
        embeddings: folder that receives the vectors as they are (fp16).
        num_checked: so many passages are encoded again and compared; 0: the vectors are believed.
        min_cosine: what the median of their cosines with the vectors in the files has to reach.

    Returns:
        The manifests of passages and embeddings.

    Raises:
        ConfigError: a number out of its range.
        DataError: the source cannot be fetched.
        ArtifactError: a shard is missing, asks for more than plain values, or is damaged; the vectors have another
            size, are not finite, or are not by this model.
    """
    if num_checked < 0:
        raise ConfigError(f"num_checked: expected 0 or more, found {num_checked}")
    if not -1 <= min_cosine <= 1:
        raise ConfigError(f"min_cosine: expected -1 to 1, found {min_cosine}")
    opened, digest = open_model(model), source_digest(source)
    shards = find_shards(fetch_tree(source))
    made = produce(
        passages,
        kind="passages",
        stage="atlas-import",
        stage_version=IMPORT_VERSION,
        inputs={"source": digest},
        config={},
        build=lambda folder: _build_passages(folder, shards, source),
    )
    artifact = open_artifact(passages, "passages")
    encoder = opened.fingerprints["passage_encoder"]

    def build(folder: Path) -> Contents:
        _check_encoder(shards, artifact, opened, num_checked, min_cosine)
        return _build_embeddings(folder, shards, artifact, encoder, opened.dimension)

    vectors = produce(
        embeddings,
        kind="embeddings",
        stage="atlas-import",
        stage_version=IMPORT_VERSION,
        inputs={"source": digest, "passages": made.fingerprint, "passage_encoder": encoder},
        config={"num_checked": num_checked, "min_cosine": min_cosine},
        build=build,
    )
    return made, vectors


def _build_passages(folder: Path, shards: Sequence[Shard], source: Location) -> Contents:
    sizes = [0] * len(shards)

    def batches() -> Iterator[DocumentBatch]:
        for number, shard in enumerate(shards):
            documents = read_passages(shard.passages)
            while items := list(itertools.islice(documents, BATCH_DOCUMENTS)):
                sizes[number] += len(items)
                yield DocumentBatch(items)

    rows, counts = write_passages(folder, batches(), SplitLimits(), workers=1, source=source)
    return Contents(rows=rows, counts={**counts, "shards": len(shards)}, details={"shard_rows": sizes})


def _build_embeddings(
    folder: Path, shards: Sequence[Shard], passages: Artifact, encoder: str, dimension: int
) -> Contents:
    """One table for each shard, with the ids of its passages."""
    sizes: list[int] = passages.manifest.details["shard_rows"]
    id_N, first, rows = _passage_ids(passages), 0, {}
    schema = embeddings_schema(dimension, "f16", encoder)
    with progress(total=len(id_N), what="import", unit="vectors") as bar:
        for number, (shard, size) in enumerate(zip(shards, sizes, strict=True)):
            vector_DN = read_shard_vectors(shard.embeddings, dimension=dimension, rows=size)
            name = f"shard-{number:05d}-of-{len(shards):05d}.parquet"
            with TableWriter(folder / name, schema) as writer:
                for start in range(0, size, BLOCK_ROWS):
                    block_ND = vector_DN[:, start : start + BLOCK_ROWS].T.contiguous().numpy()
                    _check_finite(shard.embeddings, block_ND, np.arange(start, start + len(block_ND)))
                    block_id_N = id_N[first + start : first + start + len(block_ND)]
                    writer.write(pa.table([block_id_N, binary_column(block_ND, "f16")], schema=schema))
                    bar.update(len(block_ND))
            rows[name], first = size, first + size
    return Contents(
        rows=rows,
        counts={"passages": len(id_N)},
        details={
            "dimension": dimension,
            "dtype": "f16",
            "passage_encoder": encoder,
            "passages": passages.fingerprint,
            "shard": 0,
            "num_shards": 1,
        },
    )


def _check_encoder(
    shards: Sequence[Shard], passages: Artifact, model: Model, num_checked: int, min_cosine: float
) -> None:
    """Encode some passages, evenly spread, and compare with the vectors in the files.

    Raises:
        ArtifactError: the median of the cosines is too low.
    """
    if not num_checked:
        return
    lookup, config = PassageLookup(passages.location), model.retriever
    row_N = np.unique(np.linspace(0, lookup.num_passages - 1, min(num_checked, lookup.num_passages)).astype(np.int64))
    stored_ND = _vectors_at(shards, passages.manifest.details["shard_rows"], row_N, model.dimension)
    found = lookup.get(_passage_ids(passages)[row_N])
    texts = [config.format_passage(passage.title, passage.section, passage.text) for passage in found]
    encoder = Encoder.load(model.passage_encoder_folder, config, device=best_device(), dtype=torch.float32)
    made_ND = embed_texts(encoder, texts, max_tokens=config.max_passage_tokens, what="check the vectors")
    length_N = np.linalg.norm(made_ND, axis=1) * np.linalg.norm(stored_ND, axis=1)
    cosine = float(np.median((made_ND * stored_ND).sum(axis=1) / np.maximum(length_N, 1e-12)))
    logger.info("%d passages encoded again: median cosine with the vectors in the files %.4f", len(row_N), cosine)
    if not cosine >= min_cosine:
        raise ArtifactError(
            f"{model.folder}: did not make these vectors: {len(row_N)} passages encoded again have a median cosine of "
            f"{cosine:.3f} with them, expected at least {min_cosine}; name the index's own model, or embed the passages"
        )


def _vectors_at(shards: Sequence[Shard], sizes: Sequence[int], wanted_N: np.ndarray, dimension: int) -> np.ndarray:
    """Vectors (fp32) of some rows, counted over all shards."""
    parts, first = [], 0
    for shard, size in zip(shards, sizes, strict=True):
        inside_N = wanted_N[(wanted_N >= first) & (wanted_N < first + size)] - first
        if inside_N.size:
            vector_DN = read_shard_vectors(shard.embeddings, dimension=dimension, rows=size)
            parts.append(vector_DN[:, torch.from_numpy(inside_N)].T.float().numpy())
            _check_finite(shard.embeddings, parts[-1], inside_N)
        first += size
    return np.concatenate(parts)


def _check_finite(path: Path, vector_ND: np.ndarray, row_N: np.ndarray) -> None:
    if (bad := np.flatnonzero(~np.isfinite(vector_ND).all(axis=1))).size:
        raise ArtifactError(f"{path}: vector {row_N[bad[0]]} holds values that are not finite")


def _passage_ids(passages: Artifact) -> np.ndarray:
    ids = [read_table(place, "passages/1", ["passage_id"]).column(0).to_numpy() for place, _ in passages.tables()]
    return np.concatenate(ids)
