"""Atlas' published files by key, from a web server that has them under the same keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ralm.errors import ConfigError, DataError
from ralm.fetch import atlas
from ralm.sources import fetch_file, fetch_tree, source_digest
from tests.ralm.conftest import Site


@pytest.fixture
def atlas_site(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("RALM_ATLAS_BASE_URL", f"{site.url}/atlas/")
    return site


def test_the_published_keys() -> None:
    """Five corpora, eight models, eight indices of 128 shards (Atlas' download scripts)."""
    kinds = [key.partition("/")[0] for key in atlas.FILES]
    assert {kind: kinds.count(kind) for kind in kinds} == {"corpora": 5, "models": 8, "indices": 8}
    assert len(atlas.FILES["indices/atlas_nq/wiki/xl"]) == 256
    assert atlas.folder_files("atlas:models/atlas/base", atlas.BASE_URL) == {
        "model.pth.tar": "https://dl.fbaipublicfiles.com/atlas/models/atlas/base/model.pth.tar"
    }


def test_a_model_file_by_its_key(atlas_site: Site) -> None:
    atlas_site.files["/atlas/models/atlas_nq/base/model.pth.tar"] = b"weights"
    path = fetch_file("atlas:models/atlas_nq/base/model.pth.tar")
    assert (path.name, path.read_bytes()) == ("model.pth.tar", b"weights")
    assert fetch_file("atlas:models/atlas_nq/base") == path
    assert len(atlas_site.gets) == 1
    assert source_digest("atlas:models/atlas_nq/base") == source_digest("atlas:models/atlas_nq/base/model.pth.tar")


def test_an_index_by_its_key(atlas_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "indices/atlas/wiki/base"
    monkeypatch.setitem(atlas.FILES, key, ("passages.0.pt", "embeddings.0.pt"))  # type: ignore[misc]
    for name in atlas.FILES[key]:
        atlas_site.files[f"/atlas/{key}/{name}"] = name.encode()
    tree = fetch_tree(f"atlas:{key}")
    assert {path.name: path.read_text() for path in tree.iterdir()} == {
        "passages.0.pt": "passages.0.pt",
        "embeddings.0.pt": "embeddings.0.pt",
    }
    before = source_digest(f"atlas:{key}")
    atlas_site.etag = '"v2"'
    assert source_digest(f"atlas:{key}") != before
    with pytest.raises(ConfigError, match="expected a file, found a folder of 2 files"):
        fetch_file(f"atlas:{key}")
    assert fetch_file(f"atlas:{key}/embeddings.0.pt").read_bytes() == b"embeddings.0.pt"


@pytest.mark.parametrize("key", ["models/atlas/huge", "corpora/wiki/enwiki-dec2018/other.jsonl", "", "../secret"])
def test_unknown_keys_name_the_known_ones(key: str) -> None:
    for use in (fetch_file, source_digest):
        with pytest.raises(
            ConfigError, match="unknown key; there are corpora/wiki/enwiki-dec2017, .*models/atlas/base"
        ):
            use(f"atlas:{key}")
    with pytest.raises(ConfigError, match="unknown key"):
        fetch_tree(f"atlas:{key}")


def test_a_key_that_the_mirror_does_not_have(atlas_site: Site) -> None:
    with pytest.raises(DataError, match="models/atlas/base/model.pth.tar: the server answered 404"):
        fetch_file("atlas:models/atlas/base")


def passage(number: int, title: str, section: str, text: str) -> str:
    return json.dumps({"id": str(number), "title": title, "section": section, "text": text}) + "\n"


@pytest.mark.parametrize("infoboxes", [True, False])
def test_a_corpus_by_its_key(site: Site, tmp_path: Path, infoboxes: bool) -> None:
    from ralm.artifacts.tables import read_table
    from ralm.corpus.build import write_passages
    from ralm.corpus.formats import open_corpus
    from ralm.corpus.passages import SplitLimits

    key = "corpora/wiki/enwiki-dec2018"
    site.files[f"/{key}/text-list-100-sec.jsonl"] = (
        passage(0, "Otter", "", "Otters swim.") + passage(1, "Otter", "Food", "Otters eat fish.")
    ).encode()
    if infoboxes:
        site.files[f"/{key}/infobox.jsonl"] = passage(2, "Otter", "", "length: 1.2 m").encode()
    corpus = open_corpus(
        f"atlas:{key}", format="auto", base_url="http://unused", atlas_url=site.url, with_infoboxes=infoboxes
    )
    rows, counts = write_passages(tmp_path, corpus.batches(), SplitLimits(100), workers=1, source="atlas")
    assert counts["passages"] == (3 if infoboxes else 2)
    assert counts["infobox_passages"] == (1 if infoboxes else 0)
    assert corpus.details == {"wiki": "enwiki", "date": "dec2018"}
    assert set(corpus.inputs) == {"text-list-100-sec.jsonl", *(["infobox.jsonl"] if infoboxes else [])}
    table = read_table(str(tmp_path / next(iter(rows))), "passages/1").to_pylist()
    assert [(row["title"], row["section"], row["text"], row["kind"]) for row in table[:2]] == [
        ("Otter", "", "Otters swim.", "text"),
        ("Otter", "Food", "Otters eat fish.", "text"),
    ]


def test_a_model_is_no_corpus() -> None:
    from ralm.corpus.formats import open_corpus

    with pytest.raises(ConfigError, match="expected a corpus such as atlas:corpora/wiki/enwiki-dec2018"):
        open_corpus("atlas:models/atlas/base", format="auto", base_url="http://unused")
    with pytest.raises(ConfigError, match="is in the format atlas, not 'csv'"):
        open_corpus("atlas:corpora/wiki/enwiki-dec2018", format="csv", base_url="http://unused")
