"""A new version of an index out of an earlier one, or the reason why it is built anew.

Shapes: M passages of the earlier index, N passages of the new one, D values in a vector.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ralm.artifacts.files import Location, sha256_file
from ralm.artifacts.manifest import Artifact, open_artifact
from ralm.artifacts.tables import read_table
from ralm.errors import ArtifactError, DataError
from ralm.index.approximate import CPU, FAISS_FILE, resolve_layout
from ralm.index.build import finish_index, read_layout, write_faiss
from ralm.index.config import UpdateSettings
from ralm.index.drift import growth, measure_fit
from ralm.index.kept_codes import match_rows, update_faiss
from ralm.index.matrix import MATRIX, open_matrix
from ralm.index.search import PASSAGE_IDS

logger = logging.getLogger(__name__)


class PreviousError(ArtifactError):
    """The earlier index cannot be read; what is made of the same vectors without it is as good."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """What came of an update."""

    details: dict[str, Any]
    """Facts for the manifest, as `finish_index` gives them. `built`: "updated", or "anew: " and the reason. For an
    update also `training`: number of passages and fit (`ralm.index.drift`) when the index was last trained, carried
    from version to version; and `since_training`: passages added (one that changed twice counts twice), their share,
    and the growth of each measure of the fit."""
    counts: dict[str, int]
    """For an update: vectors that were kept, added (new or changed) and removed (gone or changed)."""


def open_previous(location: Location) -> Artifact:
    """An earlier version of an index.

    Raises:
        PreviousError: no index artifact there, unfinished, or damaged.
    """
    try:
        return open_artifact(location, "index")
    except (ArtifactError, DataError) as error:
        raise PreviousError(f"previous index: {error}") from error


def update_index(
    folder: Path,
    matrix_ND: np.ndarray,
    id_N: np.ndarray,
    previous: Artifact,
    settings: UpdateSettings,
    passage_encoder: str,
    device: torch.device = CPU,
) -> Update:
    """Write what the kind needs beside `matrix.npy`, with the trained part and the codes of an earlier index.

    It is built anew where the earlier one does not fit the settings or the vectors, where the corpus has moved away
    from what it was trained for, and where it misses a recall target that it reached before.

    Args:
        folder: of the new index.
        matrix_ND: its `matrix.npy`, filled.
        id_N: its passage ids.
        previous: the earlier `index` artifact.
        settings: kind and options of the new index; the kind is one of `UPDATABLE`.
        passage_encoder: fingerprint of the encoder that made the vectors.
        device: where to build anew. Updates are made on the CPU.

    Raises:
        PreviousError: files of the earlier index are damaged, or faiss cannot read them.
        ConfigError: the corpus is too small for the kind, or an option does not fit it.
    """
    resolve_layout(settings, *matrix_ND.shape)  # refuses what a full build refuses
    result: Update | str = _misfit(previous.manifest.details, settings, matrix_ND.shape, passage_encoder)
    if not result:
        if device.type == "cuda":
            logger.info("index: an update is made on the CPU")
        result = _update(folder, matrix_ND, id_N, previous, settings)
    if isinstance(result, Update):
        return result
    logger.info("index: built anew: %s", result)
    return Update(details={**finish_index(folder, matrix_ND, settings, device), "built": f"anew: {result}"}, counts={})


def _misfit(known: Mapping[str, Any], settings: UpdateSettings, shape: tuple[int, ...], passage_encoder: str) -> str:
    """Why an index with these facts cannot be updated; empty if it can."""
    if settings.max_drift == 0:
        return "max_drift is 0"
    wanted = {
        "kind": settings.kind,
        "storage": settings.storage,
        "dimension": shape[1],
        "passage_encoder": passage_encoder,
    }
    for name, value in wanted.items():
        if known.get(name) != value:
            return f"{name} is {value}, of the previous index {known.get(name)}"
    options = known["options"]
    for name in ("nlist", "code_size"):
        value = getattr(settings, name)
        if value not in ("auto", options.get(name)):
            return f"{name} is {value}, of the previous index {options.get(name)}"
    if options.get("nlist", 0) > shape[0]:
        return f"{shape[0]} passages are fewer than the {options['nlist']} lists of the previous index"
    return ""


def _update(
    folder: Path, matrix_ND: np.ndarray, id_N: np.ndarray, previous: Artifact, settings: UpdateSettings
) -> Update | str:
    """The update, or the reason for building anew."""
    known, kind, num_passages = previous.manifest.details, settings.kind, len(matrix_ND)
    with _reading(previous):
        path, old_id_M, old_matrix_MD = _open(previous, matrix_ND)
    old_row_N, new_row_M = match_rows(old_id_M, old_matrix_MD, id_N, matrix_ND)
    num_added = int(np.count_nonzero(old_row_N < 0))
    all_added = min(num_passages, known.get("since_training", {}).get("added_passages", 0) + num_added)
    if all_added > settings.max_added * num_passages:
        return f"{all_added} of {num_passages} vectors were added since the training, max_added is {settings.max_added}"
    with _reading(previous):
        old, index = update_faiss(path, kind, old_row_N, new_row_M, matrix_ND)
    training = known.get("training") or {"passages": len(old_id_M), **measure_fit(old, kind, old_matrix_MD)}
    grown = growth(measure_fit(index, kind, matrix_ND), training)
    for name, share in grown.items():
        if share > settings.max_drift:
            return f"{name} grew by {share} since the training, max_drift is {settings.max_drift}"
    facts = write_faiss(folder, index, matrix_ND, read_layout(known), settings)
    if known["recall_target_reached"] and not facts["recall_target_reached"]:
        return f"the update misses recall_target {settings.recall_target}, which the previous index reached"
    num_kept = num_passages - num_added
    since = {"added_passages": all_added, "added_share": round(all_added / num_passages, 4), **grown}
    return Update(
        details={**facts, "built": "updated", "training": training, "since_training": since},
        counts={"kept": num_kept, "added": num_added, "removed": len(old_id_M) - num_kept},
    )


def _open(previous: Artifact, matrix_ND: np.ndarray) -> tuple[Path, np.ndarray, np.ndarray]:
    """Files of the earlier index: its faiss file, passage ids, and mapped vectors.

    Codes and ids are taken over unseen, so these files have to be what was written. A damaged vector of `matrix.npy`
    only counts as changed.
    """
    for entry in previous.manifest.files:
        if entry.path in (FAISS_FILE, PASSAGE_IDS) and sha256_file(previous.local(entry.path)) != entry.sha256:
            raise ArtifactError(f"damaged: {entry.path} has another checksum than its manifest says")
    old_id_M = read_table(str(previous.local(PASSAGE_IDS)), "passage_ids/1").column(0).to_numpy()
    old_matrix_MD = open_matrix(previous.local(MATRIX), len(old_id_M), matrix_ND.shape[1])
    if old_matrix_MD.dtype != matrix_ND.dtype:
        raise ArtifactError(f"damaged: {MATRIX} holds {old_matrix_MD.dtype}, expected {matrix_ND.dtype}")
    return previous.local(FAISS_FILE), old_id_M, old_matrix_MD


@contextlib.contextmanager
def _reading(previous: Artifact) -> Iterator[None]:
    try:
        yield
    except (ArtifactError, DataError) as error:
        raise PreviousError(f"previous index {previous.location}: {error}") from error
