"""TriviaQA (Joshi et al. 2017), the unfiltered questions: JSON files of gigabytes, read record by record."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from ralm.corpus.records import find_half_character
from ralm.errors import DataError
from ralm.question_sets.archives import read_members, text_of
from ralm.question_sets.rows import Row, Splits, get_field, question_row, text_list
from ralm.question_sets.splits import divide, pick

MEMBER = r"(?:.*/)?unfiltered-web-{split}\.json"
READ_CHARS = 1 << 20
MAX_RECORD_CHARS = 1 << 26


def triviaqa_splits(files: Mapping[str, Path], dev_split: str) -> Splits:
    """Train and dev are parts of the official train set, test is the official dev set, as in FiD and Atlas.

    Args:
        files: `archive` (the official tar) or `train` and `test` (its JSON files), and `index` with `dev_split` fid.
        dev_split: `fid` or `hash`, see `ralm.question_sets.splits`.
    """
    train, test = _part(files, "train", "train"), _part(files, "test", "dev")
    splits: dict[str, Any] = {}
    if train is not None:
        splits |= divide(list(train), files.get("index"), "TQA", dev_split)
    if test is not None:
        splits["test"] = pick(list(test), files.get("index"), "TQA", "test") if dev_split == "fid" else test
    return splits


def _part(files: Mapping[str, Path], role: str, official: str) -> Iterator[Row] | None:
    if role in files:
        return _rows_of_file(files[role])
    return _rows_of_archive(files["archive"], official) if "archive" in files else None


def _rows_of_file(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as text:
        yield from _rows(text, str(path))


def _rows_of_archive(path: Path, official: str) -> Iterator[Row]:
    for name, stream in read_members(path, re.compile(MEMBER.format(split=official))):
        with text_of(stream) as text:
            yield from _rows(text, f"{path}: {name}")
        return
    raise DataError(f"{path}: expected a member unfiltered-web-{official}.json, found none")


def _rows(text: TextIO, place: str) -> Iterator[Row]:
    for here, record in read_records(text, place):
        value = get_field(record, "Answer.Value", str, here)
        yield question_row(
            question_id=get_field(record, "QuestionId", str, here),
            task="qa",
            question=get_field(record, "Question", str, here),
            answers=text_list(record, "Answer.Aliases", here) or [value],
            target=tidy_case(value),
            metadata={"dataset": "triviaqa"},
        )


def tidy_case(value: str) -> str:
    """A name that is written all in capitals in title case, as Atlas learns it.

    >>> tidy_case("HARRY TRUMAN"), tidy_case("Harry Truman")
    ('Harry Truman', 'Harry Truman')
    """
    return value.title() if value.isupper() else value


def read_records(text: TextIO, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects in the list `Data` of a JSON file, one after the other: only one of them is in memory.

    Raises:
        DataError: no such list, or one of its items is no object; the message has the record's number.
    """
    decoder = json.JSONDecoder()
    buffer = _read(text, place)
    start = re.match(r'\s*\{.*?"Data"\s*:\s*\[', buffer, re.DOTALL)
    if start is None:
        raise DataError(f"{place}: field 'Data': expected a list, found none in the first {len(buffer)} characters")
    buffer, number = buffer[start.end() :], 0
    while True:
        buffer = buffer.lstrip(", \t\r\n")
        if buffer.startswith("]"):
            return
        here = f"{place} record {number + 1}"
        try:
            record, end = decoder.raw_decode(buffer)
        except json.JSONDecodeError as error:
            more = _read(text, place)
            if not more or len(buffer) > MAX_RECORD_CHARS:
                state = "the file ends too early" if not more else f"no JSON: {error.msg}"
                raise DataError(f"{here}: {state}") from error
            buffer += more
            continue
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists within lists
            raise DataError(f"{here}: no JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{here}: expected an object, found {type(record).__name__}")
        if half := find_half_character(buffer[:end], record):
            raise DataError(f"{here}: {half[0]} is half a character")
        number += 1
        yield here, record
        buffer = buffer[end:]


def _read(text: TextIO, place: str) -> str:
    try:
        return text.read(READ_CHARS)
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: no UTF-8: {error.reason}") from error
