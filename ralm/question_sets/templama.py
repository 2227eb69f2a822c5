"""TempLAMA (Dhingra et al. 2022): cloze questions whose answer depends on the year."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ralm.errors import DataError
from ralm.question_sets.rows import Row, Splits, get_field, numbered_rows, question_row

YEARS = ("2017", "2020")
BLANK, SENTINEL = "_X_", "<extra_id_0>"


def templama_splits(files: Mapping[str, Path]) -> Splits:
    """`train-2017`, `train-2020`, `dev-2017`, ...: the changed facts of each official file, by year.

    A query is kept if it was asked in both years and no answer of the later year was right in the earlier one.
    """
    splits: dict[str, list[Row]] = {}
    for split, path in files.items():
        by_year = _changed_facts(path)
        splits |= {f"{split}-{year}": rows for year, rows in by_year.items()}
    return splits


def _changed_facts(path: Path) -> dict[str, list[Row]]:
    by_query: dict[str, dict[str, tuple[str, list[str]]]] = {}
    for place, row in numbered_rows(path):
        year = get_field(row, "date", str, place)
        if year not in YEARS:
            continue
        query = get_field(row, "query", str, place)
        if BLANK not in query:
            raise DataError(f"{place}: field 'query': expected a text with {BLANK}, found {query!r}")
        by_query.setdefault(query, {})[year] = get_field(row, "id", str, place), _answers(row, place)
    found: dict[str, list[Row]] = {year: [] for year in YEARS}
    for query, records in by_query.items():
        first, *later = (set(records[year][1]) for year in YEARS if year in records)
        if later and all(first.isdisjoint(names) for names in later):
            for year, (question_id, names) in sorted(records.items()):
                found[year].append(_row(question_id, query, names, year))
    return found


def _answers(row: Mapping[str, Any], place: str) -> list[str]:
    names = [get_field(answer, "name", str, f"{place}: answer") for answer in get_field(row, "answer", list, place)]
    if not names:
        raise DataError(f"{place}: field 'answer': expected at least one name, found an empty list")
    return list(dict.fromkeys(names))


def _row(question_id: str, query: str, answers: list[str], year: str) -> Row:
    return question_row(
        question_id=question_id,
        task="qa",
        question=query.replace(BLANK, SENTINEL),
        answers=answers,
        date=year,
        metadata={"dataset": "templama"},
    )
