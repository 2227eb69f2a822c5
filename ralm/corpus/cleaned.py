"""Pages of an earlier `passages` artifact: a page whose revision is unchanged is not cleaned and cut again.

The text of a page depends on its wikitext, on the namespaces of its wiki and on the settings of the download stage, so
its rows can be taken over where all of these are the same; the file that comes out is the same to the byte.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ralm.artifacts.files import Location
from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.schemas import PASSAGES
from ralm.artifacts.tables import iterate_rows, read_table
from ralm.corpus.site import Site


@dataclass(frozen=True)
class CleanedPage:
    """A page whose passages are rows of an earlier artifact."""

    location: Location
    fingerprint: str
    """Of the artifact; another may take its place at the location."""
    start: int
    stop: int


class CleanedPages:
    """The pages of a `passages` artifact by page id, revision id and title.

    About 30 bytes a page are held, and the titles.

    Args:
        location: of the artifact.

    Raises:
        ArtifactError: no such artifact.
    """

    def __init__(self, location: Location) -> None:
        artifact = open_artifact(location, "passages")
        self.location, self.fingerprint = artifact.base, artifact.fingerprint
        self._site = artifact.manifest.details.get("site", "")
        places = [place for place, _ in artifact.tables()]
        table = read_table(places, "passages/1", ["page_id", "revision_id", "title"])
        page_N, revision_N = (table.column(name).fill_null(-1).to_numpy() for name in ("page_id", "revision_id"))
        first = np.flatnonzero((np.diff(page_N, prepend=-2) != 0) | (np.diff(revision_N, prepend=-2) != 0))
        order = np.argsort(page_N[first], kind="stable")
        self._start, self._page_id = first[order], page_N[first][order]
        self._stop = np.append(first[1:], len(page_N))[order]
        self._revision_id = revision_N[first][order]
        once = np.diff(self._page_id, prepend=-2, append=-2) != 0
        self._is_whole = once[:-1] & once[1:] & (self._revision_id >= 0)
        """A page in several places, as in a folder of dumps, is not told apart."""
        self._titles = table.column("title").take(pa.array(self._start)).combine_chunks()
        self._is_taken = np.zeros(len(first), dtype=bool)

    @property
    def num_found(self) -> int:
        """Pages that did not change, as far as they were asked for."""
        return int(self._is_taken.sum())

    def is_of(self, site: Site) -> bool:
        """True if the pages were cleaned with the namespaces of this wiki."""
        return bool(self._site == site.digest)

    def find(self, page_id: int, revision_id: int, title: str) -> CleanedPage | None:
        """The rows of a page in this revision and with this title, if there are any.

        Of several calls for a page, as for a history dump, the last one counts.
        """
        place = int(np.searchsorted(self._page_id, page_id))
        if place == len(self._page_id) or self._page_id[place] != page_id or not self._is_whole[place]:
            return None
        is_same = bool(self._revision_id[place] == revision_id and self._titles[place].as_py() == title)
        self._is_taken[place] = is_same
        if not is_same:
            return None
        return CleanedPage(self.location, self.fingerprint, int(self._start[place]), int(self._stop[place]))


def take_rows(pages: list[CleanedPage]) -> pa.Table:
    """The passages of pages of one artifact, page after page."""
    reader = _reader(pages[0].location, pages[0].fingerprint)
    return pa.concat_tables([reader.rows(page.start, page.stop) for page in pages])


@functools.lru_cache(maxsize=1)
def _reader(location: Location, fingerprint: str) -> _RowReader:
    return _RowReader(location)  # the fingerprint is only a part of the cache's key


class _RowReader:
    """Rows of an artifact; a dump has its pages in the same order as the one before, so one row group is kept."""

    def __init__(self, location: Location) -> None:
        self._files = open_artifact(location, "passages").tables()
        self._start, self._stop = 0, 0
        self._table = PASSAGES.empty_table()

    def rows(self, start: int, stop: int) -> pa.Table:
        """Rows `start` to `stop`."""
        if not self._start <= start <= stop <= self._stop:
            tables = list(iterate_rows(self._files, "passages/1", start=start, stop=max(stop, start + READ_AHEAD)))
            self._table = pa.concat_tables(tables)
            self._start, self._stop = start, start + self._table.num_rows
        return self._table.slice(start - self._start, stop - start)


READ_AHEAD = 4096
"""Rows that are read at a time."""
