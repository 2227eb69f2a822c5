from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ralm.artifacts.tables import read_table
from ralm.question_sets.prepare import open_dataset
from ralm.question_sets.rows import write_splits

EXCERPTS = Path(__file__).parents[2] / "data" / "question_sets"
Tables = dict[str, list[dict[str, Any]]]


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """A tar with these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def excerpt_tar(folder: str, top: str) -> bytes:
    """The files of an excerpt as the official archive has them."""
    base = EXCERPTS / folder
    files = sorted(path for path in base.rglob("*") if path.is_file())
    return tar_of({f"{top}{path.relative_to(base).as_posix()}": path.read_bytes() for path in files})


def index_tar(name: str, **splits: list[int]) -> bytes:
    """FiD's index archive with these rows."""
    members = {f"dataindex/{name}.{split}.idx.json": json.dumps(rows).encode() for split, rows in splits.items()}
    return tar_of(members)


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., Tables]:
    """Prepares a question set; gives the rows of each split, in the order they were written."""

    def run(source: str, files: Mapping[str, Any], *, dev_split: str = "hash", base_url: str = "") -> Tables:
        found = open_dataset(
            source, files={role: str(place) for role, place in files.items()}, base_url=base_url, dev_split=dev_split
        )
        rows, counts = write_splits(tmp_path / "out", found.splits())
        assert counts["questions"] == sum(rows.values())
        return {
            name.removesuffix(".parquet"): read_table(str(tmp_path / "out" / name), "questions/1").to_pylist()
            for name in rows
        }

    return run


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes a jsonl file."""

    def write(name: str, *rows: object) -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
        return path

    return write
