"""From the dump of 2006 to that of 2016 (two export schemas): the counts add up, and the index is that of a rebuild."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from components.compare.stage import compare
from components.download.stage import download
from components.embed.config import EmbedConfig
from components.embed.stage import embed
from components.index.stage import index
from ralm.artifacts.manifest import Manifest, open_artifact
from ralm.artifacts.tables import read_table
from ralm.index.search import open_index
from ralm.model import open_model

OLD = "enwiki-20060303-ids1-700.xml.bz2"
NEW = "enwiki-20160501-pages-articles1-shortened.xml.bz2"
EXACT = EmbedConfig(precision="fp32")


@dataclass(frozen=True)
class Built:
    """The artifacts of a dump."""

    folder: Path
    embeddings: Manifest

    def place(self, kind: str) -> str:
        return str(self.folder / kind)


def build(dump: Path, model: str, folder: Path, before: Built | None = None) -> Built:
    built = {kind: str(folder / kind) for kind in ("passages", "embeddings", "index")}
    of_pages = {"previous": before.place("passages")} if before else {}
    of_vectors = {f"previous_{kind}": before.place(kind) for kind in ("passages", "index")} if before else {}
    of_index = {"previous": before.place("index")} if before else {}
    download(source=str(dump), passages=built["passages"], **of_pages)
    made = embed(passages=built["passages"], model=model, embeddings=built["embeddings"], config=EXACT, **of_vectors)
    index(embeddings=built["embeddings"], index=built["index"], **of_index)
    return Built(folder, made)


@pytest.mark.slow
def test_counts_add_up_and_the_index_equals_a_rebuild(
    shared_data: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wiki = shared_data / "wiki"
    old = build(wiki / OLD, tiny_model, tmp_path / "old")
    new = build(wiki / NEW, tiny_model, tmp_path / "new", before=old)
    monkeypatch.setenv("RALM_HOME", str(tmp_path / "another-store"))
    rebuilt = build(wiki / NEW, tiny_model, tmp_path / "rebuilt")
    compare(previous=old.place("passages"), passages=new.place("passages"), changes=str(tmp_path / "changes"))
    totals = json.loads((tmp_path / "changes" / "changes.json").read_text())
    pages, passages = totals["pages"], totals["passages"]

    common = pages["unchanged"] + pages["renamed"] + pages["changed"]
    assert pages["before"] == common + pages["removed"]
    assert pages["after"] == common + pages["added"]
    assert passages["after"] == sum(passages[name] for name in ("unchanged", "retitled", "moved", "added"))
    assert passages["before"] == sum(passages[name] for name in ("unchanged", "retitled", "removed"))
    assert passages["after"] == passages["taken_over"] + passages["encoded"]
    counts = new.embeddings.counts
    assert (counts["taken_over"], counts["encoded"]) == (passages["taken_over"], passages["encoded"])
    rows = read_table(str(tmp_path / "changes" / "pages.parquet"), "page_changes/1").to_pylist()
    renamed = [row for row in rows if row["title_before"] and row["title_after"] not in (None, row["title_before"])]
    assert len(renamed) == pages["changed_and_renamed"] + pages["renamed"] > 0

    fingerprints = [open_artifact(built.place("passages"), "passages").fingerprint for built in (new, rebuilt)]
    assert fingerprints[0] == fingerprints[1]
    encoder = open_model(tiny_model).fingerprints["passage_encoder"]
    updated, whole = (open_index(built.place("index"), passage_encoder=encoder) for built in (new, rebuilt))
    probes_BD = whole.vectors(np.arange(0, whole.num_passages, 10))
    ours, theirs = updated.search(probes_BD, 50), whole.search(probes_BD, 50)
    np.testing.assert_array_equal(ours.passage_ids, theirs.passage_ids)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-3)
