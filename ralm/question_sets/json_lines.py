"""A user's own question files, in the formats of Atlas' tasks -> the `questions` artifact."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from ralm.artifacts.files import is_folder
from ralm.artifacts.schemas import QUESTIONS
from ralm.artifacts.tables import TableWriter
from ralm.corpus.passages import passage_id
from ralm.corpus.records import read_json_lines, string_field
from ralm.errors import ConfigError, DataError
from ralm.sources import fetch_file, fetch_tree
from ralm.tasks.base import question_of
from ralm.tasks.catalog import task_named
from ralm.tasks.config import TaskConfig

SPLITS = ("train", "dev", "test")
_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.bz2", ".jsonl.zst")
MAX_PASSAGE_ID = (1 << 63) - 1
_KNOWN = {"id", "_id", "answer", *QUESTIONS.names}


def find_question_files(source: str, split: str) -> dict[str, Path]:
    """The file of each split: those of a folder, or a single file.

    Args:
        source: folder or URL (ending in `/`) with `train.jsonl`, `dev.jsonl`, `test.jsonl` (any of them), or one file.
        split: of a single file; `auto` takes it from the name, else `test`.

    Raises:
        ConfigError: a split is given for a folder.
        DataError: no question file there.
    """
    if not (source.endswith("/") or ("://" not in source and ":" not in source and is_folder(source))):
        name = source.rpartition("/")[2].lower()
        named = [known for known in SPLITS if known in name]
        return {(named[0] if named else "test") if split == "auto" else split: fetch_file(source)}
    if split != "auto":
        raise ConfigError(f"split: {source} is a folder, whose file names tell the splits; found split {split!r}")
    folder = fetch_tree(source)
    files = {}
    for known in SPLITS:
        found = [folder / (known + suffix) for suffix in _SUFFIXES if (folder / (known + suffix)).is_file()]
        if len(found) > 1:
            raise DataError(f"{source}: two files for the split {known}: {[path.name for path in found]}")
        if found:
            files[known] = found[0]
    if not files:
        raise DataError(f"{source}: expected train.jsonl, dev.jsonl or test.jsonl, found none of them")
    return files


def write_questions(folder: Path, files: Mapping[str, Path]) -> tuple[dict[str, int], Counter[str]]:
    """Write `train.parquet`, `dev.parquet`, `test.parquet`, as far as there are files.

    Returns:
        Rows of each file, and the number of questions by split.

    Raises:
        DataError: a broken line, a missing field, a wrong type, an id used twice, or no question at all.
    """
    rows: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for split, path in files.items():
        seen: dict[str, int] = {}
        task = ""
        with TableWriter(folder / f"{split}.parquet", QUESTIONS) as writer:
            for number, row in read_json_lines(path):
                question = read_question(row, f"{path} line {number}")
                first = seen.setdefault(question["question_id"], number)
                if first != number:
                    raise DataError(
                        f"{path} line {number}: question_id {question['question_id']!r} is that of line {first}"
                    )
                task = task or question["task"]
                _check_task(question, task, f"{path} line {number}")
                writer.write([question])
        if not writer.num_rows:
            raise DataError(f"{path}: no questions in it")
        rows[f"{split}.parquet"] = counts[f"{split}_questions"] = writer.num_rows
    counts["questions"] = sum(rows.values())
    return rows, counts


def _check_task(row: Mapping[str, Any], task: str, place: str) -> None:
    """Raise `DataError` if the row is of another task than those before it, or its task cannot ask it."""
    if row["task"] != task:
        raise DataError(f"{place}: expected task {task!r} as in the lines before, found {row['task']!r}")
    try:
        asker, question = task_named(task), question_of(row)
        if not asker.reason_to_skip(question, TaskConfig()):
            asker.check(question)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def read_question(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """One row of `questions/1` from one JSON object; unknown fields go to `metadata`.

    Args:
        row: `question` with `answers`, `answer` or `target`, and anything else of the table; or the fields of another
            task of Atlas: `claim` and `label` (fever), `options` as an object and `answer` (multiple_choice), `input`
            and `output` (kilt), `text` with `task` mlm, lm or section.
        place: file and line, for messages.

    Raises:
        DataError: a field is missing or of the wrong type.
    """
    row = _from_atlas_task(row, place)
    question = string_field(row, ("question",), place)
    task = string_field(row, ("task",), place, default="qa")
    target = string_field(row, ("target",), place, default="") or None
    answers = _strings(row, "answers" if row.get("answers") is not None else "answer", place)
    if not answers and target is None and task in ("qa", "base"):
        raise DataError(f"{place}: missing field 'answers' (or 'target'); found {sorted(row)}")
    extra = {name: value for name, value in row.items() if name not in _KNOWN}
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise DataError(f"{place}: field 'metadata': expected an object, found {type(metadata).__name__}")
    digest = hashlib.sha256(json.dumps([question, answers, target], ensure_ascii=False).encode()).hexdigest()
    return {
        "question_id": string_field(row, ("question_id", "id", "_id"), place, default=digest[:16]),
        "task": task,
        "question": question,
        "answers": answers or ([target] if target is not None else []),
        "target": target,
        "options": _strings(row, "options", place),
        "label": string_field(row, ("label",), place, default="") or None,
        "source_id": string_field(row, ("source_id",), place, default="") or None,
        "positive_ids": _ids(row, place),
        "positive_titles": _strings(row, "positive_titles", place),
        "passages": [_file_passage(item, place) for item in _list(row, "passages", place)],
        "date": string_field(row, ("date",), place, default="") or None,
        "metadata": json.dumps({**extra, **metadata}, ensure_ascii=False, sort_keys=True),
    }


def _from_atlas_task(row: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """The fields of Atlas' other tasks under the names of `questions/1`."""
    rest = {name: value for name, value in row.items() if name not in ("claim", "input", "output", "text", "options")}
    if isinstance(row.get("options"), Mapping):
        options, letter = row["options"], string_field(row, ("answer", "label"), place)
        if letter not in options:
            raise DataError(f"{place}: field 'answer': expected one of {', '.join(options)}, found {letter!r}")
        if sorted(options) != list(ascii_uppercase[: len(options)]):
            raise DataError(
                f"{place}: field 'options': expected the letters from A on without a gap, found {', '.join(options)}"
            )
        texts = [string_field(options, (name,), f"{place}: options") for name in sorted(options)]
        return {"task": "multiple_choice", **rest, "options": texts, "label": letter, "answers": [letter]}
    if "question" in row:
        return row
    if "claim" in row:
        return {"task": "fever", **rest, "question": row["claim"]}
    if "input" in row:
        answers = [output["answer"] for output in _list(row, "output", place) if _has_answer(output)]
        return {"task": "kilt", **rest, "question": row["input"], "answers": answers}
    if "text" in row and row.get("task") in ("mlm", "lm", "section"):
        source_id = string_field(row, ("source_id", "id"), place, default="") or None
        return {**rest, "question": row["text"], "source_id": source_id}
    return row


def _has_answer(output: Any) -> bool:
    return isinstance(output, Mapping) and isinstance(output.get("answer"), str)


def _list(row: Mapping[str, Any], name: str, place: str) -> list[Any]:
    value = row.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise DataError(f"{place}: field {name!r}: expected a list, found {type(value).__name__}")
    return value


def _strings(row: Mapping[str, Any], name: str, place: str) -> list[str]:
    if isinstance(row.get(name), str):
        return [row[name]]
    values = _list(row, name, place)
    for value in values:
        if not isinstance(value, str):
            raise DataError(f"{place}: field {name!r}: expected a list of text, found {type(value).__name__} in it")
    return values


def _ids(row: Mapping[str, Any], place: str) -> list[int]:
    """Passage ids, which JSON carries as text."""
    try:
        numbers = [int(value) for value in _list(row, "positive_ids", place)]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{place}: field 'positive_ids': expected passage ids: {error}") from error
    return [_passage_number(number, "positive_ids", place) for number in numbers]


def _passage_number(number: int, name: str, place: str) -> int:
    if not 0 <= number <= MAX_PASSAGE_ID:
        raise DataError(f"{place}: field {name!r}: expected passage ids below 2**63, found {number}")
    return number


def _file_passage(item: Any, place: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise DataError(f"{place}: field 'passages': expected objects, found {type(item).__name__}")
    title, section = (string_field(item, (name,), place, default="") for name in ("title", "section"))
    text = string_field(item, ("text",), place)
    source_id = string_field(item, ("passage_id", "id"), place, default=title)
    known = source_id.isdecimal() and "passage_id" in item
    number = _passage_number(int(source_id), "passages", place) if known else passage_id(source_id, section, text, 0)
    return {"passage_id": number, "title": title, "section": section, "text": text}
