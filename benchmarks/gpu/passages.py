"""Passages to measure with: real ones, again and again until there are enough, or made ones of about their length."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.schemas import PASSAGES
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import TableWriter, read_table

WORDS = [f"{first}{last}" for first in ("ab", "cor", "dun", "el", "fir", "gra") for last in ("an", "est", "ing", "ow")]


def passage_table(location: str, size: int) -> pa.Table:
    """Rows of `passages/1`.

    Args:
        location: a passages artifact; empty: made ones.
        size: how many; an artifact's are repeated, or its first ones taken.
    """
    if not location:
        return pa.Table.from_pylist([_made(number) for number in range(size)], schema=PASSAGES)
    artifact = open_artifact(location, "passages")
    table = read_table([place for place, _ in artifact.tables()], "passages/1")
    copies = pa.concat_tables([table] * -(-size // table.num_rows)).slice(0, size)
    ids = pa.array(np.arange(size, dtype=np.int64))
    return copies.set_column(copies.schema.get_field_index("passage_id"), PASSAGES.field("passage_id"), ids)


def write_passages(location: str, table: pa.Table) -> None:
    """A passages artifact of these rows."""

    def build(folder: Path) -> Contents:
        with TableWriter(folder / "part-00000.parquet", PASSAGES) as writer:
            writer.write(table)
        return Contents(rows={"part-00000.parquet": table.num_rows}, counts={"passages": table.num_rows})

    sizes = {"rows": str(table.num_rows)}
    produce(location, kind="passages", stage="benchmark", stage_version=1, inputs=sizes, config={}, build=build)


def _made(number: int) -> dict[str, object]:
    generator = np.random.default_rng(number)
    text = " ".join(generator.choice(WORDS, size=max(5, int(generator.normal(85, 25)))))
    return {
        "passage_id": number,
        "source_id": str(number),
        "page_id": number,
        "revision_id": None,
        "title": WORDS[number % len(WORDS)].title(),
        "section": "",
        "text": text,
        "kind": "text",
        "position": 0,
        "content_hash": hashlib.sha256(text.encode()).hexdigest(),
    }
