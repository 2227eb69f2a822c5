"""Open an index and search it. The index is bound to the passage encoder that made its vectors."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import torch

from ralm.artifacts.files import Location, is_remote, remove
from ralm.artifacts.manifest import Artifact, open_artifact
from ralm.artifacts.store import Contents, build_artifact
from ralm.artifacts.tables import read_table
from ralm.device import best_device, free_cached
from ralm.distributed import ALONE, World
from ralm.errors import ArtifactError, ConfigError
from ralm.index.approximate import FAISS_FILE
from ralm.index.build import finish_index, open_searcher
from ralm.index.config import IndexSettings
from ralm.index.matrix import BLOCK_ROWS, MATRIX, check_search, create_matrix, open_matrix, to_float32, to_storage
from ralm.index.rows_on_demand import RowsOnDemand, with_rows
from ralm.index.shard import Found, check_split, row_multiple, search_parts

PASSAGE_IDS = "passage_ids.parquet"
REFRESH_VERSION = 1
WHOLE_MATRIX_BYTES = 1 << 28
"""Vectors in an object store up to this size are fetched whole, whatever the kind of the index."""


class Index:
    """The passage vectors of a corpus, open for search, whatever the kind.

    With several processes each holds and searches a range of rows, and every search is one of all of them together.

    Attributes:
        kind: of the index, as in `IndexSettings`.
        fingerprint: of the index artifact.
        num_passages: in the whole index.
        rows: range of the rows that this process holds.
        passage_ids: int64 array: passage id of each of these rows.
        passages_fingerprint: of the `passages` artifact it was made from.
        passage_encoder: fingerprint of the passage encoder that made the vectors.
    """

    def __init__(self, artifact: Artifact, device: torch.device, world: World = ALONE) -> None:
        details = artifact.manifest.details
        self.kind: str = details["kind"]
        self.fingerprint = artifact.fingerprint
        self.passages_fingerprint: str = details["passages"]
        self.passage_encoder: str = details["passage_encoder"]
        check_split(details["kind"], world)
        id_N = read_table(artifact.file(PASSAGE_IDS), "passage_ids/1").column(0).to_numpy()
        self.num_passages = len(id_N)
        self.rows = world.part(self.num_passages, row_multiple(details["kind"]))
        self.passage_ids = id_N if world.size == 1 else id_N[self.rows].copy()
        self._matrix_ND = _open_vectors(artifact, self.num_passages)
        faiss_file = artifact.local(FAISS_FILE) if artifact.has(FAISS_FILE) else None
        self._searcher = open_searcher(
            faiss_file, self._matrix_ND, details, device, id_N=self.passage_ids, rows=self.rows
        )
        self._artifact, self._device, self.world = artifact, device, world

    @property
    def dimension(self) -> int:
        """Embedding size D."""
        return int(self._matrix_ND.shape[1])

    def search(self, question_BD: np.ndarray, k: int) -> Found:
        """The k passages with the largest inner product for each question, as far as the kind finds them.

        With several processes all of them have to call it, with the same k; each gives and gets its own questions.

        Returns:
            Scores, rows of the whole index and passage ids, best first, k different ones for each question; among equal
            scores the lower id comes first.

        Raises:
            ConfigError: k exceeds the number of passages, or the vectors have another size.
        """
        check_search(question_BD, k, self.num_passages, self.dimension)
        if self.world.size == 1:
            return self._search_own(question_BD, k)
        return search_parts(self.world, self._search_own, question_BD, k, len(self.passage_ids))

    def _search_own(self, question_BD: np.ndarray, k: int) -> Found:
        score_BK, row_BK = self._searcher.search(question_BD, k)
        return Found(score_BK, row_BK + self.rows.start, self.passage_ids[row_BK])

    def release(self) -> None:
        """Give the searcher's memory back; this index cannot be searched afterwards, `vectors` still works."""
        del self._searcher
        free_cached(self._device)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Stored vectors of these rows as float32, shape `rows.shape + (D,)`."""
        return to_float32(with_rows(self._matrix_ND, np.asarray(rows))[np.asarray(rows)])

    def with_vectors(self, matrix_ND: np.ndarray, folder: Path, *, passage_encoder: str = "") -> Index:
        """The same passages with new vectors: the refresh inside training.

        Kind and settings stay; what is `auto` is tuned anew. `folder` becomes an index artifact of its own, whole or
        not at all, which `open_index` opens again; what was there before is replaced. This index stays usable.

        Args:
            matrix_ND: a new vector for each row, float16 or float32.
            folder: of the new index.
            passage_encoder: fingerprint of the encoder that made the vectors, where it has one.

        Raises:
            ConfigError: the vectors have another shape than this index's.
            ArtifactError: a vector holds values that are infinite or undefined.
        """
        shape = (self.num_passages, self.dimension)
        if matrix_ND.shape != shape:
            raise ConfigError(f"matrix_ND: expected the shape of the index, {shape}, found {matrix_ND.shape}")
        known = {field.name for field in dataclasses.fields(IndexSettings)}
        config = {name: value for name, value in self._artifact.manifest.config.items() if name in known}
        settings = IndexSettings(**config)

        def build(work: Path) -> Contents:
            shutil.copyfile(self._artifact.local(PASSAGE_IDS), work / PASSAGE_IDS)
            target_ND = create_matrix(work, settings.storage, *shape)
            for start in range(0, shape[0], BLOCK_ROWS):
                part = slice(start, start + BLOCK_ROWS)
                target_ND[part] = to_storage(matrix_ND[part], settings.storage)
            details = finish_index(work, target_ND, settings, self._device)
            return Contents(
                rows={PASSAGE_IDS: shape[0]},
                counts={"passages": shape[0]},
                details={**details, "passages": self.passages_fingerprint, "passage_encoder": passage_encoder},
            )

        work = folder.with_name(f".{folder.name}.unfinished")
        build_artifact(
            work,
            build,
            kind="index",
            version=1,
            config=config,
            inputs={"index": self.fingerprint},
            stage="refresh",
            stage_version=REFRESH_VERSION,
            seed=0,
        )
        remove(folder)
        work.rename(folder)
        return Index(open_artifact(str(folder), "index"), self._device, self.world)


def _open_vectors(artifact: Artifact, num_passages: int) -> np.ndarray | RowsOnDemand:
    """The `matrix.npy` of an index; a large one in an object store is fetched whole only for an exact search."""
    dimension = artifact.manifest.details["dimension"]
    size = next((entry.bytes for entry in artifact.manifest.files if entry.path == MATRIX), 0)
    if is_remote(artifact.base) and artifact.manifest.details["kind"] != "flat" and size > WHOLE_MATRIX_BYTES:
        return RowsOnDemand(artifact.file(MATRIX), num_passages, dimension)
    return open_matrix(artifact.local(MATRIX), num_passages, dimension)


def open_index(
    location: Location, *, passage_encoder: str, device: torch.device | None = None, world: World = ALONE
) -> Index:
    """Open an index for a model.

    Args:
        location: an `index` artifact.
        passage_encoder: fingerprint of the model's passage encoder.
        device: where to search, by default the best there is.
        world: the processes that share it.

    Raises:
        ArtifactError: no such artifact, or its vectors were made by another passage encoder.
        ConfigError: it cannot be split over these processes.
    """
    return Index(check_index(location, passage_encoder=passage_encoder), device or best_device(), world)


def check_index(location: Location, *, passage_encoder: str) -> Artifact:
    """An index artifact for a model, by its manifest alone.

    Raises:
        ArtifactError: no such artifact, or its vectors were made by another passage encoder.
    """
    artifact = open_artifact(location, "index")
    made_by = artifact.manifest.details["passage_encoder"]
    if made_by != passage_encoder:
        raise ArtifactError(
            f"{location}: its vectors were made by passage encoder {made_by}, the model has {passage_encoder}; "
            "embed and index the passages with this model"
        )
    return artifact
