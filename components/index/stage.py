"""embeddings -> index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from components.index.config import IndexConfig
from ralm.artifacts.files import Location, exists, file_system, is_folder, is_remote, join, local_path
from ralm.artifacts.manifest import MANIFEST, Artifact, Manifest, open_artifact
from ralm.artifacts.schemas import PASSAGE_IDS as PASSAGE_IDS_SCHEMA
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import write_table
from ralm.device import best_device
from ralm.errors import ArtifactError, DataError
from ralm.index.build import finish_index
from ralm.index.matrix import create_matrix, to_storage
from ralm.index.search import PASSAGE_IDS
from ralm.retriever.vectors import iterate_vectors

STAGE_VERSION = 2


def index(
    *,
    embeddings: Location | list[Location],
    index: Location,
    config: IndexConfig = IndexConfig(),  # noqa: B008
) -> Manifest:
    """Build a search index from all shards of passage embeddings.

    Args:
        embeddings: An embeddings artifact, a folder with one artifact per shard, or a list of these.
        index: Output folder of the index.
        config: Kind, number format and options.

    Returns:
        The index's manifest; `details` hold kind, metric, dimension, options as they were resolved, resident bytes
        per vector, encoder fingerprint and recall@k against brute force.

    Raises:
        ArtifactError: a shard is missing, occurs twice, or belongs to other passages or another encoder.
        ConfigError: the corpus is too small for the kind, or an option does not fit it.
        DataError: there are no vectors at all.
    """
    places = [embeddings] if isinstance(embeddings, str) else embeddings
    shards = _check_shards([shard for place in places for shard in _open_shards(place)])
    return produce(
        index,
        kind="index",
        stage="index",
        stage_version=STAGE_VERSION,
        inputs={f"embeddings/{number}": shard.fingerprint for number, shard in enumerate(shards)},
        config=config,
        build=lambda folder: _build(folder, shards, config),
    )


def _open_shards(place: Location) -> list[Artifact]:
    if exists(join(place, MANIFEST)) or not is_folder(place):
        return [open_artifact(place, "embeddings")]
    if is_remote(place):
        system, path = file_system(place)
        folders = sorted(str(system.unstrip_protocol(entry)) for entry in system.ls(path, detail=False))
    else:
        folders = sorted(str(entry) for entry in local_path(place).iterdir() if entry.is_dir())
    found = [open_artifact(folder, "embeddings") for folder in folders if exists(join(folder, MANIFEST))]
    if not found:
        raise ArtifactError(f"{place}: no embeddings artifact in it; run `ralm embed` first")
    return found


def _check_shards(shards: Sequence[Artifact]) -> list[Artifact]:
    """All shards of one embedding run, in order."""
    first = shards[0].manifest.details
    for shard in shards:
        for name in ("passages", "passage_encoder", "dimension", "dtype", "num_shards"):
            found = shard.manifest.details[name]
            if found != first[name]:
                raise ArtifactError(f"{shard.location}: {name} is {found}, but {first[name]} in {shards[0].location}")
    numbers = [shard.manifest.details["shard"] for shard in shards]
    if sorted(numbers) != list(range(first["num_shards"])):
        raise ArtifactError(
            f"{shards[0].location}: expected shards 0 to {first['num_shards'] - 1} of the embeddings once each, "
            f"found {sorted(numbers)}"
        )
    return sorted(shards, key=lambda shard: shard.manifest.details["shard"])


def _build(folder: Path, shards: Sequence[Artifact], config: IndexConfig) -> Contents:
    source = shards[0].manifest.details
    num_passages, dimension = sum(shard.manifest.rows for shard in shards), int(source["dimension"])
    if not num_passages:
        raise DataError(f"{shards[0].location}: no vectors to index; the corpus is empty")
    matrix_ND = create_matrix(folder, config.storage, num_passages, dimension)
    ids_N, row = np.empty(num_passages, np.int64), 0
    for shard in shards:
        for place, _ in shard.tables():
            for ids, vectors in iterate_vectors(place):
                rows = slice(row, row + len(ids))
                try:
                    matrix_ND[rows], ids_N[rows] = to_storage(vectors, config.storage), ids
                except ArtifactError as error:
                    raise ArtifactError(f"{place}: {error}") from error
                row = rows.stop
    write_table(folder / PASSAGE_IDS, [{"passage_id": value} for value in ids_N.tolist()], PASSAGE_IDS_SCHEMA)
    return Contents(
        rows={PASSAGE_IDS: num_passages},
        counts={"passages": num_passages, "shards": len(shards)},
        details={
            **finish_index(folder, matrix_ND, config, best_device()),
            "passages": source["passages"],
            "passage_encoder": source["passage_encoder"],
        },
    )
