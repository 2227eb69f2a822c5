"""embeddings -> index."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from components.index.config import IndexConfig
from ralm.artifacts.files import Location, exists, is_folder, is_remote, join, local_path
from ralm.artifacts.manifest import MANIFEST, Artifact, Manifest, open_artifact
from ralm.artifacts.remote import list_folder
from ralm.artifacts.schemas import PASSAGE_IDS as PASSAGE_IDS_SCHEMA
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import write_table
from ralm.device import best_device
from ralm.errors import ArtifactError, ConfigError, DataError
from ralm.index.build import finish_index
from ralm.index.kept_codes import UPDATABLE
from ralm.index.matrix import create_matrix, to_storage
from ralm.index.search import PASSAGE_IDS
from ralm.index.update import PreviousError, open_previous, update_index
from ralm.retriever.vectors import iterate_vectors

STAGE_VERSION = 3
logger = logging.getLogger(__name__)


def index(
    *,
    embeddings: Location | list[Location],
    index: Location,
    previous: Location = "",
    config: IndexConfig = IndexConfig(),  # noqa: B008
) -> Manifest:
    """Build a search index from all shards of passage embeddings.

    Of an earlier index the codes are taken over where passage and vector are unchanged, for the kinds where that helps
    (`ralm.index.kept_codes.UPDATABLE`); the others are built anew and do not look at it. It is only read.

    Args:
        embeddings: An embeddings artifact, a folder with one artifact per shard, or a list of these.
        index: Output folder of the index.
        previous: An earlier version of the index, empty: none. One that cannot be read or does not fit is no error.
        config: Kind, number format and options.

    Returns:
        The index's manifest; `details` hold kind, metric, dimension, options as they were resolved, resident bytes
        per vector, encoder fingerprint and recall@k against brute force; with `previous` also whether it was updated
        or why not (see `ralm.index.update.Update`).

    Raises:
        ArtifactError: a shard is missing, occurs twice, or belongs to other passages or another encoder.
        ConfigError: the corpus is too small for the kind, or an option does not fit it; previous is the output folder.
        DataError: there are no vectors at all.
    """
    places = [embeddings] if isinstance(embeddings, str) else embeddings
    shards = _check_shards([shard for place in places for shard in _open_shards(place)])
    if previous and _is_same_place(previous, index):
        raise ConfigError(f"previous: expected another folder than the output, found {previous} for both")
    if previous and config.kind in UPDATABLE:
        try:
            return _produce(index, shards, config, open_previous(previous))
        except PreviousError as error:
            logger.warning("index: built anew: %s", error)
    return _produce(index, shards, config, None)


def _produce(index: Location, shards: Sequence[Artifact], config: IndexConfig, previous: Artifact | None) -> Manifest:
    inputs = {f"embeddings/{number}": shard.fingerprint for number, shard in enumerate(shards)}
    return produce(
        index,
        kind="index",
        stage="index",
        stage_version=STAGE_VERSION,
        inputs=inputs if previous is None else {**inputs, "previous": previous.fingerprint},
        config=config.without_update if previous is None else config,
        build=lambda folder: _build(folder, shards, config, previous),
    )


def _is_same_place(one: Location, other: Location) -> bool:
    if is_remote(one) or is_remote(other):
        return one.rstrip("/") == other.rstrip("/")
    return local_path(one).resolve() == local_path(other).resolve()


def _open_shards(place: Location) -> list[Artifact]:
    if exists(join(place, MANIFEST)) or not is_folder(place):
        return [open_artifact(place, "embeddings")]
    if is_remote(place):
        folders = list_folder(place)
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
        precisions = [part.manifest.config.get("precision", "unknown") for part in (shard, shards[0])]
        if precisions[0] != precisions[1]:
            raise ArtifactError(
                f"{shard.location}: encoded in {precisions[0]}, but in {precisions[1]} {shards[0].location}"
            )
    numbers = [shard.manifest.details["shard"] for shard in shards]
    if sorted(numbers) != list(range(first["num_shards"])):
        raise ArtifactError(
            f"{shards[0].location}: expected shards 0 to {first['num_shards'] - 1} of the embeddings once each, "
            f"found {sorted(numbers)}"
        )
    return sorted(shards, key=lambda shard: shard.manifest.details["shard"])


def _build(folder: Path, shards: Sequence[Artifact], config: IndexConfig, previous: Artifact | None) -> Contents:
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
    write_table(folder / PASSAGE_IDS, pa.table({"passage_id": ids_N}), PASSAGE_IDS_SCHEMA)
    of_update: dict[str, int] = {}
    if previous is None:
        details = finish_index(folder, matrix_ND, config, best_device())
    else:
        encoder = source["passage_encoder"]
        update = update_index(folder, matrix_ND, ids_N, previous, config, encoder, best_device())
        details, of_update = update.details, update.counts
    return Contents(
        rows={PASSAGE_IDS: num_passages},
        counts={"passages": num_passages, "shards": len(shards), **of_update},
        details={
            **details,
            **{name: source[name] for name in ("passages", "passage_encoder")},
            "precision": shards[0].manifest.config.get("precision", "unknown"),
        },
    )
