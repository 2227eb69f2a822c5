"""Open an index and search it. The index is bound to the passage encoder that made its vectors."""

from __future__ import annotations

import numpy as np
import torch

from ralm.artifacts.files import Location
from ralm.artifacts.manifest import Artifact, open_artifact
from ralm.artifacts.tables import read_table
from ralm.device import best_device
from ralm.errors import ArtifactError
from ralm.index.exact import ExactSearcher

MATRIX = "matrix.npy"
PASSAGE_IDS = "passage_ids.parquet"


class Index:
    """The passage vectors of a corpus, open for search.

    Attributes:
        fingerprint: of the index artifact.
        passage_ids: int64 array (N,): row -> passage id.
        passages_fingerprint: of the `passages` artifact it was made from.
    """

    def __init__(self, artifact: Artifact, device: torch.device) -> None:
        self.fingerprint = artifact.fingerprint
        self.passages_fingerprint: str = artifact.manifest.details["passages"]
        self.passage_encoder: str = artifact.manifest.details["passage_encoder"]
        self.passage_ids = read_table(artifact.file(PASSAGE_IDS), "passage_ids/1").column(0).to_numpy()
        self._matrix_ND = np.load(artifact.local(MATRIX), mmap_mode="r", allow_pickle=False)
        if self._matrix_ND.shape != (len(self.passage_ids), artifact.manifest.details["dimension"]):
            raise ArtifactError(
                f"{artifact.location}: {MATRIX} has shape {self._matrix_ND.shape}, expected "
                f"{(len(self.passage_ids), artifact.manifest.details['dimension'])}"
            )
        self._searcher = ExactSearcher(self._matrix_ND, device)

    @property
    def num_passages(self) -> int:
        """Passages in the index."""
        return len(self.passage_ids)

    @property
    def dimension(self) -> int:
        """Embedding size D."""
        return int(self._matrix_ND.shape[1])

    def search(self, question_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k passages with the largest inner product for each question.

        Returns:
            (score_BK float32, row_BK int64), best first; `passage_ids[row_BK]` are their ids.

        Raises:
            ConfigError: k exceeds the number of passages, or the vectors have another size.
        """
        return self._searcher.search(question_BD, k)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Stored vectors of these rows as float32, shape `rows.shape + (D,)`."""
        return np.asarray(self._matrix_ND[np.asarray(rows)], dtype=np.float32)


def open_index(location: Location, *, passage_encoder: str, device: torch.device | None = None) -> Index:
    """Open an index for a model.

    Args:
        location: an `index` artifact.
        passage_encoder: fingerprint of the model's passage encoder.
        device: where to search, by default the best there is.

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
    return Index(artifact, device or best_device())
