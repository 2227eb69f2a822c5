"""From `dataset:NAME` to the splits of a `questions` artifact."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ralm.artifacts.files import sha256_file
from ralm.errors import DataError
from ralm.question_sets.catalog import fetch_files, find_dataset
from ralm.question_sets.fever import fever_splits
from ralm.question_sets.kilt import kilt_splits
from ralm.question_sets.mmlu import mmlu_splits, parse_layout
from ralm.question_sets.nq_open import nq_open_splits
from ralm.question_sets.rows import Splits
from ralm.question_sets.templama import templama_splits
from ralm.question_sets.triviaqa import triviaqa_splits


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """A question set whose files are here but not read yet."""

    inputs: Mapping[str, str]
    """sha256 of each file, by role."""
    config: Mapping[str, Any]
    """What besides the files decides on the rows."""
    details: Mapping[str, str]
    """Name, publisher and licence."""
    splits: Callable[[], Splits]


def open_dataset(source: str, *, files: Mapping[str, str], base_url: str, dev_split: str) -> QuestionSet:
    """Fetch what `dataset:NAME` needs.

    Args:
        source: `dataset:nq-open`, `dataset:mmlu/5-shot-multi`, `dataset:kilt/hotpotqa`, ...
        files: the user's own copies of the official files, by role.
        base_url: of a mirror of the official files, empty for the originals.
        dev_split: `fid` or `hash`: how dev is taken out of train (nq-open, triviaqa).

    Raises:
        ConfigError: no such question set, layout or role.
        DataError: a file is missing, cannot be reached, or is not the published one.
    """
    dataset, variant = find_dataset(source)
    is_divided = dataset.name in ("nq-open", "triviaqa")
    if dataset.name == "mmlu":
        parse_layout(variant)
    needless = ("index",) if is_divided and dev_split != "fid" else ()
    try:
        paths = fetch_files(dataset, files=files, base_url=base_url, without=needless)
    except DataError as error:
        if "index" not in dataset.files or dataset.files["index"].name not in str(error):
            raise
        raise DataError(f"{error}; with dev_split hash this file is not needed") from error
    config = {"source": source, **({"dev_split": dev_split} if is_divided else {})}
    return QuestionSet(
        inputs={role: sha256_file(path) for role, path in paths.items()},
        config=config,
        details={"dataset": dataset.name, "page": dataset.page, "licence": dataset.licence},
        splits=lambda: _read(dataset.name, variant, paths, dev_split),
    )


def _read(name: str, variant: str, files: Mapping[str, Path], dev_split: str) -> Splits:
    if name.startswith("kilt/"):
        return kilt_splits(files, name.removeprefix("kilt/"))
    readers: dict[str, Callable[[], Splits]] = {
        "nq-open": lambda: nq_open_splits(files, dev_split),
        "triviaqa": lambda: triviaqa_splits(files, dev_split),
        "templama": lambda: templama_splits(files),
        "fever": lambda: fever_splits(files),
        "mmlu": lambda: mmlu_splits(files, variant),
    }
    return readers[name]()
