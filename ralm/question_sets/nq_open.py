"""NQ-open (Lee et al. 2019): Natural Questions with short answers, `question` and `answer` a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ralm.errors import DataError
from ralm.question_sets.rows import Row, Splits, get_field, numbered_rows, question_row, text_list
from ralm.question_sets.splits import divide, pick


def nq_open_splits(files: Mapping[str, Path], dev_split: str) -> Splits:
    """Train and dev are parts of the official train file, test is the official dev file, as in FiD and Atlas.

    Args:
        files: `train`, `test` (any of them), and `index` with `dev_split` fid.
        dev_split: `fid` or `hash`, see `ralm.question_sets.splits`.
    """
    splits: dict[str, Any] = {}
    if "train" in files:
        splits |= divide(list(_rows(files["train"], "train")), files.get("index"), "NQ", dev_split)
    if "test" in files:
        test = _rows(files["test"], "dev")
        is_indexed = dev_split == "fid" and "index" in files
        splits["test"] = pick(list(test), files["index"], "NQ", "test") if is_indexed else test
    return splits


def _rows(path: Path, official: str) -> Iterator[Row]:
    """The id of a question is the name of its official file and its row there, from 0, as the index counts them."""
    for number, (place, row) in enumerate(numbered_rows(path)):
        answers = text_list(row, "answer", place)
        if not answers:
            raise DataError(f"{place}: field 'answer': expected at least one text, found an empty list")
        yield question_row(
            question_id=f"nq-{official}-{number}",
            task="qa",
            question=get_field(row, "question", str, place),
            answers=answers,
            metadata={"dataset": "nq-open"},
        )
