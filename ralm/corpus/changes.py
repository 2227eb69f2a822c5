"""What changed from one `passages` artifact to another: page by page, and in total.

A passage of the new corpus is exactly one of: unchanged (its id and its content are in the old one), retitled (its id
is, under another title), moved (its content is, under another id) and added. A passage of the old corpus that has no
successor by id is removed. Hence

    after  = unchanged + retitled + moved + added
    before = unchanged + retitled + removed

and `unchanged + moved` is what a re-index can take over (a retitled passage reads differently to the encoder; it too
counts as taken over where another passage reads the same).

Shapes: N passages, P pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ralm.artifacts.manifest import Artifact
from ralm.artifacts.schemas import PAGE_CHANGES
from ralm.artifacts.tables import iterate_rows
from ralm.corpus.content import ContentRows, hash_keys

BLOCK_ROWS = 1 << 16
"""Passages that are looked up at a time."""
PASSAGE_STATES: Final = ("unchanged", "retitled", "moved", "added", "removed")
PAGE_STATES: Final = ("unchanged", "renamed", "changed", "added", "removed")


@dataclass(frozen=True)
class CorpusRows:
    """A corpus without its texts: about 30 bytes a passage, and its pages' ids and titles.

    Attributes:
        ids: passage ids, int64 [N].
        keys: content keys, uint64 [N, 2].
        page_of: the page of each passage [N], a row of `pages`.
        pages: source_id, page_id, revision_id, title, one row a page.
    """

    ids: np.ndarray
    keys: np.ndarray
    page_of: np.ndarray
    pages: pa.Table


def read_corpus(passages: Artifact) -> CorpusRows:
    """Read ids, content keys and pages of a `passages` artifact."""
    num_rows = sum(rows for _, rows in passages.tables())
    id_N, key_N2 = np.empty(num_rows, np.int64), np.empty((num_rows, 2), np.uint64)
    starts, runs = [np.empty(0, np.int64)], []
    columns = ["source_id", "page_id", "revision_id", "title"]
    row = 0
    for table in iterate_rows(passages.tables(), "passages/1", columns=["passage_id", "content_hash", *columns]):
        part = slice(row, row + table.num_rows)
        source = table.column("source_id").combine_chunks()
        id_N[part] = table.column("passage_id").to_numpy()
        key_N2[part] = hash_keys(table.column("content_hash"), passages.location)
        differs = pc.not_equal(source[1:], source[:-1]).to_numpy(zero_copy_only=False)
        first = np.append([True], differs).nonzero()[0]
        starts.append(first + row)
        runs.append(table.select(columns).take(first))
        row = part.stop
    run_start = np.concatenate(starts)
    table = pa.concat_tables(runs).combine_chunks()
    # A page may come in several stretches, as the texts and infoboxes of Atlas do, or in two row groups.
    codes = table.column("source_id").combine_chunks().dictionary_encode()
    run_page = codes.indices.to_numpy()
    page_N = np.repeat(run_page, np.diff(run_start, append=row))
    _, first_run = np.unique(run_page, return_index=True)
    return CorpusRows(id_N, key_N2, page_N, table.take(first_run))


def compare_corpora(before: CorpusRows, after: CorpusRows) -> tuple[pa.Table, dict[str, Any]]:
    """Compare two corpora.

    Returns:
        `page_changes/1`: one row for each page that is not the same, first those of the new corpus in its order, then
        removed ones. And the totals: `pages` and `passages`, each with `before`, `after` and one number for each state;
        `changed_and_renamed` of the changed pages; `taken_over` and `encoded` of the passages.
    """
    states, removed_N, known_N = _passage_states(before, after)
    num_after = after.pages.num_rows
    match_P = _match_pages(before.pages, after.pages)  # old page of each new one, -1
    gone_P = np.setdiff1d(np.arange(before.pages.num_rows), match_P)
    old_P = np.concatenate([match_P, gone_P])
    is_old_P, is_new_P = old_P >= 0, np.arange(len(old_P)) < num_after
    per_page = {
        name: np.pad(np.bincount(after.page_of[mask], minlength=num_after), (0, len(gone_P)))
        for name, mask in states.items()
    }
    for name, pages in (("removed", before.page_of[removed_N]), ("before", before.page_of)):
        number_P = np.bincount(pages, minlength=before.pages.num_rows)
        per_page[name] = np.where(is_old_P, number_P[old_P], 0)
    per_page["after"] = np.pad(np.bincount(after.page_of, minlength=num_after), (0, len(gone_P)))
    old_row, new_row = pa.array(old_P, mask=~is_old_P), pa.array(np.arange(len(old_P)), mask=~is_new_P)
    titles = before.pages.column("title").take(old_row), after.pages.column("title").take(new_row)
    is_renamed_P = is_old_P & is_new_P
    is_renamed_P &= pc.fill_null(pc.not_equal(*titles), False).to_numpy(zero_copy_only=False)
    is_edited_P = per_page["added"] + per_page["moved"] + per_page["removed"] > 0
    state_P = np.select([~is_old_P, ~is_new_P, is_edited_P, is_renamed_P], [3, 4, 2, 1], 0)
    totals = _totals(per_page, state_P, is_renamed_P & (state_P == 2), int((known_N >= 0).sum()))
    columns = {
        "source_id": pc.coalesce(*(_take(rows, "source_id") for rows in ((after, new_row), (before, old_row)))),
        "state": pa.array(PAGE_STATES).take(pa.array(state_P)),
        "title_before": titles[0],
        "title_after": titles[1],
        "revision_before": _take((before, old_row), "revision_id"),
        "revision_after": _take((after, new_row), "revision_id"),
        **{f"passages_{name}": per_page[name].astype(np.int32) for name in ("before", "after", *PASSAGE_STATES)},
    }
    is_row = pa.array((state_P > 0) | (per_page["retitled"] > 0))
    return pa.table(columns).filter(is_row).cast(PAGE_CHANGES), totals


def _take(rows: tuple[CorpusRows, pa.Array], name: str) -> pa.ChunkedArray:
    return rows[0].pages.column(name).take(rows[1])


def _passage_states(before: CorpusRows, after: CorpusRows) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Masks [N] over the new passages by state, a mask over the old ones that are gone, and the old row by content."""
    order_M = np.argsort(before.ids, kind="stable").astype(np.uint32 if len(before.ids) < 2**32 else np.int64)
    sorted_M = before.ids[order_M]
    is_kept_N, is_equal_N = np.zeros(len(after.ids), bool), np.zeros(len(after.ids), bool)
    is_gone_N = np.ones(len(before.ids), bool)
    known_N = np.empty(len(after.ids), np.int64)
    for start in range(0, len(after.ids) if len(before.ids) else 0, BLOCK_ROWS):  # what is worked out stays small
        part = slice(start, start + BLOCK_ROWS)
        place = np.minimum(np.searchsorted(sorted_M, after.ids[part]), len(sorted_M) - 1)
        is_kept_N[part] = sorted_M[place] == after.ids[part]
        old = order_M[place]
        is_equal_N[part] = is_kept_N[part] & (before.keys[old] == after.keys[part]).all(1)
        is_gone_N[old[is_kept_N[part]]] = False
    del order_M, sorted_M
    by_content = ContentRows(before.keys)
    for start in range(0, len(after.ids), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        known_N[part] = by_content.find(after.keys[part])
    states = {
        "unchanged": is_equal_N,
        "retitled": is_kept_N & ~is_equal_N,
        "moved": ~is_kept_N & (known_N >= 0),
        "added": ~is_kept_N & (known_N < 0),
    }
    return states, is_gone_N, known_N


def _match_pages(before: pa.Table, after: pa.Table) -> np.ndarray:
    places = pc.index_in(after.column("source_id"), value_set=before.column("source_id").combine_chunks())
    return np.asarray(places.fill_null(-1).to_numpy(), np.int64)


def _totals(
    per_page: dict[str, np.ndarray], state_P: np.ndarray, is_both_P: np.ndarray, taken_over: int
) -> dict[str, dict[str, int]]:
    pages = {name: int((state_P == number).sum()) for number, name in enumerate(PAGE_STATES)}
    passages = {name: int(per_page[name].sum()) for name in ("before", "after", *PASSAGE_STATES)}
    return {
        "pages": {
            "before": len(state_P) - pages["added"],
            "after": len(state_P) - pages["removed"],
            **pages,
            "changed_and_renamed": int(is_both_P.sum()),
        },
        "passages": {**passages, "taken_over": taken_over, "encoded": passages["after"] - taken_over},
    }
