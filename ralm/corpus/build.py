"""Documents -> the part files of a `passages` artifact."""

from __future__ import annotations

import functools
import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ralm.artifacts.schemas import PASSAGES
from ralm.artifacts.tables import TableWriter
from ralm.corpus.cleaned import CleanedPage, take_rows
from ralm.corpus.parallel import map_ordered
from ralm.corpus.passages import INFOBOX, TEXT, Document, SplitLimits, cut_documents, passage_id
from ralm.errors import DataError
from ralm.log import progress

PART_ROWS = 100_000


class Batch(Protocol):
    """Some documents, cheap to send to another process."""

    def documents(self) -> Iterator[Document | list[CleanedPage]]:
        """The documents, made where they are cut, and between them pages whose passages are there already."""


@dataclass(frozen=True)
class DocumentBatch:
    """Documents that are plain text already."""

    items: list[Document]

    def documents(self) -> Iterator[Document | list[CleanedPage]]:
        """The documents."""
        return iter(self.items)


def cut_batch(batch: Batch, limits: SplitLimits) -> pa.Table:
    """Passages of a batch as rows of `passages/1`."""
    tables = []
    for is_cut, items in itertools.groupby(batch.documents(), lambda item: isinstance(item, list)):
        if is_cut:
            tables += [take_rows(pages) for pages in items if isinstance(pages, list)]
        else:
            documents = (document for document in items if isinstance(document, Document))
            tables.append(cut_documents(documents, limits).table())
    if len(tables) == 1:  # as from a dump of which nothing is known
        return tables[0].combine_chunks()
    return pa.concat_tables(tables).combine_chunks() if tables else PASSAGES.empty_table()


def write_passages(
    folder: Path,
    batches: Iterator[Batch],
    limits: SplitLimits,
    *,
    workers: int,
    source: str,
    max_passages: int | None = None,
) -> tuple[dict[str, int], Counter[str]]:
    """Cut and write all passages: `part-00000.parquet` and so on, `PART_ROWS` rows each.

    The files are byte-identical whatever the number of workers.

    Args:
        folder: where the parts go.
        batches: the corpus, in order.
        limits: lengths of passages.
        workers: processes that clean and cut.
        source: how the corpus is named in messages.
        max_passages: stop after so many, None for all.

    Returns:
        Rows of each file, and counts: passages, by kind, and how many got a new id because another had the same.

    Raises:
        DataError: no passage came out.
    """
    rows: dict[str, int] = {}
    counts: Counter[str] = Counter()
    ids: list[np.ndarray] = []
    left = sys.maxsize if max_passages is None else max_passages
    writer: TableWriter | None = None
    try:
        with progress(total=None, what="read corpus", unit="passages") as bar:
            for table in map_ordered(functools.partial(cut_batch, limits=limits), batches, workers):
                table = table.slice(0, left)
                left -= table.num_rows
                ids += map(np.from_dlpack, table.column("passage_id").chunks)  # `to_numpy` would import pandas
                counts.update(table.column("kind").to_pylist())
                bar.update(table.num_rows)
                start = 0
                while start < table.num_rows:
                    if writer is None:
                        name = f"part-{len(rows):05d}.parquet"
                        rows[name] = 0
                        writer = TableWriter(folder / name, PASSAGES)
                    part = table.slice(start, PART_ROWS - writer.num_rows)
                    writer.write(part)
                    rows[name] = writer.num_rows
                    start += part.num_rows
                    if writer.num_rows == PART_ROWS:
                        writer.close()
                        writer = None
                if not left:
                    break
    finally:
        if writer is not None:
            writer.close()
    if not rows:
        raise DataError(f"{source}: the corpus is empty: no passage with text was found in it")
    counts = Counter(passages=sum(rows.values()), text_passages=counts[TEXT], infobox_passages=counts[INFOBOX])
    counts["repeated_passages"] = _separate_equal_ids(folder, list(rows), np.concatenate(ids))
    return rows, counts


def _separate_equal_ids(folder: Path, names: list[str], ids: np.ndarray) -> int:
    """Give passages whose id came before (same source id, section and text) the next occurrence; returns how many."""
    order = np.argsort(ids, kind="stable")
    is_repeated = np.zeros(len(ids), dtype=bool)
    is_repeated[order[1:]] = ids[order[1:]] == ids[order[:-1]]
    if not is_repeated.any():
        return 0
    taken = set(ids[is_repeated].tolist())
    occurrences: Counter[int] = Counter()
    for part, name in enumerate(names):
        start = part * PART_ROWS
        places = np.flatnonzero(is_repeated[start : start + PART_ROWS])
        if len(places):
            _rewrite_ids(folder / name, places, occurrences, taken)
    return int(is_repeated.sum())


def _rewrite_ids(path: Path, places: np.ndarray, occurrences: Counter[int], taken: set[int]) -> None:
    table = pq.read_table(path, schema=PASSAGES)
    ids = table.column("passage_id").to_numpy().copy()
    for place in places.tolist():
        row = table.slice(place, 1).to_pylist()[0]
        before = int(ids[place])
        while ids[place] in taken:
            occurrences[before] += 1
            ids[place] = passage_id(row["source_id"], row["section"], row["text"], occurrences[before])
        taken.add(int(ids[place]))
    column = PASSAGES.get_field_index("passage_id")
    table = table.set_column(column, PASSAGES.field(column), pa.array(ids))
    with TableWriter(path, PASSAGES) as writer:
        writer.write(table)
