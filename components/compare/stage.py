"""passages of two dumps -> what changed, page by page and in total."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.compare.config import CompareConfig
from ralm.artifacts.files import Location, write_json
from ralm.artifacts.manifest import Artifact, Manifest, open_artifact
from ralm.artifacts.schemas import PAGE_CHANGES
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import write_table
from ralm.corpus.changes import PAGE_STATES, PASSAGE_STATES, compare_corpora, read_corpus

STAGE_VERSION = 1


def compare(
    *,
    previous: Location,
    passages: Location,
    changes: Location,
    config: CompareConfig = CompareConfig(),  # noqa: B008 - frozen
) -> Manifest:
    """Compare the passages of two dumps: pages and passages added, removed, changed, and what can be taken over.

    Args:
        previous: Passages artifact of the earlier dump.
        passages: Passages artifact of the later one.
        changes: Output folder: pages.parquet with the pages that are not the same, changes.json with the totals,
            metrics.json with the same numbers under flat names, changes.md.
        config: What the page shows.

    Returns:
        The manifest; `counts` are the totals of the passages.

    Raises:
        ArtifactError: an input is unfinished, or its content hashes are damaged.
    """
    opened = {"previous": open_artifact(previous, "passages"), "passages": open_artifact(passages, "passages")}
    return produce(
        changes,
        kind="changes",
        stage="compare",
        stage_version=STAGE_VERSION,
        inputs={name: artifact.fingerprint for name, artifact in opened.items()},
        config=dataclasses.asdict(config),
        build=lambda folder: _build(folder, opened["previous"], opened["passages"], config),
    )


def _build(folder: Path, previous: Artifact, passages: Artifact, config: CompareConfig) -> Contents:
    pages, totals = compare_corpora(read_corpus(previous), read_corpus(passages))
    rows = write_table(folder / "pages.parquet", pages, PAGE_CHANGES)
    write_json(folder / "changes.json", totals)
    write_json(
        folder / "metrics.json", {f"{kind}_{name}": n for kind, part in totals.items() for name, n in part.items()}
    )
    page = _render(previous, passages, totals, pages, config.max_pages)
    (folder / "changes.md").write_text(page, encoding="utf-8")
    return Contents(rows={"pages.parquet": rows}, counts=totals["passages"])


def _render(previous: Artifact, passages: Artifact, totals: Mapping[str, Any], pages: pa.Table, max_pages: int) -> str:
    names = [_name(artifact) for artifact in (previous, passages)]
    lines = [
        f"# Changes from {names[0]} to {names[1]}",
        "",
        f"{totals['passages']['taken_over']:,} of {totals['passages']['after']:,} passages were encoded before, "
        f"{totals['passages']['encoded']:,} are new to the encoder.",
        "",
        "| | before | after | " + " | ".join(dict.fromkeys([*PAGE_STATES, *PASSAGE_STATES])) + " |",
        "|---|" + "---:|" * (2 + len(dict.fromkeys([*PAGE_STATES, *PASSAGE_STATES]))),
    ]
    for kind, part in totals.items():
        cells = [part.get(name) for name in ("before", "after", *dict.fromkeys([*PAGE_STATES, *PASSAGE_STATES]))]
        lines.append(f"| {kind} | " + " | ".join("" if n is None else f"{n:,}" for n in cells) + " |")
    order = [("passages_added", "descending"), ("passages_removed", "descending"), ("source_id", "ascending")]
    shown = pages.sort_by(order).slice(0, max_pages).to_pylist()
    if shown:
        lines += ["", f"The {len(shown)} pages with the most new passages, of {pages.num_rows:,} that changed:", ""]
        lines += ["| page | state | before | after | added | removed |", "|---|---|---:|---:|---:|---:|"]
    for row in shown:
        titles = [row["title_before"], row["title_after"]]
        title = " → ".join(dict.fromkeys(_cell(title) for title in titles if title is not None))
        numbers = [row[f"passages_{name}"] for name in ("before", "after", "added", "removed")]
        lines.append(f"| {title} | {row['state']} | " + " | ".join(f"{number:,}" for number in numbers) + " |")
    return "\n".join([*lines, ""])


def _name(artifact: Artifact) -> str:
    details = artifact.manifest.details
    return f"{details['wiki']} {details['date']}" if details.get("wiki") else f"corpus {artifact.fingerprint[:12]}"


def _cell(text: str) -> str:
    """A title as a cell of a Markdown table: no markup of its own."""
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]<>()#+-.!|~&" else sign for sign in " ".join(text.split()))
