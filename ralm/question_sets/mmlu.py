"""MMLU (Hendrycks et al. 2021): four-way multiple choice in 57 subjects; the official tar of headerless CSV files.

| layout | train | dev | test |
|---|---|---|---|
| `zero-shot` | - | official val | official test |
| `5-shot/SUBJECT` | the 5 official dev questions of the subject | its val | its test |
| `5-shot-multi` | the official dev questions of all subjects (57 x 5) | official val | official test |
| `full` | auxiliary_train without 5,000 questions, and the official dev questions | official val | official test |

`full` shuffles auxiliary_train with seed 10 and holds the last 5,000 out, as `dev-auxiliary`.
A layout for all subjects may be narrowed to one in dev and test: `zero-shot/anatomy`. The subject of
each question is in its metadata.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from ralm.errors import ConfigError, DataError
from ralm.question_sets.archives import read_members, text_of
from ralm.question_sets.rows import Row, Splits, question_row

LAYOUTS = ("zero-shot", "5-shot", "5-shot-multi", "full")
LETTERS = ("A", "B", "C", "D")
HELD_OUT = 5000
SHUFFLE_SEED = 10
MAX_CSV_BYTES = 1 << 29
_MEMBER = re.compile(r"(?:.*/)?data/(?P<part>dev|val|test|auxiliary_train)/(?P<name>[^/]+)\.csv")


def parse_layout(variant: str) -> tuple[str, str]:
    """Layout and subject of `LAYOUT[/SUBJECT]`.

    Raises:
        ConfigError: no such layout, or 5-shot without a subject.
    """
    layout, _, subject = variant.partition("/")
    if layout not in LAYOUTS:
        raise ConfigError(f"dataset:mmlu/{variant}: expected one of mmlu/{', mmlu/'.join(LAYOUTS)}, found {layout!r}")
    if layout == "5-shot" and not subject:
        raise ConfigError("dataset:mmlu/5-shot: name the subject (dataset:mmlu/5-shot/anatomy), or take 5-shot-multi")
    return layout, subject


def mmlu_splits(files: Mapping[str, Path], variant: str) -> Splits:
    """The splits of a layout.

    Raises:
        ConfigError: no such layout or subject.
        DataError: a member that is no such table.
    """
    layout, subject = parse_layout(variant)
    archive = files["archive"]
    parts = _read_parts(archive, with_auxiliary=layout == "full")
    subjects = sorted({name for part in ("dev", "val", "test") for name in parts[part]})
    if subject and subject not in subjects:
        raise ConfigError(f"dataset:mmlu/{variant}: expected one of {', '.join(subjects)}, found {subject!r}")
    wanted = [subject] if subject else subjects
    splits: dict[str, list[Row]] = {}
    if layout == "5-shot":
        splits["train"] = parts["dev"].get(subject, [])
    elif layout == "5-shot-multi":
        splits["train"] = _joined(parts["dev"], subjects)
    elif layout == "full":
        auxiliary = _joined(parts["auxiliary_train"], sorted(parts["auxiliary_train"]))
        if len(auxiliary) <= HELD_OUT:
            raise DataError(f"{archive}: data/auxiliary_train: expected over {HELD_OUT} rows, found {len(auxiliary)}")
        random.Random(SHUFFLE_SEED).shuffle(auxiliary)
        splits["train"] = auxiliary[:-HELD_OUT] + _joined(parts["dev"], subjects)
        splits["dev-auxiliary"] = auxiliary[-HELD_OUT:]
    return splits | {
        split: rows for split, part in (("dev", "val"), ("test", "test")) if (rows := _joined(parts[part], wanted))
    }


def _joined(by_subject: Mapping[str, list[Row]], subjects: list[str]) -> list[Row]:
    return [row for subject in subjects for row in by_subject.get(subject, [])]


def _read_parts(archive: Path, *, with_auxiliary: bool) -> dict[str, dict[str, list[Row]]]:
    """Questions by official part and subject."""
    parts: dict[str, dict[str, list[Row]]] = {"dev": {}, "val": {}, "test": {}, "auxiliary_train": {}}
    for name, stream in read_members(archive, _MEMBER, max_bytes=MAX_CSV_BYTES):
        match = _MEMBER.fullmatch(name)
        assert match is not None  # read_members gives no others
        part = match["part"]
        if part == "auxiliary_train" and not with_auxiliary:
            continue
        subject = match["name"].removesuffix(f"_{part}")
        with text_of(stream) as text:
            parts[part][subject] = list(_rows(text, f"{archive}: {name}", part, subject))
    if not any(parts.values()):
        raise DataError(f"{archive}: expected data/dev, data/val and data/test with CSV files, found none")
    return parts


def _rows(text: TextIO, place: str, part: str, subject: str) -> Iterator[Row]:
    reader = csv.reader(text)
    number = 0
    while True:
        try:
            cells = next(reader, None)
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: no UTF-8 behind line {reader.line_num}: {error.reason}") from error
        except csv.Error as error:
            raise DataError(f"{place} line {reader.line_num}: no CSV: {error}") from error
        if cells is None:
            return
        here = f"{place} line {reader.line_num}"
        if len(cells) != 6:
            raise DataError(f"{here}: expected 6 fields (question, A, B, C, D, answer), found {len(cells)}")
        yield _row(cells, here, f"{subject}/{part}/{number}", subject)
        number += 1


def _row(cells: list[str], place: str, question_id: str, subject: str) -> Row:
    question, *options, letter = cells
    if letter not in LETTERS:
        raise DataError(f"{place}: field 'answer': expected A, B, C or D, found {letter!r}")
    metadata: dict[str, Any] = {"dataset": "mmlu", "subject": subject}
    return question_row(
        question_id=question_id,
        task="multiple_choice",
        question=question,
        answers=[letter],
        options=options,
        label=letter,
        metadata=metadata,
    )
