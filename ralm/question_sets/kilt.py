"""KILT (Petroni et al. 2021): eleven tasks in one jsonl format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ralm.errors import DataError
from ralm.question_sets.archives import read_members, text_of
from ralm.question_sets.rows import Row, Splits, get_field, numbered_rows, object_list, question_row
from ralm.question_sets.triviaqa import MEMBER, read_records

TASKS = {
    "nq": "nq",
    "hotpotqa": "hotpotqa",
    "fever": "fever",
    "triviaqa": "triviaqa",
    "trex": "trex",
    "zsre": "structured_zeroshot",
    "structured_zeroshot": "structured_zeroshot",
    "wow": "wow",
    "eli5": "eli5",
    "aidayago2": "aidayago2",
    "wned": "wned",
    "cweb": "cweb",
}
"""Name of a task, and how its files are named."""
_REPEATED = ("left_context", "right_context")
"""Entity linking has its input a second time in `meta`; for cweb that is most of the file."""
QUESTIONS_ROLE = "questions"
"""Of `kilt/triviaqa`: TriviaQA's archive, which has the questions that KILT's files only refer to."""


def kilt_splits(files: Mapping[str, Path], task: str) -> Splits:
    """Train, dev and test, as far as the task has them; test rows have no answers: they can be asked, not scored."""
    known = _trivia_questions(files[QUESTIONS_ROLE]) if QUESTIONS_ROLE in files else {}
    splits = {split: path for split, path in files.items() if split != QUESTIONS_ROLE}
    return {split: _rows(path, task, known) for split, path in splits.items()}


def _rows(path: Path, task: str, known: Mapping[str, str]) -> Iterator[Row]:
    for place, row in numbered_rows(path):
        yield kilt_row(row, place, task=task, known=known)


def kilt_row(row: Mapping[str, Any], place: str, *, task: str, known: Mapping[str, str] | None = None) -> Row:
    """One instance: `input` asks, the answers of `output` are right, its provenance names the pages that tell.

    Args:
        row: `id`, `input`, `output`, `meta`.
        place: file and line, for messages.
        task: name of the KILT task; it is kept in the metadata, since FEVER's labels are learnt as other words.
        known: questions by id, for rows without `input`.

    Raises:
        DataError: a field is missing or of the wrong type.
    """
    question_id = get_field(row, "id", str, place)
    if row.get("input") is None and (known or {}).get(question_id) is None:
        wanted = (
            f"{len(known)} TriviaQA questions have no id {question_id!r}"
            if known
            else ("KILT gives only ids here; add TriviaQA's archive as files.questions")
        )
        raise DataError(f"{place}: field 'input': expected text, found nothing: {wanted}")
    answers, provenance = [], []
    for output in object_list(row, "output", place):
        if answer := get_field(output, "answer", str, f"{place}: output", default=""):
            answers.append(answer)
        provenance += object_list(output, "provenance", f"{place}: output")
    titles = [get_field(page, "title", str, f"{place}: provenance", default="") for page in provenance]
    meta = get_field(row, "meta", dict, place, default={})
    metadata = {
        "dataset": f"kilt/{task}",
        "provenance": provenance,
        "meta": {name: value for name, value in meta.items() if name not in _REPEATED},
    }
    return question_row(
        question_id=question_id,
        task="kilt",
        question=get_field(row, "input", str, place, default=(known or {}).get(question_id)),
        answers=list(dict.fromkeys(answers)),
        positive_titles=[title for title in titles if title],
        metadata={name: value for name, value in metadata.items() if value},
    )


def _trivia_questions(path: Path) -> dict[str, str]:
    """Questions of TriviaQA by id: of its archive, or of one of its files."""
    known: dict[str, str] = {}
    if path.name.endswith((".json", ".jsonl")):
        with path.open(encoding="utf-8") as text:
            known.update(_questions(text, str(path)))
        return known
    for name, stream in read_members(path, re.compile(MEMBER.format(split="[a-z-]+"))):
        with text_of(stream) as text:
            known.update(_questions(text, f"{path}: {name}"))
    if not known:
        raise DataError(f"{path}: expected TriviaQA's unfiltered-web-*.json in it, found none")
    return known


def _questions(text: Any, place: str) -> Iterator[tuple[str, str]]:
    for here, record in read_records(text, place):
        yield get_field(record, "QuestionId", str, here), get_field(record, "Question", str, here)
