"""Passages by id, read from Parquet on demand: only the row groups that hold the wanted passages are decoded."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ralm.artifacts.files import Location, is_remote
from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.tables import open_parquet
from ralm.errors import ArtifactError

CACHED_ROW_GROUPS = 256
ROWS_AT_ONCE = 64
"""Passages whose row groups are loaded together; less than the cache holds."""
AT_ONCE = 16
"""Files of an object store that are read at a time."""


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
        places = [place for place, _ in artifact.tables()]
        self._read_at_once = AT_ONCE if is_remote(artifact.base) else 1
        with ThreadPoolExecutor(self._read_at_once) as pool:
            opened = list(pool.map(_open_ids, places))
        ids = [ids for _, ids in opened]
        ids_N = np.concatenate(ids) if ids else np.empty(0, np.int64)
        order_N = np.argsort(ids_N, kind="stable")
        self._sorted_N = ids_N[order_N]
        self._order_N = order_N.astype(np.uint32 if len(ids_N) < 2**32 else np.uint64)
        if (twice := np.flatnonzero(self._sorted_N[1:] == self._sorted_N[:-1])).size:
            raise ArtifactError(f"{location}: passage id {self._sorted_N[twice[0]]} occurs more than once")
        self._groups = groups = [(file, group) for file, _ in opened for group in range(file.num_row_groups)]
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
        rows = [int(row) for row in self._order_N[found]]
        parts = (rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE))
        return [passage for part in parts for passage in self._at(part)]

    def _at(self, rows: list[int]) -> list[Passage]:
        groups = [bisect.bisect_right(self._starts, row) - 1 for row in rows]
        self._load(groups)
        passages = []
        for row, group in zip(rows, groups, strict=True):
            table, place = self._cache[group], row - self._starts[group]
            values: dict[str, Any] = {name: table.column(name)[place].as_py() for name in COLUMNS}
            passages.append(Passage(**values))
        return passages

    def _load(self, groups: list[int]) -> None:
        """Have these row groups in the cache; of an object store, those of several files are fetched at once."""
        for group in groups:
            if group in self._cache:
                self._cache.move_to_end(group)
        by_file: dict[pq.ParquetFile, list[int]] = {}
        for group in sorted(set(groups) - set(self._cache)):
            by_file.setdefault(self._groups[group][0], []).append(group)
        if not by_file:
            return
        with ThreadPoolExecutor(min(self._read_at_once, len(by_file))) as pool:
            for missing, tables in zip(by_file.values(), pool.map(self._read, by_file.values()), strict=True):
                self._cache.update(zip(missing, tables, strict=True))
        while len(self._cache) > CACHED_ROW_GROUPS:
            self._cache.popitem(last=False)

    def _read(self, groups: list[int]) -> list[pa.Table]:
        return [file.read_row_group(number, columns=COLUMNS) for file, number in (self._groups[g] for g in groups)]


def _open_ids(place: Location) -> tuple[pq.ParquetFile, np.ndarray]:
    file = open_parquet(place, "passages/1")
    return file, file.read(columns=["passage_id"]).column(0).to_numpy()
