"""Pretraining questions from the passages themselves: `corpus:mlm`, `corpus:lm`, `corpus:section`.

One row for each passage with text (`section`: and with a title and a section); its own passage is not to be
retrieved, so `source_id` is the passage's id. The rows are shuffled: the first are test, the next dev, the rest train,
and train is in shuffled order too, so that its first N rows are a sample.

Tens of millions of passages do not fit into memory as Python objects. What is held for the whole corpus is one number
a row (its place in the shuffled order, 8 bytes, and the permutation it comes from). Texts pass through as Arrow tables
of `BLOCK_ROWS`: each block is dealt out to bucket files by place, and each bucket, again `BLOCK_ROWS` rows, is put in
order in memory and written. The buckets take the corpus' size on the disk until the artifact is finished.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ralm.artifacts.files import Location
from ralm.artifacts.manifest import Artifact
from ralm.artifacts.schemas import QUESTIONS
from ralm.artifacts.tables import TableWriter, iterate_rows
from ralm.corpus.passages import INFOBOX
from ralm.errors import ConfigError, DataError

PREFIX = "corpus:"
TASKS = ("mlm", "lm", "section")
BLOCK_ROWS = 1 << 17
COLUMNS = ["passage_id", "title", "section", "text", "kind"]
Files = Sequence[tuple[Location, int]]


def parse_source(source: str) -> str:
    """The task of `corpus:TASK`.

    Raises:
        ConfigError: no such task.
    """
    task = source.removeprefix(PREFIX)
    if task not in TASKS:
        raise ConfigError(f"{source}: expected one of {', '.join(PREFIX + known for known in TASKS)}")
    return task


def write_pretraining(
    folder: Path, passages: Artifact, task: str, *, num_test: int, num_dev: int, seed: int, infoboxes: bool
) -> tuple[dict[str, int], Counter[str]]:
    """Write `test.parquet`, `dev.parquet` and `train.parquet`; no passage is in two of them.

    Args:
        folder: receives them.
        passages: the corpus.
        task: mlm, lm or section.
        num_test: questions in test.
        num_dev: questions in dev.
        seed: of the shuffle.
        infoboxes: take passages made of infoboxes too.

    Returns:
        Rows of each file, and counts: questions, questions by split, passages left out.

    Raises:
        DataError: not enough passages for the splits.
    """
    files = passages.tables()
    place_N = shuffled_places(_eligible(files, task, infoboxes), seed)
    num_rows = int((place_N >= 0).sum())
    if num_rows <= num_test + num_dev:
        raise DataError(
            f"{passages.location}: {num_rows} passages can be asked about, expected over num_test + num_dev ="
            f" {num_test + num_dev}"
        )
    sizes = {"test": num_test, "dev": num_dev, "train": num_rows - num_test - num_dev}
    buckets = folder / "buckets"
    buckets.mkdir()
    _deal(buckets, files, place_N, num_rows)
    stream = _shuffled(buckets, num_rows, task)
    rest = QUESTIONS.empty_table()
    for split, size in sizes.items():
        rest = _write(folder / f"{split}.parquet", size, rest, stream)
    buckets.rmdir()
    rows = {f"{split}.parquet": size for split, size in sizes.items() if size}
    counts = Counter({f"{split}_questions": size for split, size in sizes.items()})
    counts["questions"], counts["skipped_passages"] = num_rows, len(place_N) - num_rows
    return rows, counts


def shuffled_places(eligible_N: np.ndarray, seed: int) -> np.ndarray:
    """For each row its place in the shuffled order, -1 for rows that are left out.

    >>> shuffled_places(np.array([True, False, True, True]), seed=0).tolist()
    [2, -1, 0, 1]
    """
    place_N = np.full(len(eligible_N), -1, dtype=np.int64)
    place_N[eligible_N] = np.random.default_rng(seed).permutation(int(eligible_N.sum()))
    return place_N


def _eligible(files: Files, task: str, infoboxes: bool) -> np.ndarray:
    """For each passage whether there is something to ask about it."""
    found = [np.zeros(0, dtype=bool)]
    needed = ("text", "title", "section") if task == "section" else ("text",)
    for table in iterate_rows(files, "passages/1", columns=[*needed, "kind"]):
        keep = pc.not_equal(table.column("kind"), "" if infoboxes else INFOBOX)
        for name in needed:
            keep = pc.and_(keep, _is_filled(table.column(name)))
        found.append(keep.to_numpy())
    return np.concatenate(found)


def _is_filled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.not_equal(pc.utf8_trim_whitespace(column), "")


def _num_buckets(num_rows: int) -> int:
    return -(-num_rows // BLOCK_ROWS)


def _deal(folder: Path, files: Files, place_N: np.ndarray, num_rows: int) -> None:
    """Put each passage into the bucket file of its place."""
    schema = None
    packed = pa.ipc.IpcWriteOptions(compression="zstd")
    writers: list[Any] = []
    start = 0
    with ExitStack() as stack:
        for block in _blocks(files):
            place = place_N[start : start + block.num_rows]
            start += block.num_rows
            if schema is None:
                schema = block.schema.append(pa.field("place", pa.int64()))
                paths = [folder / str(number) for number in range(_num_buckets(num_rows))]
                writers = [stack.enter_context(pa.ipc.new_stream(str(path), schema, options=packed)) for path in paths]
            kept = np.flatnonzero(place >= 0)
            order = kept[np.argsort(place[kept], kind="stable")]
            dealt = block.take(pa.array(order)).append_column("place", pa.array(place[order]))
            ends = np.searchsorted(place[order], np.arange(len(writers) + 1) * BLOCK_ROWS)
            for writer, begin, end in zip(writers, ends, ends[1:], strict=False):
                if end > begin:
                    writer.write_table(dealt.slice(begin, end - begin).combine_chunks())


def _blocks(files: Files) -> Iterator[pa.Table]:
    """All passages in order, about `BLOCK_ROWS` at a time."""
    waiting: list[pa.Table] = []
    for table in iterate_rows(files, "passages/1", columns=COLUMNS):
        waiting.append(table.replace_schema_metadata(None))
        if sum(part.num_rows for part in waiting) >= BLOCK_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _shuffled(folder: Path, num_rows: int, task: str) -> Iterator[pa.Table]:
    """All questions in shuffled order, bucket by bucket; a bucket's file is removed when it was read."""
    for number in range(_num_buckets(num_rows)):
        path = folder / str(number)
        with pa.ipc.open_stream(str(path)) as reader:
            table = reader.read_all()
        path.unlink()
        table = table.take(pc.sort_indices(table, sort_keys=[("place", "ascending")]))
        for begin in range(0, table.num_rows, 1 << 14):
            yield _questions(table.slice(begin, 1 << 14), task)


def _questions(passages: pa.Table, task: str) -> pa.Table:
    """Rows of `questions/1` for some passages."""
    size = passages.num_rows
    ids = passages.column("passage_id").cast(pa.string())
    names = zip(passages.column("title").to_pylist(), passages.column("section").to_pylist(), strict=True)
    metadata = [
        json.dumps({"dataset": PREFIX + task, "section": section, "title": title}, ensure_ascii=False)
        for title, section in names
    ]
    known = {
        "question_id": ids,
        "task": pa.array([task] * size),
        "question": passages.column("text"),
        "source_id": ids,
        "metadata": pa.array(metadata, pa.string()),
    }
    columns = []
    for field in QUESTIONS:
        empty: Any = [] if pa.types.is_list(field.type) else None
        columns.append(known.get(field.name, pa.array([empty] * size, field.type)))
    return pa.table(columns, schema=QUESTIONS)


def _write(path: Path, size: int, rest: pa.Table, stream: Iterator[pa.Table]) -> pa.Table:
    """Write `size` rows, first those left over; returns what is left of the last table taken."""
    if not size:
        return rest
    with TableWriter(path, QUESTIONS) as writer:
        while writer.num_rows < size:
            if not rest.num_rows:
                rest = next(stream)
            part = rest.slice(0, size - writer.num_rows)
            writer.write(part)
            rest = rest.slice(part.num_rows)
    return rest
