"""Small corpora whose ids and content hashes are the real ones, as `passages` artifacts."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ralm.artifacts.manifest import Artifact, open_artifact
from ralm.artifacts.schemas import PASSAGES
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import TableWriter
from ralm.corpus.passages import content_hash, passage_id

Row = Mapping[str, Any]


def passage(
    source_id: str, text: str, *, title: str = "", section: str = "", position: int = 0, revision_id: int | None = None
) -> dict[str, Any]:
    """A row of `passages/1`."""
    title = title or f"Page {source_id}"
    return {
        "passage_id": passage_id(source_id, section, text, 0),
        "source_id": source_id,
        "page_id": int(source_id) if source_id.isdigit() else None,
        "revision_id": revision_id,
        "title": title,
        "section": section,
        "text": text,
        "kind": "text",
        "position": position,
        "content_hash": content_hash(title, section, text),
    }


def write_passages(place: Path, rows: Sequence[Row], *, part_rows: int = 1 << 20, group_rows: int = 4096) -> Artifact:
    """A `passages` artifact with these rows, in parts and row groups of these sizes."""
    texts = [f"{row['passage_id']} {row['content_hash']} {row['revision_id']}" for row in rows]
    inputs = {"rows": "\n".join([*texts, f"{part_rows} {group_rows}"])}
    build = functools.partial(_build, rows=rows, part_rows=part_rows, group_rows=group_rows)
    produce(str(place), kind="passages", stage="toy", stage_version=1, inputs=inputs, config={}, build=build)
    return open_artifact(str(place), "passages")


def _build(folder: Path, rows: Sequence[Row], part_rows: int, group_rows: int) -> Contents:
    parts: dict[str, int] = {}
    for start in range(0, len(rows), part_rows):
        name = f"part-{len(parts):05d}.parquet"
        with TableWriter(folder / name, PASSAGES, group_rows) as writer:
            writer.write(rows[start : start + part_rows])
        parts[name] = writer.num_rows
    return Contents(rows=parts, counts={"passages": len(rows)})
