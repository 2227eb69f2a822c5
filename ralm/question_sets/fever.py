"""FEVER (Thorne et al. 2018): claims to be checked; `fever.ai`'s jsonl files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ralm.errors import DataError
from ralm.question_sets.rows import Row, Splits, get_field, numbered_rows, question_row

LABELS = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
_BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}", "-COLON-": ":"}


def fever_splits(files: Mapping[str, Path]) -> Splits:
    """Train, dev and test; rows without a label (the blind test set) are kept, with label null."""
    return {split: _rows(path) for split, path in files.items()}


def _rows(path: Path) -> Iterator[Row]:
    for place, row in numbered_rows(path):
        yield fever_row(row, place)


def fever_row(row: Mapping[str, Any], place: str) -> Row:
    """One claim: the label is FEVER's own; which words it is learnt as is up to the task.

    Raises:
        DataError: a missing field, or a label that FEVER does not have.
    """
    label = get_field(row, "label", str, place, default="") or None
    if label is not None and label not in LABELS:
        raise DataError(f"{place}: field 'label': expected one of {', '.join(LABELS)}, found {label!r}")
    return question_row(
        question_id=get_field(row, "id", str, place),
        task="fever",
        question=get_field(row, "claim", str, place),
        label=label,
        positive_titles=list(_evidence_titles(row.get("evidence") or [], place)) if label else [],
        metadata={"dataset": "fever"},
    )


def _evidence_titles(evidence: Any, place: str) -> Iterator[str]:
    """Titles of the pages in `evidence`: sets of [annotation, evidence, page, sentence]."""
    try:
        for annotated in evidence:
            for _, _, page, *_ in annotated:
                if page:
                    yield page_title(page)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{place}: field 'evidence': expected lists of [id, id, page, sentence], found {error}"
        ) from error


def page_title(page: str) -> str:
    """FEVER's escaped page name as Wikipedia's title.

    >>> page_title("Soul_Food_-LRB-film-RRB-")
    'Soul Food (film)'
    """
    return re.sub(r"-(?:[LR][RSC]B|COLON)-", lambda match: _BRACKETS[match[0]], page).replace("_", " ")
