"""Parquet tables with a declared schema: writers refuse what does not match, readers refuse another version.

Local files are mapped into memory; of a file in an object store only what is read is fetched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from ralm.artifacts.files import Location, is_remote, local_path
from ralm.artifacts.range_file import RangeFile
from ralm.artifacts.schemas import schema_name
from ralm.errors import ArtifactError, DataError

TEXT_ROW_GROUP_ROWS = 4096
VECTOR_ROW_GROUP_ROWS = 65536
BYTES_AT_ONCE = 1 << 26
"""Of a remote table that is read whole so much is fetched at a time."""

Rows: TypeAlias = "pa.Table | pa.RecordBatch | Iterable[Mapping[str, Any]]"


def to_table(rows: Rows, schema: pa.Schema) -> pa.Table:
    """Rows as a table of exactly this schema.

    Raises:
        ArtifactError: a column is missing, unknown, of another type, or null where it may not be.
    """
    try:
        if isinstance(rows, pa.RecordBatch):
            rows = pa.Table.from_batches([rows])
        if not isinstance(rows, pa.Table):
            rows = pa.Table.from_pylist(list(rows), schema=schema)
        if set(rows.column_names) != set(schema.names):
            missing, unknown = set(schema.names) - set(rows.column_names), set(rows.column_names) - set(schema.names)
            raise ArtifactError(f"{schema_name(schema)}: missing columns {sorted(missing)}, unknown {sorted(unknown)}")
        table = rows.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError) as error:
        raise ArtifactError(f"{schema_name(schema)}: rows do not fit the schema: {error}") from error
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise ArtifactError(f"{schema_name(schema)}: column {field.name!r} holds nulls")
    return table


class TableWriter:
    """Write a Parquet file in pieces. Text is compressed (zstd); vector tables are plain so they can be mapped.

    Args:
        path: local file to write.
        schema: one of `ralm.artifacts.schemas`.
        row_group_rows: rows in a row group; by default 4,096 for text and 65,536 for vectors.
    """

    def __init__(self, path: Path, schema: pa.Schema, row_group_rows: int | None = None) -> None:
        self.schema, self.num_rows = schema, 0
        is_vectors = schema_name(schema).startswith("embeddings/")
        self._group_rows = row_group_rows or (VECTOR_ROW_GROUP_ROWS if is_vectors else TEXT_ROW_GROUP_ROWS)
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(
            path,
            schema,
            compression="none" if is_vectors else "zstd",
            use_dictionary=[name for name in ("title", "section", "kind") if name in schema.names],
            write_statistics=not is_vectors,
            store_schema=True,
            data_page_size=1 << 30 if is_vectors else None,
        )

    def write(self, rows: Rows) -> None:
        """Append rows; full row groups go to the file at once."""
        table = to_table(rows, self.schema)
        self._pending.append(table)
        self._pending_rows += table.num_rows
        self.num_rows += table.num_rows
        if self._pending_rows >= self._group_rows:
            merged = pa.concat_tables(self._pending).combine_chunks()  # pages of a file end where chunks do
            whole = self._pending_rows // self._group_rows * self._group_rows
            self._writer.write_table(merged.slice(0, whole), row_group_size=self._group_rows)
            self._pending, self._pending_rows = [merged.slice(whole)], self._pending_rows - whole

    def close(self) -> None:
        """Write what is pending and the file's footer."""
        if self._pending_rows:
            self._writer.write_table(pa.concat_tables(self._pending).combine_chunks(), row_group_size=self._group_rows)
        self._pending, self._pending_rows = [], 0
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(Exception):  # the file is thrown away with its folder; keep the first error
                self._writer.close()


def write_table(path: Path, rows: Rows, schema: pa.Schema) -> int:
    """Write a whole table; returns its number of rows."""
    with TableWriter(path, schema) as writer:
        writer.write(rows)
    return writer.num_rows


class RemoteParquetFile(pq.ParquetFile):
    """A Parquet file in an object store. Reads fetch the bytes of their columns first, several pieces at once.

    Args:
        location: its URL.
    """

    def __init__(self, location: Location) -> None:
        self._ranges = RangeFile(location)
        super().__init__(self._ranges)

    def read_row_groups(self, row_groups: Sequence[int], columns: Sequence[str] | None = None, **options: Any) -> Any:
        """As the base class."""
        self._ranges.fetch([chunk for group in row_groups for chunk in self._chunks(group, columns)])
        return super().read_row_groups(row_groups, columns=columns, **options)

    def read_row_group(self, i: int, columns: Sequence[str] | None = None, **options: Any) -> Any:
        """As the base class."""
        return self.read_row_groups([i], columns, **options)

    def read(self, columns: Sequence[str] | None = None, **options: Any) -> Any:
        """As the base class, some row groups at a time."""
        parts: list[list[int]] = [[]]
        num_bytes = 0
        for group in range(self.num_row_groups):
            if num_bytes >= BYTES_AT_ONCE:
                parts, num_bytes = [*parts, []], 0
            parts[-1].append(group)
            num_bytes += sum(stop - start for start, stop in self._chunks(group, columns))
        return pa.concat_tables(self.read_row_groups(part, columns, **options) for part in parts)

    def _chunks(self, group: int, columns: Sequence[str] | None) -> Iterator[tuple[int, int]]:
        """Where the columns of a row group are: first byte and byte after the last."""
        found = self.metadata.row_group(group)
        for chunk in map(found.column, range(found.num_columns)):
            if columns is None or chunk.path_in_schema.partition(".")[0] in columns:
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                yield start, start + chunk.total_compressed_size


def open_parquet(location: Location, expected: str) -> pq.ParquetFile:
    """Open a Parquet file and check its schema's name and version.

    Raises:
        ArtifactError: missing, damaged, or of another schema.
        StorageError: the object store does not give it.
    """
    try:
        if is_remote(location):
            file: pq.ParquetFile = RemoteParquetFile(location)
        else:
            file = pq.ParquetFile(local_path(location), memory_map=True)
    except (FileNotFoundError, DataError) as error:
        raise ArtifactError(f"{location}: no such file, expected a {expected} table") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{location}: no readable Parquet file: {error}") from error
    found = schema_name(file.schema_arrow)
    if found != expected:
        found = found or "a table without a ralm schema"
        raise ArtifactError(f"{location}: expected a {expected} table, found {found}")
    return file


def read_table(
    locations: Location | Sequence[Location], expected: str, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read one table from one or several files, in the order given.

    Raises:
        ArtifactError: see `open_parquet`; or a column that is not there.
    """
    places = [locations] if isinstance(locations, str) else list(locations)
    tables = []
    for place in places:
        with open_parquet(place, expected) as file:
            if unknown := set(columns or ()) - set(file.schema_arrow.names):
                raise ArtifactError(f"{place}: no columns {sorted(unknown)}; there are {file.schema_arrow.names}")
            tables.append(file.read(columns=list(columns) if columns is not None else None))
    return pa.concat_tables(tables)


def iterate_rows(
    files: Sequence[tuple[Location, int]],
    expected: str,
    *,
    start: int = 0,
    stop: int | None = None,
    columns: Sequence[str] | None = None,
) -> Iterator[pa.Table]:
    """Rows `start` to `stop` over sorted files, one row group at a time, so memory does not grow with the table.

    Args:
        files: (location, number of rows) of each part, in order.
        expected: schema name and version.
        start: first row, counted over all files.
        stop: row after the last, None for the end.
        columns: which columns, None for all.
    """
    offset = 0
    stop = sum(rows for _, rows in files) if stop is None else stop
    for location, rows in files:
        if offset + rows > start and offset < stop:
            with open_parquet(location, expected) as file:
                begin = offset
                for group in range(file.num_row_groups):
                    size = file.metadata.row_group(group).num_rows
                    low, high = max(start - begin, 0), min(stop - begin, size)
                    if low < high:
                        table = file.read_row_group(group, columns=list(columns) if columns is not None else None)
                        yield table.slice(low, high - low)
                    begin += size
        offset += rows
