"""Passages by id, read from Parquet on demand: only the row groups that hold the wanted passages are decoded."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ralm.artifacts.files import Location
from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.tables import open_parquet, read_table
from ralm.errors import ArtifactError

CACHED_ROW_GROUPS = 256


@dataclass(frozen=True)
class Passage:
    """One passage as a reader sees it."""

    passage_id: int
    source_id: str
    page_id: int | None
    revision_id: int | None
    title: str
    section: str
    text: str
    kind: str
    position: int


COLUMNS = list(Passage.__dataclass_fields__)


class PassageLookup:
    """The passages of an artifact by their id.

    Ids are held in memory (12 bytes a passage), texts are read by row group and the last 256 groups are kept
    (about a million passages at the default 4,096 rows).

    Args:
        location: a `passages` artifact.

    Raises:
        ArtifactError: no such artifact, or an id occurs twice.
    """

    def __init__(self, location: Location) -> None:
        artifact = open_artifact(location, "passages")
        self.location, self.fingerprint = location, artifact.fingerprint
        tables = artifact.tables()
        ids = [read_table(place, "passages/1", ["passage_id"]).column(0).to_numpy() for place, _ in tables]
        ids_N = np.concatenate(ids) if ids else np.empty(0, np.int64)
        order_N = np.argsort(ids_N, kind="stable")
        self._sorted_N = ids_N[order_N]
        self._order_N = order_N.astype(np.uint32 if len(ids_N) < 2**32 else np.uint64)
        if (twice := np.flatnonzero(self._sorted_N[1:] == self._sorted_N[:-1])).size:
            raise ArtifactError(f"{location}: passage id {self._sorted_N[twice[0]]} occurs more than once")
        self._files: list[pq.ParquetFile] = [open_parquet(place, "passages/1") for place, _ in tables]
        groups = [(file, group) for file in self._files for group in range(file.num_row_groups)]
        self._groups = groups
        self._starts = [0, *accumulate(file.metadata.row_group(group).num_rows for file, group in groups)]
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()

    @property
    def num_passages(self) -> int:
        """Number of passages in the artifact."""
        return len(self._sorted_N)

    def get(self, ids: Sequence[int] | np.ndarray) -> list[Passage]:
        """The passages with these ids, in this order.

        Raises:
            ArtifactError: an id is not in the artifact.
        """
        wanted = np.asarray(ids, dtype=np.int64).reshape(-1)
        places = np.searchsorted(self._sorted_N, wanted)
        found = np.minimum(places, max(self.num_passages - 1, 0))
        if wanted.size and (not self.num_passages or (self._sorted_N[found] != wanted).any()):
            missing = wanted if not self.num_passages else wanted[self._sorted_N[found] != wanted]
            raise ArtifactError(f"{self.location}: no passage with id {missing[0]}; the index is of another corpus")
        return [self._at(int(row)) for row in self._order_N[found]]

    def _at(self, row: int) -> Passage:
        group = bisect.bisect_right(self._starts, row) - 1
        table = self._cache.get(group)
        if table is None:
            file, number = self._groups[group]
            table = self._cache[group] = file.read_row_group(number, columns=COLUMNS)
            if len(self._cache) > CACHED_ROW_GROUPS:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(group)
        values: dict[str, Any] = {name: table.column(name)[row - self._starts[group]].as_py() for name in COLUMNS}
        return Passage(**values)
