"""Vectors of an earlier index: a passage whose text was encoded before by the same encoder is not encoded again.

The key is the passage's `content_hash`: a hash of all that the encoder's text is made of (title, section, text), while
the encoder's fingerprint covers how it is made of it (format, tokenizer, length, pooling, weights). A renamed page is
therefore encoded again; one that moved to another id is not.

Shapes: N passages, D values in a vector.
"""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa

from ralm.artifacts.files import Location
from ralm.artifacts.manifest import Artifact, open_artifact
from ralm.artifacts.tables import iterate_rows, read_table
from ralm.corpus.content import ContentRows, hash_keys
from ralm.errors import ArtifactError
from ralm.index.matrix import MATRIX, open_matrix
from ralm.index.search import PASSAGE_IDS

logger = logging.getLogger(__name__)


class EncodedPassages:
    """The vectors of an index by the content hash of their passages; 20 bytes a passage are held in memory.

    Args:
        index: the index artifact.
        passages: the passages it was made from, in the same order.

    Raises:
        ArtifactError: damaged, or not of these passages.
    """

    def __init__(self, index: Artifact, passages: Artifact) -> None:
        self.fingerprint = index.fingerprint
        details = index.manifest.details
        ids = read_table(index.file(PASSAGE_IDS), "passage_ids/1").column(0)
        self._matrix_ND = open_matrix(index.local(MATRIX), len(ids), int(details["dimension"]))
        differs = ArtifactError(f"{index.location}: its rows are not those of {passages.location}")
        if passages.manifest.rows != len(ids):
            raise differs
        key_N2 = np.empty((len(ids), 2), np.uint64)
        start = 0
        for table in iterate_rows(passages.tables(), "passages/1", columns=["passage_id", "content_hash"]):
            stop = start + table.num_rows
            if not table.column("passage_id").equals(ids.slice(start, table.num_rows)):
                raise differs
            key_N2[start:stop] = hash_keys(table.column("content_hash"), passages.location)
            start = stop
        self._rows = ContentRows(key_N2)

    @property
    def dimension(self) -> int:
        """D."""
        return int(self._matrix_ND.shape[1])

    def find(self, content_hash: pa.ChunkedArray) -> np.ndarray:
        """The row of the index for each passage, -1 where its text is new: int64 [N]."""
        return self._rows.find(hash_keys(content_hash, "passages"))

    def vectors(self, row_N: np.ndarray) -> np.ndarray:
        """The vectors of these rows [N, D], in the number format of the index."""
        return np.asarray(self._matrix_ND[row_N])


def open_encoded(
    index: Location, passages: Location, *, passage_encoder: str, dtype: str, precision: str
) -> EncodedPassages | None:
    """The vectors of an earlier index if they can stand for those of this run; else None, and the log says why.

    Args:
        index: an index artifact.
        passages: the passages it was made from.
        passage_encoder: fingerprint of this run's encoder.
        dtype: number format of this run's vectors.
        precision: number format that they are computed in.

    Raises:
        ArtifactError: the index is not of these passages.
    """
    opened, source = open_artifact(index, "index"), open_artifact(passages, "passages")
    details = opened.manifest.details
    if details["passages"] != source.fingerprint:
        raise ArtifactError(
            f"{index}: made from passages {details['passages']}, but {passages} is {source.fingerprint}"
        )
    facts = {
        "passage encoder": (details["passage_encoder"], passage_encoder),
        "number format": (details["storage"], dtype),
        "precision": (details.get("precision", "unknown"), precision),
    }
    for name, (found, expected) in facts.items():
        if found != expected:
            logger.warning("%s: its %s is %s, here it is %s; every passage is encoded", index, name, found, expected)
            return None
    return EncodedPassages(opened, source)
