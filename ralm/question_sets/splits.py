"""How a development set is taken out of a training set: by FiD's published indices, or by a hash.

`fid`: the row numbers in `dataindex.tar.gz` of Fusion-in-Decoder (Izacard & Grave 2021), which Atlas uses too:
`NQ.train.idx.json`, `NQ.dev.idx.json` (rows of the official train file) and `NQ.test.idx.json` (rows of the official
dev file); `TQA` for TriviaQA. `hash`: a tenth of the rows, those whose question's sha256 says so. It needs no other
file and does not depend on the order, but it is another division than the published one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from ralm.errors import ConfigError, DataError
from ralm.question_sets.archives import read_members
from ralm.question_sets.rows import Row

MAX_INDEX_BYTES = 1 << 26


def divide(rows: Sequence[Row], index: Path | None, name: str, how: str) -> dict[str, list[Row]]:
    """Official training rows -> train and dev.

    Raises:
        ConfigError: `fid` without an index file.
        DataError: the index does not fit the rows.
    """
    if how == "fid":
        return {split: pick(rows, index, name, split) for split in ("train", "dev")}
    is_dev = [_is_held_out(row["question"]) for row in rows]
    return {
        "train": [row for row, held_out in zip(rows, is_dev, strict=True) if not held_out],
        "dev": [row for row, held_out in zip(rows, is_dev, strict=True) if held_out],
    }


def pick(rows: Sequence[Row], index: Path | None, name: str, split: str) -> list[Row]:
    """The rows of one split, in the order of the index.

    Raises:
        ConfigError: no index file.
        DataError: the index has no such split, or a row that is not there.
    """
    if index is None:
        raise ConfigError("dev_split: fid needs FiD's index file; give it as files.index, or set dev_split to hash")
    numbers = _read_index(index, f"{name}.{split}.idx.json")
    if outside := [number for number in numbers if not 0 <= number < len(rows)]:
        raise DataError(
            f"{index}: {name}.{split}.idx.json: expected rows from 0 to {len(rows) - 1}, found {outside[0]};"
            " is the question file complete?"
        )
    return [rows[number] for number in numbers]


def _read_index(archive: Path, member: str) -> list[int]:
    for name, stream in read_members(archive, re.compile(rf"(?:.*/)?{re.escape(member)}"), max_bytes=MAX_INDEX_BYTES):
        try:
            return [int(number) for number in json.loads(stream.read(MAX_INDEX_BYTES))]
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise DataError(f"{archive}: {name}: expected a JSON list of row numbers: {error}") from error
    raise DataError(f"{archive}: expected a member {member}, found none")


def _is_held_out(question: str) -> bool:
    """True for a tenth of all questions."""
    return hashlib.sha256(question.encode()).digest()[0] * 10 < 256
