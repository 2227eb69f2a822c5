"""Rows of `questions/1`: made from a dataset's fields, checked, and written split by split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ralm.artifacts.schemas import QUESTIONS
from ralm.artifacts.tables import TableWriter, iterate_rows
from ralm.corpus.records import read_json_lines
from ralm.errors import ConfigError, DataError

Row = dict[str, Any]
Splits = Mapping[str, Iterable[Row]]
BATCH_ROWS = 1024
_NAMES = {str: "text", int: "a number", list: "a list", dict: "an object"}


def get_field(row: Any, name: str, kind: type, place: str, *, default: Any = None) -> Any:
    """A field of a JSON object, dots leading inwards (`Answer.Value`); numbers are taken for text as ids are.

    Raises:
        DataError: `PLACE: field NAME: expected ..., found ...`.
    """
    value = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None and default is not None:
        return default
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, kind):
        found = "nothing" if value is None else type(value).__name__
        raise DataError(f"{place}: field {name!r}: expected {_NAMES[kind]}, found {found}")
    return value


def text_list(row: Any, name: str, place: str) -> list[str]:
    """A field that is a list of texts.

    Raises:
        DataError: it is none.
    """
    values = get_field(row, name, list, place)
    for value in values:
        if not isinstance(value, str):
            raise DataError(f"{place}: field {name!r}: expected a list of text, found {type(value).__name__} in it")
    return list(values)


def object_list(row: Any, name: str, place: str) -> list[Mapping[str, Any]]:
    """A field that is a list of objects, or not there at all.

    Raises:
        DataError: it is none.
    """
    values = get_field(row, name, list, place, default=[])
    for value in values:
        if not isinstance(value, Mapping):
            raise DataError(f"{place}: field {name!r}: expected a list of objects, found {type(value).__name__} in it")
    return list(values)


def question_row(
    *,
    question_id: str,
    task: str,
    question: str,
    answers: Sequence[str] = (),
    target: str | None = None,
    options: Sequence[str] = (),
    label: str | None = None,
    source_id: str | None = None,
    positive_titles: Sequence[str] = (),
    date: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Row:
    """A row of `questions/1`; what a dataset does not have stays empty."""
    return {
        "question_id": question_id,
        "task": task,
        "question": question,
        "answers": list(answers),
        "target": target,
        "options": list(options),
        "label": label,
        "source_id": source_id,
        "positive_ids": [],
        "positive_titles": list(dict.fromkeys(positive_titles)),
        "passages": [],
        "date": date,
        "metadata": json.dumps(metadata or {}, ensure_ascii=False, sort_keys=True),
    }


def write_splits(folder: Path, splits: Splits) -> tuple[dict[str, int], Counter[str]]:
    """Write one table for each split, in order, in bounded memory where the rows come from an iterator.

    An id that a dataset uses again gets `#2`, `#3`, ... behind it: what is asked must be told apart, and a user
    cannot mend a published file. A split without any question is left out.

    Returns:
        Rows of each file, and counts: questions, questions by split, repeated ids.

    Raises:
        DataError: no question in any split.
    """
    rows: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for split, questions in splits.items():
        seen: Counter[str] = Counter()
        with TableWriter(folder / f"{split}.parquet", QUESTIONS) as writer:
            for batch in _batches(questions):
                for row in batch:
                    name = row["question_id"]
                    seen[name] += 1
                    if seen[name] > 1:
                        row["question_id"] = f"{name}#{seen[name]}"
                        counts["repeated_ids"] += 1
                writer.write(batch)
        if writer.num_rows:
            rows[f"{split}.parquet"] = counts[f"{split}_questions"] = writer.num_rows
        else:
            (folder / f"{split}.parquet").unlink()
    if not rows:
        raise DataError(f"questions: no question in any of the splits {', '.join(splits)}")
    counts["questions"] = sum(rows.values())
    return rows, counts


def write_shots(folder: Path, rows: Mapping[str, int], chosen: Sequence[int]) -> dict[str, int]:
    """Write some rows of `train` to a table of their own, `train-N-shot`, in the order of `train`.

    Raises:
        DataError: there is no train split, or it has no such row.
    """
    num_rows = rows.get("train.parquet", 0)
    if not num_rows:
        raise DataError("num_shots: the questions have no split 'train' to choose from")
    first, last = min(chosen), max(chosen)
    if first < 0 or last >= num_rows:
        raise DataError(f"shots: expected rows from 0 to {num_rows - 1} of train, found {first} to {last}")
    places = np.unique(np.asarray(chosen, dtype=np.int64))
    name = f"train-{len(places)}-shot.parquet"
    start = 0
    with TableWriter(folder / name, QUESTIONS) as writer:
        for table in iterate_rows([(str(folder / "train.parquet"), num_rows)], "questions/1"):
            here = places[(places >= start) & (places < start + table.num_rows)] - start
            start += table.num_rows
            if len(here):
                writer.write(table.take(pa.array(here)))
    return {name: writer.num_rows}


def choose_shots(num_rows: int, num_shots: int, seed: int) -> list[int]:
    """Rows of a few-shot training set: drawn once, so that every run of a seed learns from the same ones.

    Raises:
        ConfigError: fewer rows than shots.
    """
    if num_shots > num_rows:
        raise ConfigError(f"num_shots: expected at most the {num_rows} questions of train, found {num_shots}")
    return sorted(np.random.default_rng(seed).choice(num_rows, num_shots, replace=False).tolist())


def read_shots(path: Path) -> list[int]:
    """Row numbers from a file: a JSON list, or one number a line.

    Raises:
        DataError: anything else, or a number twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if text.lstrip().startswith("[") else [int(line) for line in text.split()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected row numbers, as a JSON list or one a line: {error}") from error
    if not found or any(isinstance(number, bool) or not isinstance(number, int) for number in found):
        raise DataError(f"{path}: expected row numbers, as a JSON list or one a line")
    if len(set(found)) != len(found):
        raise DataError(f"{path}: expected different row numbers, found one twice")
    return found


def numbered_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """JSON objects of a file, each with its place for messages.

    Raises:
        DataError: see `read_json_lines`.
    """
    for number, row in read_json_lines(path):
        yield f"{path} line {number}", row


def _batches(questions: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in questions:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch
