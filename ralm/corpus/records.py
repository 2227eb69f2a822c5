"""Corpora of records: JSON lines, CSV and TSV, DPR's passage table, Parquet; one record is a document or a passage."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ralm.corpus.compressed import read_lines
from ralm.corpus.passages import INFOBOX, TEXT, Document, Piece
from ralm.errors import DataError

FIELD_BYTES = 1 << 27
TEXT_NAMES = ("text", "contents", "content", "body")
ID_NAMES = ("id", "_id", "source_id")
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
csv.field_size_limit(FIELD_BYTES)


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered JSON objects; empty lines are passed over.

    Raises:
        DataError: `FILE line N: ...` for what is no JSON object.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(f"{path} line {number}: no JSON: {reason}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path} line {number}: expected a JSON object, found {type(row).__name__}")
        if half := find_half_character(line, row):
            raise DataError(f"{path} line {number}: {half[0]} at column {half.start() + 1} is half a character")
        yield number, row


def find_half_character(text: str, row: dict[str, Any]) -> re.Match[str] | None:
    r"""The first escape such as `\ud83d` in a row's JSON if one has no partner: such text cannot be written."""
    half = _HALF_CHARACTER.search(text)
    if half is None:
        return None
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return half
    return None


def string_field(row: Mapping[str, Any], names: tuple[str, ...], place: str, *, default: str | None = None) -> str:
    """The first of several fields that is there, as text; numbers are taken as ids.

    Raises:
        DataError: missing without a default, or of another type.
    """
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise DataError(f"{place}: field {name!r}: expected text, found {type(value).__name__}")
        return str(value)
    if default is None:
        raise DataError(f"{place}: missing field {names[0]!r}; found {sorted(str(key) for key in row)}")
    return default


def _document(row: Mapping[str, Any], place: str) -> Document:
    """A user's own record: title and text, with id and section if given."""
    title = string_field(row, ("title",), place)
    text = string_field(row, TEXT_NAMES, place)
    source_id = string_field(row, ID_NAMES, place, default="") or title
    return Document(source_id, title, [Piece(string_field(row, ("section",), place, default=""), text)])


class _PassagePositions:
    """Numbers ready-made passages of one page: rows that follow each other with one title."""

    def __init__(self) -> None:
        self.title: str | None = None
        self.position = 0

    def document(self, source_id: str, title: str, section: str, text: str, kind: str) -> Document:
        self.position = self.position + 1 if title == self.title else 0
        self.title = title
        pieces = [Piece(section, text, kind, is_passage=True)] if text.strip() else []
        return Document(source_id, title, pieces, first_position=self.position)


def read_jsonl(path: Path) -> Iterator[Document]:
    """A user's documents, one a line, with `title`, `text` and perhaps `id`, `section`."""
    for number, row in read_json_lines(path):
        yield _document(row, f"{path} line {number}")


def read_atlas(path: Path) -> Iterator[Document]:
    """Atlas passages (`id`, `title`, `section`, `text`); the file is named for its kind (`infobox.jsonl`)."""
    kind = INFOBOX if "infobox" in path.name.lower() else TEXT
    positions = _PassagePositions()
    for number, row in read_json_lines(path):
        place = f"{path} line {number}"
        yield positions.document(
            string_field(row, ID_NAMES, place),
            string_field(row, ("title",), place),
            string_field(row, ("section",), place, default=""),
            string_field(row, TEXT_NAMES, place),
            kind,
        )


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Numbered rows (by their last line)."""
    lines = (line + "\n" for _, line in read_lines(path))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path} line {reader.line_num}: no {delimiter!r}-separated table: {error}") from error
        if row:
            yield reader.line_num, row


def find_delimiter(header: str) -> str:
    """The most frequent of tab, comma and semicolon in a header line."""
    return max("\t,;", key=header.count)


def read_csv(path: Path) -> Iterator[Document]:
    """A table with a header line that names at least `title` and `text`."""
    first = next((line for _, line in read_lines(path) if line.strip()), "")
    rows = _csv_rows(path, find_delimiter(first))
    _, header = next(rows, (1, []))
    names = [name.strip().lower() for name in header]
    if twice := sorted(name for name in set(names) if name and names.count(name) > 1):
        raise DataError(f"{path}: the header names {twice[0]!r} twice")
    for number, row in rows:
        if len(row) != len(names):
            raise DataError(f"{path} line {number}: expected {len(names)} fields as in the header, found {len(row)}")
        yield _document(dict(zip(names, row, strict=True)), f"{path} line {number}")


def read_dpr(path: Path) -> Iterator[Document]:
    """DPR's `psgs_w100.tsv`: `id`, `text`, `title`, quoted, ready-made passages."""
    rows = _csv_rows(path, "\t")
    number, header = next(rows, (1, []))
    if [name.strip().lower() for name in header[:3]] != ["id", "text", "title"]:
        raise DataError(f"{path} line {number}: expected the columns id, text, title, found {header}")
    positions = _PassagePositions()
    for number, row in rows:
        if len(row) != 3:
            raise DataError(f"{path} line {number}: expected 3 fields (id, text, title), found {len(row)}")
        yield positions.document(row[0], row[2], "", row[1], TEXT)


def read_parquet(path: Path) -> Iterator[Document]:
    """A Parquet table with columns `title`, `text` and perhaps `id`, `section`."""
    try:
        file = pq.ParquetFile(path)
        names = [name for name in file.schema_arrow.names if name in ("title", "section", *TEXT_NAMES, *ID_NAMES)]
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=names):
            for row in batch.to_pylist():
                number += 1
                yield _document(row, f"{path} row {number}")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{path}: no readable Parquet file: {error}") from error


READERS: Mapping[str, Callable[[Path], Iterator[Document]]] = {
    "atlas": read_atlas,
    "dpr": read_dpr,
    "csv": read_csv,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
}
